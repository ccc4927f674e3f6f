"""The runs in a folder as a table: which go on, which are done, which died; whatever their files hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from convspark.cli.main import main
from convspark.errors import UsageError
from convspark.files import held
from convspark.report.overview import runs
from convspark.report.record import read_record

METRICS = "epoch,step,train_loss,held_out_loss\n1,10,0.9,0.95\n2,20,0.7,0.65\n3,30,0.6,0.68\n"
WATCH = "epoch,step,knn,linear,linear_random,seconds\n0,0,0.3,0.31,0.31,1\n2,20,0.4,0.52,0.31,1\n3,30,0.4,0.5,0.31,1\n"


HOLDING = """
import sys, time
from pathlib import Path
from convspark.files import held

with held(Path(sys.argv[1])):
    print(1, flush=True)
    time.sleep(100)
"""


def make(folder: Path, kind: str = "pretrain", done: bool = False, file: str = "config.yaml", **settings) -> Path:
    """A run folder after three epochs."""
    folder.mkdir(parents=True)
    settings = {"images": "/data/pictures", "model": "resnet50", "epochs": 3} | settings
    lines = [f"kind: {kind}", *(f"{name}: {json.dumps(value)}" for name, value in settings.items())]
    (folder / file).write_text("\n".join(lines) + "\n")
    (folder / "metrics.csv").write_text(METRICS)
    (folder / "environment.json").write_text("{}")
    (folder / "log.txt").write_text("2026-01-01 00:00:00  run folder here\n")
    if done:
        (folder / "export").mkdir()
    return folder


def line(folder: Path):
    (run,) = runs(str(folder)).runs
    return run


def test_a_line_tells_what_how_far_and_how_well(tmp_path):
    make(tmp_path / "run", done=True)
    run = line(tmp_path)
    assert (run.kind, run.state, run.network, run.data) == ("pretrain", "done", "resnet50", "/data/pictures")
    assert (run.epoch, run.epochs, run.loss, run.best) == (3, 3, 0.6, "held out 0.6500")
    (tmp_path / "run" / "watch.csv").write_text(WATCH)
    assert line(tmp_path).best == "linear 52.0 % (random 31.0)"
    (tmp_path / "run" / "warnings.csv").write_text("epoch,step,kind,text\n2,20,flat,it is\n")
    assert line(tmp_path).warnings == 1 and "done (1 warning)" in str(runs(str(tmp_path)))


def test_what_goes_on_is_told_from_what_was_stopped_or_died(tmp_path):
    run = make(tmp_path / "run", epochs=10)
    with subprocess.Popen([sys.executable, "-c", HOLDING, run / "config.yaml"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        assert line(tmp_path).state == "running"
        process.kill()
    assert line(tmp_path).state == "died"
    (run / "ended.json").write_text('{"state": "stopped", "why": "by Ctrl-C or a signal"}')
    assert line(tmp_path).state == "stopped"
    (run / "ended.json").write_text('{"state": "failed", "why": "no space left"}')
    assert line(tmp_path).state == "failed" and "run: failed: no space left" in str(runs(str(tmp_path)))
    (run / "ended.json").write_text("{")
    assert line(tmp_path).state == "died" and line(tmp_path).torn == ["ended.json"]
    (run / "ended.json").unlink()  # gone on with, and killed this time
    assert line(tmp_path).state == "died"
    with held(run / "config.yaml"):
        assert line(tmp_path).state == "running"  # and looking did not take the lock away
        assert line(tmp_path).state == "running"


@pytest.mark.parametrize(
    ("kind", "results", "best"),
    [
        ("finetune", {"top1": 0.713, "split": "test"}, "top-1 71.3 % (test)"),
        ("detect", {"ap": 0.25}, "AP 25.0 %"),
        ("segment", {"iou": 0.5}, "IoU 50.0 %"),
    ],
)
def test_tasks(tmp_path, kind, results, best):
    run = make(tmp_path / "run", kind, images=None, data="labelled", val_top1=1)
    assert (line(tmp_path).state, line(tmp_path).best, line(tmp_path).data) == ("died", "", "labelled")
    (run / "results.json").write_text(json.dumps(results))
    assert (line(tmp_path).state, line(tmp_path).best) == ("done", best)


def test_the_best_of_a_detector_is_that_of_its_best_epoch_not_of_its_last(tmp_path):
    run = make(tmp_path / "run", "detect")
    (run / "metrics.csv").write_text("epoch,step,train_loss,val_ap\n1,1,1,0.1\n2,2,1,0.375\n3,3,1,0.25\n")
    assert line(tmp_path).best == "AP 37.5 %"
    (run / "results.json").write_text(json.dumps({"ap": 0.25, "best": {"score": 0.375, "epoch": 2}}))
    assert (line(tmp_path).state, line(tmp_path).best) == ("done", "AP 37.5 %")


def test_a_comparison_was_written_when_its_fine_tunings_were(tmp_path):
    run = make(tmp_path / "c", "compare", file="compare.yaml", against=["random", "random"], seeds=1, fractions=[1.0])
    inner = make(run / "random-1-seed0", "finetune")
    for path in (*inner.iterdir(), inner, *run.iterdir(), run):
        os.utime(path, (1_700_000_000,) * 2)
    os.utime(inner / "log.txt", (1_700_005_000,) * 2)
    assert read_record(run).changed == 1_700_005_000
    assert line(tmp_path).epochs == 2  # weights that are named twice are compared with once


def test_a_comparison_counts_its_fine_tunings_which_are_part_of_it(tmp_path):
    run = make(
        tmp_path / "c",
        "compare",
        file="compare.yaml",
        run="runs/first",
        model=None,
        seeds=3,
        fractions=[0.1, 1.0],
        against=None,
    )
    make(run / "random-1-seed0", "finetune")
    (run / "random-1-seed0" / "results.json").write_text("{}")
    comparison = line(tmp_path)
    assert (comparison.epoch, comparison.epochs, comparison.network) == (1, 12, "runs/first")
    gains = [{"mean": 3.0, "other": "random", "fraction": 0.1}, {"mean": 1.25, "other": "random", "fraction": 1.0}]
    (run / "compare.json").write_text(json.dumps({"differences": gains}))
    assert (line(tmp_path).state, line(tmp_path).best) == ("done", "+1.2 points over random at 100 %")
    assert len(runs(str(run)).runs) == 2


def test_the_last_written_comes_first_and_other_folders_are_none(tmp_path, capsys):
    for age, name in enumerate(("new", "deep/er/middle", "old")):
        run = make(tmp_path / name)
        for path in run.iterdir():
            os.utime(path, (1_700_000_000 - 1000 * age,) * 2)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "config.yaml").write_text("model: of another program\n")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [Path(entry.run).name for entry in runs(str(tmp_path)).runs] == ["new", "middle", "old"]
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert [Path(run["run"]).name for run in json.loads(capsys.readouterr().out)["runs"]] == ["new", "middle", "old"]
    assert main(["runs", str(tmp_path)]) == 0
    assert "deep/er/middle" in capsys.readouterr().out.splitlines()[2]


def test_no_folder_and_no_runs(tmp_path):
    with pytest.raises(UsageError, match="there is no such folder"):
        runs(str(tmp_path / "missing"))
    assert "No runs in" in str(runs(str(tmp_path)))


BAD = [
    b"",
    b"\x00" * 100,
    b"\xff\xfe\x00epoch",
    b"{",
    b"[1, 2]",
    b"epoch,step\n1",
    b"a: [1, 2",
    b"- 1\n",
    b'"' * 50,
    b"epoch,step,train_loss\n1,x,y\n",
]


@pytest.mark.parametrize("content", BAD)
@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.csv", "watch.csv", "warnings.csv", "results.json", "environment.json", "log.txt"]
)
def test_torn_files_are_named_and_stop_nothing(tmp_path, name, content):
    make(tmp_path / "whole", done=True)
    make(tmp_path / "torn", "finetune")
    (tmp_path / "torn" / name).write_bytes(content)
    entries = {Path(entry.run).name: entry for entry in runs(str(tmp_path)).runs}
    assert entries["whole"].state == "done" and entries["torn"].state in ("died", "done")
    str(runs(str(tmp_path)))
    json.dumps(entries["torn"].torn)
    if name in ("config.yaml", "results.json", "metrics.csv") and content in (b"", b"{", b"\x00" * 100):
        assert name in entries["torn"].torn


def test_a_folder_in_place_of_a_file(tmp_path):
    run = make(tmp_path / "run")
    (run / "metrics.csv").unlink()
    for name in ("metrics.csv", "watch.csv", "results.json"):
        (run / name).mkdir()
    assert line(tmp_path).epoch == 0


def test_names_that_a_terminal_would_obey_are_shown(tmp_path):
    make(tmp_path / "run\x1b[31m", model="net\nwork")
    text = str(runs(str(tmp_path)))
    assert "\x1b" not in text and "run\\x1b[31m" in text and "net\\nwork" in text


def test_it_needs_no_torch():
    code = "import sys, convspark.cli.runs; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
