"""Run folders: never overwritten, never half written."""

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import convspark
from convspark import files
from convspark.arguments import checked_arguments
from convspark.errors import ConvsparkError, UsageError
from convspark.files import beside, write_text, written_whole
from convspark.pretraining.settings import PretrainSettings
from convspark.runs import folder as run_folder
from convspark.runs.folder import RunFolder, write_environment
from convspark.tasks.comparison.settings import CompareSettings


def test_takes_an_empty_folder_and_makes_one_that_is_not_there(tmp_path):
    (tmp_path / "run").mkdir()
    for path in (tmp_path / "run", tmp_path / "runs" / "other"):
        RunFolder.create(path)
        assert path.is_dir() and not list(path.iterdir())


def test_refuses_what_exists_and_tells_how_to_go_on(tmp_path):
    (tmp_path / "config.yaml").write_text("model: x")
    with pytest.raises(UsageError, match=rf"pretrain --resume {tmp_path}"):
        RunFolder.create(tmp_path)
    other = tmp_path / "file"
    other.write_text("")
    with pytest.raises(UsageError, match="exists already: choose another --out"):
        RunFolder.create(other)


def test_refuses_a_place_where_nothing_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        RunFolder.create(tmp_path / "file" / "run")


def test_opening_names_the_runs_nearby(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.yaml").write_text("model: x")
    assert RunFolder.open(tmp_path / "first").path.name == "first"
    with pytest.raises(UsageError, match=r"no run folder.*first"):
        RunFolder.open(tmp_path / "frist")
    with pytest.raises(UsageError, match=r"no config\.yaml"):
        RunFolder.open(tmp_path)


def test_opening_a_run_of_another_command_names_that(tmp_path):
    for name, file, kind in (("p", "config.yaml", "pretrain"), ("c", "compare.yaml", "compare")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(f"kind: {kind}\n")
        asked = CompareSettings if kind == "pretrain" else PretrainSettings
        with pytest.raises(
            UsageError, match=f"a run of `convspark {kind}`, not of {asked.kind}; `convspark {kind} --re"
        ):
            RunFolder.open(tmp_path / name, asked)


def test_a_link_that_leads_nowhere_is_no_place_for_a_run_or_an_export(tmp_path):
    (link := tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UsageError, match="link', a link that leads nowhere: choose another --out"):
        RunFolder(link).check_new()
    with pytest.raises(UsageError, match="link', a link that leads nowhere: choose another --out"):
        convspark.export("random:test_resnet", out=link)
    assert os.listdir(tmp_path) == ["link"]


def test_devices_and_pipes_are_not_replaced(tmp_path, monkeypatch):
    pipe, of_output = tmp_path / "pipe", tmp_path / "stdout"
    os.mkfifo(pipe)
    of_output.symlink_to(tmp_path / "log")
    (tmp_path / "log").write_text("before")
    monkeypatch.setattr(files, "_DEVICES", tmp_path)
    for path in (pipe, of_output):
        with pytest.raises(UsageError, match=f"{path} is a device or a pipe"):
            write_text(path, "text")
    assert stat.S_ISFIFO(pipe.stat().st_mode) and of_output.is_symlink() and of_output.read_text() == "before"


@pytest.mark.parametrize("path", ["/proc/x.txt", "/proc/x/y/z.txt"])
def test_where_the_system_says_that_there_is_no_such_file(path):
    with pytest.raises(PermissionError) as caught:
        write_text(path, "text")
    assert caught.value.filename == path and "No file can be made there" in str(caught.value)


@pytest.mark.parametrize("url", ["s3://bucket/run", "file://run"])
def test_urls_are_not_made_folders_of(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (lambda: RunFolder.create(url), lambda: write_text(f"{url}/config.yaml", "text")):
        with pytest.raises(UsageError, match="is a URL: convspark writes to folders"):
            write()
    assert not list(tmp_path.iterdir())


def test_long_work_is_not_begun_where_its_result_cannot_be_written(tmp_path, monkeypatch):
    old, never = tmp_path / "old.npz", tmp_path / "file" / "new.png"
    old.write_text("before")
    files.check_writable(old)
    files.check_writable(tmp_path / "new.npz")
    assert old.read_text() == "before" and list(tmp_path.iterdir()) == [old]
    never.parent.touch()
    for call in (
        lambda: convspark.scan("pictures", out=str(never)),
        lambda: convspark.scan("pictures", keep=str(never)),
    ):
        with pytest.raises(UsageError, match=f"{never} cannot be written: {never.parent} is no folder"):
            call()
    monkeypatch.setattr(files, "_DEVICES", tmp_path)
    for call in (
        lambda: convspark.embed("random:resnet18", "pictures", out=str(old)),
        lambda: convspark.export("random:resnet18", out=str(tmp_path / "new")),
    ):
        with pytest.raises(UsageError, match="is a device or a pipe"):
            call()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(TypeError), written_whole(path) as temporary:
        temporary.write_text("ne") and temporary.write_text(None)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_killed_process_left_is_removed_by_the_next_one_and_nothing_else_is(tmp_path):
    path = tmp_path / "last.ckpt"
    killed = (
        "import os, signal\nfrom convspark.files import beside, written_whole\n"
        f"beside(__import__('pathlib').Path({str(tmp_path / 'export')!r})).mkdir()\n"
        f"with written_whole({str(path)!r}) as temporary:\n"
        "    temporary.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", killed], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    others = [beside(path).with_name(f".last-part{os.getppid()}.ckpt"), tmp_path / ".last-partial.ckpt"]
    for other in others:  # of a process that runs, and of somebody's own
        other.write_text("")
    with written_whole(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("whole")
    beside(tmp_path / "export")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, *(other.name for other in others)}


def test_a_file_has_the_usual_permissions_whoever_wrote_it(tmp_path):
    path = tmp_path / "a.txt"
    before = os.umask(0o027)
    try:
        with written_whole(path) as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_environment_is_kept_when_a_run_goes_on(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    write_environment(folder, "CPU")
    write_environment(folder, "another")
    content = json.loads(folder.environment.read_text())
    assert content["device"] == "CPU" and content["versions"]["torch"]
    assert [again["device"] for again in content["resumed"]] == ["another"]


def test_default_path_is_safe_to_write():
    assert "/" not in run_folder.default_path("local-dir:a/b").name


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "default_path", lambda name: tmp_path / "runs" / f"{name}-20260101-000000")
    folders = [RunFolder.create_named("net").path for _ in range(3)]
    assert [folder.name.removeprefix("net-20260101-000000") for folder in folders] == ["", "-2", "-3"]
    assert all(folder.is_dir() for folder in folders)
    (tmp_path / "file").touch()
    monkeypatch.setattr(run_folder, "default_path", lambda name: tmp_path / "file" / name)
    with pytest.raises(UsageError, match="cannot be made"):
        RunFolder.create_named("net")


def test_commands_to_type_are_as_a_shell_takes_them(tmp_path):
    place = tmp_path / "my runs" / "it's $HOME"
    folder = RunFolder.create(place, PretrainSettings)
    assert shlex.split(folder.going_on) == ["convspark", "pretrain", "--resume", str(place)]
    folder.config.write_text("kind: finetune\n")
    with pytest.raises(UsageError) as raised:
        RunFolder.open(place, PretrainSettings)
    command = re.search(r"`(convspark [^`]+)` goes on", str(raised.value))
    assert command is not None and shlex.split(command[1])[-1] == str(place)


@pytest.mark.parametrize(
    "name", ["export", "probe", "embed", "finetune", "detect", "segment", "load", "figures", "reconstruct", "scan"]
)
def test_functions_take_paths(name, tmp_path):
    nowhere = tmp_path / "nowhere"
    more = {"figures": ([nowhere],), "reconstruct": ([nowhere],), "embed": (nowhere,)}.get(name, ())
    with pytest.raises(ConvsparkError, match="nowhere"):  # as for a text; not an AttributeError
        getattr(convspark, name)(nowhere, *more)


def test_paths_in_lists_and_settings(tmp_path):
    assert checked_arguments(lambda *a, **k: (a, k))(Path("a"), [Path("b"), 1], c=(0.9, 0.95)) == (
        ("a", ["b", 1]),
        {"c": (0.9, 0.95)},
    )
    with pytest.raises(ConvsparkError, match="no_such_weights"):
        convspark.pretrain(tmp_path, init=tmp_path / "no_such_weights", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
