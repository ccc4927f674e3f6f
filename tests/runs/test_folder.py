"""Run folders: never overwritten, never half written."""

import json

import pytest

from convspark.errors import UsageError
from convspark.files import write_text, written_whole
from convspark.runs import folder as run_folder
from convspark.runs.folder import RunFolder, write_environment


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


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(TypeError), written_whole(path) as temporary:
        temporary.write_text("ne") and temporary.write_text(None)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_environment_is_kept_when_a_run_goes_on(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    write_environment(folder, "CPU")
    write_environment(folder, "another")
    content = json.loads(folder.environment.read_text())
    assert content["device"] == "CPU" and content["versions"]["torch"]
    assert [again["device"] for again in content["resumed"]] == ["another"]


def test_default_path_is_safe_to_write():
    assert "/" not in run_folder.default_path("local-dir:a/b").name
