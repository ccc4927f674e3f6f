"""Runs that are killed at random moments and resumed end as the same runs undisturbed, equal bit for bit.

Prints what was tried and how much of it was identical:

    python -m pytest -m slow tests/test_kills.py            # KILLS=10: so many of each kind; SEED=1: other moments;
                                                            # WAYS="2 processes": this column alone
"""

import csv
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled_pictures import write_pictures
from PIL import Image
from safetensors.torch import load_file

from convspark.cli.main import main

KILLS, SEED = int(os.environ.get("KILLS", "5")), int(os.environ.get("SEED", "0"))

WAYS = {
    "0 workers": ["--workers", "0"],
    "2 workers": ["--workers", "2"],
    "2 processes": ["--workers", "0", "--devices", "2"],
}
"""Columns of the table: how a run is carried out. Another way is another line here."""

WAYS = {way: flags for way, flags in WAYS.items() if way in os.environ.get("WAYS", way).split(",")}
ALONE = ("compare",)  # is carried out by one process

COMMANDS = ("pretrain", "finetune", "detect", "compare")
TIMES = ("images_per_second", "data_wait_share", "seconds")
OFTEN = "0.002"  # minutes between checkpoints
# Imported here, so that the processes that are killed need not: they are forks of this one.
HEAVY = (
    "convspark.pretraining.train",
    "convspark.tasks.classification.train",
    "convspark.tasks.detection.train",
    "convspark.tasks.comparison.command",
    "convspark.report.comparison",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_pictures(root / "labelled", 8)
    rng = np.random.default_rng(0)
    (root / "scenes").mkdir()
    images, things = [], []
    for i in range(8):
        pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        pixels[6:20, 8:22] = (230, 200, 40)
        Image.fromarray(pixels).save(root / "scenes" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png"})
        things.append({"id": i, "image_id": i, "category_id": 1, "bbox": [8, 6, 14, 14]})
    content = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "thing"}]}
    (root / "scenes.json").write_text(json.dumps(content))
    return root


def arguments(command: str, data: Path) -> list[str]:
    """Arguments of a run of a few seconds."""
    machine = f"--device cpu --precision fp32 --checkpoint-minutes {OFTEN}"
    images, scenes = str(data / "labelled"), str(data / "scenes.json")
    pretraining = "--model test_resnet --size 64 --batch-size 6 --epochs 4 --held-out 0.1 --decoder-width 32"
    settings = f"{{checkpoint_minutes: {OFTEN}, precision: fp32}}"
    comparison = "--seeds 1 --fractions 0.5,1 --epochs 2 --size 32 --batch-size 4 --against random --device cpu"
    detection = [
        "--train",
        scenes,
        "--val",
        scenes,
        "--images",
        str(data / "scenes"),
        *"--size 32 --batch-size 2 --epochs 2".split(),
    ]
    return {
        "pretrain": [images, *pretraining.split(), *machine.split()],
        "finetune": ["random:test_resnet", images, *"--size 32 --batch-size 4 --epochs 4".split(), *machine.split()],
        "detect": ["random:test_resnet", *detection, *machine.split()],
        "compare": ["random:test_resnet", images, *comparison.split(), "--settings", settings],
    }[command]


def carried_out(line: list[str], kill_after: float | None = None) -> tuple[int | None, float]:
    """Exit code and seconds of a command in a process of its own; killed after so many seconds."""

    def run() -> None:
        os.setsid()
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        torch.set_num_threads(1)
        code = 1
        try:
            code = main(line)
        finally:
            os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=run)
    started = time.monotonic()
    process.start()
    assert process.pid is not None
    process.join(kill_after if kill_after is not None else 600)
    if process.is_alive():
        # One of those that carry it out together; or it alone: its loading processes are left to themselves.
        together = started_by(process.pid) if "--devices" in line else []
        os.kill(random.choice(together) if together else process.pid, signal.SIGKILL)
        process.join()
    code = process.exitcode
    return (-signal.SIGKILL if code == 128 + signal.SIGKILL else code), time.monotonic() - started


