"""Several processes of a run: the same run as with one; what they say, and how they are stopped and killed."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled_pictures import write_pictures
from PIL import Image
from safetensors.torch import load_file
from spread import main as run_here

from convspark.cli.main import main
from convspark.errors import UsageError
from convspark.runs import processes
from convspark.runs.launch import launch
from convspark.runs.numbers import count
from convspark.runs.processes import Agreement, Processes, check_count, joined

SCRIPT = Path(__file__).with_name("spread.py")
REFERENCE = ["resnet", "drawing", "segment"]
TINY = ["--model", "test_resnet", "--size", "64", "--decoder-width", "32", "--batch-size", "8", "--picture-epochs", "0"]
TINY += ["--workers", "0", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(20):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((80, 72), Image.Resampling.BICUBIC).save(folder / f"{index:03}.png")
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """Classes in train/ and val/, and label maps."""
    root, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    write_pictures(root / "train", 8)
    write_pictures(root / "val", 30, seed=1)
    for name in ("images", "masks"):
        (root / name).mkdir()
    for index in range(10):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(root / "images" / f"{index}.png")
        labels = np.zeros((40, 48), np.uint8)
        labels[5 + index : 25, 8:30], labels[:3] = 1, 255
        Image.fromarray(labels).save(root / "masks" / f"{index}.png")
    return root


def spread(count: int, out: Path, pictures: Path, labelled: Path, *cases: str) -> dict[str, list[float]]:
    """The losses of each case, of so many processes."""
    out.mkdir()
    assert launch([sys.executable, str(SCRIPT), str(pictures), str(labelled), str(out), *cases], count) == 0
    return losses_of(out, cases)


def losses_of(out: Path, cases: Sequence[str]) -> dict[str, list[float]]:
    return {case: json.loads((out / f"{case}.json").read_text()) for case in cases}


@pytest.fixture(scope="module")
def alone(pictures, labelled, tmp_path_factory) -> dict[str, list[float]]:
    out = tmp_path_factory.mktemp("alone")
    run_here(str(pictures), str(labelled), str(out), *REFERENCE)
    return losses_of(out, REFERENCE)


def check_equal(ours: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    for case, losses in ours.items():
        assert len(losses) == 4 and losses[:3] == pytest.approx(expected[case][:3], rel=1e-10), case
        assert losses[3] == pytest.approx(expected[case][3], rel=1e-5), case  # of exported weights, in float32


def test_two_processes_take_the_steps_of_one(alone, pictures, labelled, tmp_path):
    check_equal(spread(2, tmp_path / "out", pictures, labelled, *REFERENCE), alone)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_so_do_more_of_them_on_all_networks(pictures, labelled, tmp_path, processes):
    cases = ["resnet", "convnext", "accumulate", "drawing", "finetune", "segment"]
    expected = spread(1, tmp_path / "alone", pictures, labelled, *cases)
    if processes == 4:  # two passes of eight images are not enough for four
        cases.remove("accumulate")
    check_equal(spread(processes, tmp_path / "out", pictures, labelled, *cases), expected)


KILLS = """
import os, signal, sys
from convspark.cli.main import main
from convspark.runs.processes import Processes
from convspark.runs.module import TrainingModule

rank, step, number = int(sys.argv.pop(1)), int(sys.argv.pop(1)), int(sys.argv.pop(1))
start = TrainingModule.on_train_batch_start

def killed(self, batch, batch_idx):
    start(self, batch, batch_idx)
    if Processes.here().rank == rank and self.global_step == step:
        os.kill(os.getpid(), number)

