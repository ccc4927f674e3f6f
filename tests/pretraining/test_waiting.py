"""How much of a run is spent waiting for images: measured on a clock that the test turns."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from convspark.data import HeldOutTransform, PretrainImages, adapt
from convspark.pretraining.command import pretrain
from convspark.runs import callbacks, loading

IMAGES, BATCH = 24, 8


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(Dataset):
    """Pictures that take a known time each."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        rng = np.random.default_rng(0)
        self.pictures = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(IMAGES)]
        self.clock, self.seconds = clock, seconds

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> Image.Image:
        self.clock.now += self.seconds
        return Image.fromarray(self.pictures[index])


class Net(nn.Module):
    """A step of it takes a second; looking at held-out images takes long, and does not count."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(8, 16, 2, 2), nn.BatchNorm2d(16), nn.ReLU())
        self.clock = clock

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.now += 1.0 if self.training else 100.0
        return self.layer2(self.layer1(x))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loading, "perf_counter", clock)
    monkeypatch.setattr(callbacks, "perf_counter", clock)
    save = callbacks.Checkpoints._save

    def slow_save(*args: object) -> None:
        clock.now += 1000.0
        save(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(callbacks.Checkpoints, "_save", slow_save)
    return clock


def run(clock: Clock, seconds: float, folder: Path, minutes: float = 1e-9) -> tuple[list[dict[str, str]], str]:
    """Rows of the metrics, and the log, of a run that writes a checkpoint after each step."""
    pretrain(
        Slow(clock, seconds), model=Net(clock), size=32, decoder_width=16, batch_size=BATCH, epochs=3, held_out=2 / 26,
        mask_ratio=0.5, workers=0, device="cpu", precision="fp32", checkpoint_minutes=minutes, out=str(folder),
    )  # fmt: skip
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file)), (folder / "log.txt").read_text()


def test_the_share_is_that_of_the_seconds_that_images_take(clock: Clock, tmp_path: Path) -> None:
    rows, log = run(clock, 0.125, tmp_path / "run")  # a second a batch: half of the time
    assert [float(row["data_wait_share"]) for row in rows] == pytest.approx([0.5] * 3, abs=1e-4)
    assert [float(row["seconds"]) for row in rows] == pytest.approx([6.0] * 3)
    assert [float(row["images_per_second"]) for row in rows] == pytest.approx([4.0] * 3)
    assert log.count("50 % of the time waiting for images") == 3  # in each epoch's line
    assert log.count("try more --workers (now 0; there are") == 1  # the hint once a run


def test_a_fast_source_is_not_mentioned(clock: Clock, tmp_path: Path) -> None:
    rows, log = run(clock, 0.08 / BATCH, tmp_path / "run")
    assert [float(row["data_wait_share"]) for row in rows] == pytest.approx([0.08 / 1.08] * 3, abs=1e-4)
    assert "waiting" not in log


def test_waits_that_a_gpu_works_through_do_not_count(clock: Clock, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loading, "_device_is_busy", lambda: True)
    rows, log = run(clock, 0.125, tmp_path / "run")
    assert [float(row["data_wait_share"]) for row in rows] == [0.0] * 3 and "waiting" not in log


def test_starting_the_workers_is_no_waiting(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    start = DataLoader._get_iterator

    def slow_start(loader: DataLoader) -> object:
        clock.now += 50.0
        return start(loader)

    monkeypatch.setattr(DataLoader, "_get_iterator", slow_start)
    dataset = PretrainImages(adapt(Slow(clock, 0.0)), HeldOutTransform(size=32))
    loader = loading.TrainLoader(dataset, BATCH, 1, 0, workers=1, pin_memory=False)
    waits: list[float] = []
    for _ in range(2):
        for _ in loader:
            waits.append(loader.waited)
            clock.now += 5.0
    assert waits == [0.0] * 6 and clock.now == 80.0
    loader._iterator._shutdown_workers()  # type: ignore[union-attr]