def started_by(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All that a run leaves: weights, averages, the optimiser's state."""
    values: dict[str, torch.Tensor] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        values |= {f"{file.relative_to(folder)} {name}": value for name, value in load_file(file).items()}
    for file in sorted([*folder.rglob("last.ckpt"), *folder.rglob("detector.pth")]):
        left = [(str(file.relative_to(folder)), torch.load(file, weights_only=True))]
        while left:
            name, value = left.pop()
            if isinstance(value, torch.Tensor):
                values[name] = value
            elif isinstance(value, dict):
                left += [(f"{name} {key}", inner) for key, inner in value.items() if key not in ("loops", "callbacks")]
            elif isinstance(value, list):
                left += [(f"{name} {key}", inner) for key, inner in enumerate(value)]
    return values


def figures(folder: Path) -> dict[str, object]:
    """All that a run has measured, without what depends on the clock."""
    contents: dict[str, object] = {}
    for file in sorted(folder.rglob("metrics.csv")):
        with file.open() as opened:
            rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(opened)]
        contents[str(file.relative_to(folder))] = rows
    for file in sorted([*folder.rglob("results.json"), *folder.rglob("compare.json")]):
        content = json.loads(file.read_text())
        contents[str(file.relative_to(folder))] = {k: v for k, v in content.items() if k not in ("seconds", "folder")}
    return contents


def differences(ours: Path, theirs: Path) -> list[str]:
    faults = []
    for read in (figures, tensors):
        one, other = read(ours), read(theirs)
        assert one, f"{ours} holds nothing to compare"
        faults += [f"{name} is there once only" for name in one.keys() ^ other.keys()]
        for name in one.keys() & other.keys():
            a, b = one[name], other[name]
            same = a.equal(b) if isinstance(a, torch.Tensor) else a == b
            faults += [] if same else [f"{name} differs"]
    return faults


def left_over(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*-part*")]


def killed_once(command: str, line: list[str], out: Path, moment: float) -> tuple[bool, str]:
    """Kill a run at a moment, and go on with it to its end; whether it was killed, and what went wrong."""
    start = [command, *line, "--out", str(out)]
    code, _ = carried_out(start, moment)
    if code != -signal.SIGKILL:
        return False, ""
    config = out / ("compare.yaml" if command == "compare" else "config.yaml")
    together = ["--devices", "2"] if "--devices" in line else []  # with another number, rounding differs
    again = [command, "--resume", str(out), *together] if config.is_file() else start
    code, _ = carried_out(again)
    return True, "" if code == 0 else f"`{' '.join(again[:2])}` ended with {code}"


@pytest.mark.slow
def test_killed_at_random_moments_runs_end_as_undisturbed_ones(data, tmp_path, capsys):
    for module in HEAVY:
        __import__(module)
    draw = random.Random(SEED)
    table: dict[str, dict[str, str]] = {}
    wrong: list[str] = []
    for command in COMMANDS:
        for way, flags in WAYS.items():
            if "--devices" in flags and command in ALONE:
                continue
            line = [*arguments(command, data), *flags]
            whole = tmp_path / f"{command} {way}"
            code, seconds = carried_out([command, *line, "--out", str(whole)])
            assert code == 0
            identical, moments = 0, []
            for number in range(KILLS):
                was_killed, tries = False, 0
                while not was_killed and tries < 10:  # a run that ended sooner was not killed
                    tries += 1
                    out = tmp_path / f"{command} {way} {number}-{tries}"
                    moment = draw.uniform(0.02, 0.98) * seconds
                    was_killed, failed = killed_once(command, line, out, moment)
                assert was_killed, f"{command} always ended before it was killed"
                moments.append(moment)
                faults = [failed] if failed else [*differences(whole, out), *left_over(out)]
                identical += not faults
                wrong += [f"{out.name}, killed after {moment:.2f} of {seconds:.2f} s: {fault}" for fault in faults[:3]]
            table.setdefault(command, {})[way] = f"{identical} of {KILLS}"
            with capsys.disabled():
                shown = ", ".join(f"{moment:.2f}" for moment in moments)
                print(
                    f"\n{command}, {way}: {identical} of {KILLS} identical; {seconds:.2f} s, killed at {shown}", end=""
                )
    with capsys.disabled():
        print(f"\n\n{'killed, gone on, identical':28}" + "".join(f"{way:>14}" for way in WAYS))
        for command, cells in table.items():
            print(f"{command:28}" + "".join(f"{cells.get(way, '-'):>14}" for way in WAYS))
        print(*wrong, sep="\n")
    assert not wrong