TrainingModule.on_train_batch_start = killed
sys.exit(main())
"""


def run_cli(processes: int, *arguments: object, kill: tuple[int, int, int] | None = None) -> int:
    """The exit code of a command of so many processes; `kill` is (rank, step, signal)."""
    start = ["-m", "convspark"] if kill is None else ["-c", KILLS, *map(str, kill)]
    return launch([sys.executable, *start, *map(str, arguments)], processes)


def steps_and_losses(run: Path) -> list[tuple[str, ...]]:
    with (run / "metrics.csv").open() as file:
        return [(row["step"], row["train_loss"], row["held_out_loss"]) for row in csv.DictReader(file)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


@pytest.mark.slow
def test_one_that_is_killed_ends_the_others_and_the_run_goes_on(pictures, tmp_path, capfd):
    command = ["pretrain", pictures, "--epochs", 2, *TINY, "--checkpoint-minutes", "1e-6"]
    assert main([*map(str, command), "--out", str(tmp_path / "whole")]) == 0
    started = time.monotonic()
    assert run_cli(2, *command, "--out", tmp_path / "run", kill=(1, 4, 9)) == 128 + 9
    assert time.monotonic() - started < 120  # it takes half a minute where the machine has nothing else to do
    errors = capfd.readouterr().err
    assert "process 1 was ended by SIGKILL" in errors and "Traceback" not in errors
    assert not (tmp_path / "run" / "export").exists()
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 0
    check_like(tmp_path / "run", tmp_path / "whole")


def check_like(run: Path, other: Path) -> None:
    """In float32, of other numbers of processes."""
    for one, two in zip(steps_and_losses(run), steps_and_losses(other), strict=True):
        assert [float(value) for value in one] == pytest.approx([float(value) for value in two], rel=1e-4)


@pytest.mark.slow
def test_two_processes_see_the_features_that_one_sees(pictures, labelled, tmp_path):
    command = ["pretrain", pictures, "--epochs", 1, *TINY, "--held-out", 0.4, "--probe", labelled, "--seed", 1]
    assert main([*map(str, command), "--out", str(tmp_path / "one")]) == 0
    assert run_cli(2, *command, "--out", tmp_path / "two") == 0
    one, two = (list(csv.DictReader((tmp_path / run / "watch.csv").read_text().splitlines())) for run in ("one", "two"))
    assert len(one) == len(two) == 2
    for ours, theirs, tolerance in zip(one, two, (1e-6, 0.02), strict=True):  # steps in float32 lie between the two
        assert float(ours["rank"]) == pytest.approx(float(theirs["rank"]), rel=tolerance)
        assert [ours[name] for name in ("knn", "linear", "step")] == [
            theirs[name] for name in ("knn", "linear", "step")
        ]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_and_gone_on_with_alike_it_is_bit_by_bit_the_same(pictures, tmp_path, rank):
    command = ["pretrain", pictures, "--epochs", 2, *TINY, "--checkpoint-minutes", "1e-6"]
    assert run_cli(2, *command, "--out", tmp_path / "whole") == 0
    assert run_cli(2, *command, "--out", tmp_path / "run", kill=(rank, 4, 9)) == 128 + 9
    assert run_cli(2, "pretrain", "--resume", tmp_path / "run") == 0
    assert steps_and_losses(tmp_path / "run") == steps_and_losses(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("then", [1, 2, 4])
def test_a_run_stopped_on_two_goes_on_with_others(pictures, tmp_path, then, capfd):
    command = ["pretrain", pictures, "--epochs", 2, *TINY]
    assert run_cli(1, *command, "--out", tmp_path / "whole") == 0
    assert run_cli(2, *command, "--out", tmp_path / "run", kill=(1, 3, 15)) == 130
    errors = capfd.readouterr().err
    assert f"Stopped after step 5 of 6. To go on:\n  convspark pretrain --resume {tmp_path / 'run'}" in errors
    assert run_cli(then, "pretrain", "--resume", tmp_path / "run") == 0
    check_like(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_job_of_slurms_is_queued_again_and_goes_on(pictures, tmp_path, monkeypatch):
    said = tmp_path / "said"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    command = ["pretrain", pictures, "--epochs", 2, *TINY, "--out", tmp_path / "run"]
    assert run_cli(2, *command, kill=(1, 2, 10)) == 130
    assert said.read_text() == "requeue 77\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run_cli(2, *command) == 0
    assert [step for step, *_ in steps_and_losses(tmp_path / "run")] == ["3", "6"]


@pytest.mark.slow
def test_what_is_wrong_is_told_once_and_nothing_written(pictures, tmp_path):
    command = [sys.executable, "-m", "convspark", "pretrain", str(pictures), "--out", str(tmp_path / "run"), *TINY]
    command += ["--devices", "2", "--batch-size", "9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("error") == 1
    assert "error: batch_size is 9, which 2 processes cannot share evenly: 1 can\n" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Processes()),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Processes(5, 8, 1, 4)),
        (
            {
                "SLURM_STEP_NUM_TASKS": "7",
                "SLURM_PROCID": "5",
                "SLURM_NODEID": "1",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "4,3",
            },
            Processes(5, 7, 1, 3),
        ),
        (
            {
                "SLURM_STEP_NUM_TASKS": "8",
                "SLURM_PROCID": "6",
                "SLURM_NODEID": "1",
                "SLURM_LOCALID": "2",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
            },
            Processes(6, 8, 2, 4),
        ),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, Processes()),  # a batch script, not srun
    ],
)
def test_how_a_process_was_started(environment, expected):
    assert Processes._of(environment) == expected


TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_NODEID": "1", "SLURM_LOCALID": "1"}
SRUN |= {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (TORCHRUN | {"RANK": "abc"}, "has RANK = 'abc': expected a whole number. If .* unset RANK"),
        (TORCHRUN | {"RANK": "2"}, "process 2 of 2, and 0 of 2 on this machine.*cannot be.*unset RANK"),
        (TORCHRUN | {"RANK": "-1"}, "process -1 of 2"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "process 0 of 2, and 2 of 2 on"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}, "0 of 0 on"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}, "0 of 4 on"),
        ({"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"}, "process 0 of 0"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "lacks SLURM_PROCID, beside SLURM_STEP_NUM_TASKS"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS = 'many'.*unset SLURM_STEP_NUM_TASKS"),
        (SRUN | {"SLURM_NODEID": "2"}, "1 of 0 on"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": ""}, "1 of 0 on"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(environment, words, monkeypatch, capsys):
    with pytest.raises(UsageError, match=words):
        Processes._of(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["pretrain", "pictures"]) == 2
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize("environment", [{"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""}, {"RANK": "3"}])
def test_variables_that_are_empty_or_alone_mean_nothing(environment):
    assert Processes._of(environment) == Processes()


def test_tasks_of_slurms_meet_on_the_first_node_of_their_step(monkeypatch):
    more = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "123456", "SLURM_STEP_NODELIST": "node[07-08],gpu3"}
    for name, value in (SRUN | more).items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    processes._meet()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("node07", "18456")


@pytest.mark.parametrize(("port", "words"), [("abc", "invalid literal"), ("80000", "80000")])
def test_processes_that_cannot_meet_say_where_and_why(port, words, monkeypatch):
    for name, value in (TORCHRUN | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}).items():
        monkeypatch.setenv(name, value)
    message = f"process 0 with 1 more at 127.0.0.1:{port} failed: .*{words}.*unset RANK"
    with pytest.raises(UsageError, match=message), joined("cpu"):
        pass


def test_who_waits_for_others_says_so_and_can_be_stopped(monkeypatch, caplog):
    for name, value in (TORCHRUN | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)

    def meet(*_args, **_kwargs):
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        time.sleep(0.05)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    of_terms = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    monkeypatch.setattr(torch.distributed, "init_process_group", meet)
    monkeypatch.setattr(processes, "_PATIENCE", 0.0)
    try:
        with pytest.raises(KeyboardInterrupt), joined("cpu"):
            pass
    finally:
        signal.signal(signal.SIGTERM, of_terms)
    assert signal.getsignal(signal.SIGINT) is before
    assert "process 0 with 1 more at 127.0.0.1:1: still waiting" in caplog.text and "unset RANK" in caplog.text


def test_alone_all_is_known_at_once():
    here = Processes()
    assert here.gathered(3) == [3] and here.from_first(3) == 3
    assert Agreement(here, True, False).result() == (True, False)


def test_as_many_processes_as_were_asked_for():
    check_count(Processes(0, 2, 0, 2), 2, None)
    check_count(Processes(0, 6, 0, 2), "all", 3)
    with pytest.raises(UsageError, match=r"devices is 2, but 1 is running this.*torchrun"):
        check_count(Processes(), 2, None)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--devices", "0"], 2, "devices is 0"),
        (["--devices", "many"], 2, "devices is 'many': expected a number of processes, or all"),
        (["--devices", "2", "--nodes", "2"], 2, "lacks MASTER_ADDR and NODE_RANK"),
    ],
)
def test_bad_numbers_of_processes(arguments, code, words, capsys, monkeypatch):
    for name in ("MASTER_ADDR", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert main(["pretrain", "pictures", *arguments]) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("node", ["2", "-1", "first", ""])
def test_nodes_are_counted_from_0(node, capsys, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("NODE_RANK", node)
    assert main(["pretrain", "pictures", "--devices", "2", "--nodes", "2"]) == 2
    assert f"NODE_RANK is {node!r} in the environment, and nodes is 2: expected 0" in capsys.readouterr().err


def test_other_commands_want_one_process(monkeypatch, capsys):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["compare", "run", "data"]) == 2
    assert capsys.readouterr().err == "error: convspark compare runs in one process, and 2 were started\n"


def test_a_batch_is_shared_evenly():
    assert count(100, None, 1, None, 1, processes=6).batch_size == 60
    assert count(100, None, 1, None, 2, processes=4).batch_size == 64
    with pytest.raises(UsageError, match="batch_size is 24 in 2 passes, which 8 processes cannot share evenly: 6 can"):
        count(100, 24, 1, None, 2, processes=8)
