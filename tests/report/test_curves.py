"""Curves: what is read from metrics.csv, and that a picture comes of it."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convspark.errors import DataError
from convspark.report.curves import _places, loss_curves
from convspark.report.metrics import read_metrics

HEADER = "epoch,step,train_loss,held_out_loss,learning_rate,weight_decay,images_per_second,data_wait_share,seconds\n"


def test_picture(tmp_path: Path) -> None:
    lines = [
        f"{e},{e * 10},{1 / (e + 1)},{0.9 / (e + 1) if e % 2 else ''},{0.001 * e},0.05,100,0.01,{e}\n" for e in range(9)
    ]
    (tmp_path / "metrics.csv").write_text(HEADER + "".join(lines))
    loss_curves(tmp_path / "metrics.csv", tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (1080, 780)
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((0x4C, 0x78, 0xA8), (0xE4, 0x57, 0x56), (0x72, 0x67, 0x5B)):
        assert (pixels == colour).all(1).sum() > 500, f"no curve in {colour}"
    assert "matplotlib.pyplot" not in sys.modules or sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_lines_half_written_repeated_or_without_a_value(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(
        HEADER + "0,10,0.9,,1e-3,,,,\n1,20,0.8,0.7,2e-3,,,,\n2,30,nan,,,,,,\n1,20,0.75,0.65,2e-3,,,,\n3,40,0.1"
    )
    metrics = read_metrics(path)
    assert metrics["step"] == [10, 20, 30] and metrics["epoch"] == [0, 1, 2]
    assert metrics["train_loss"][:2] == [0.9, 0.75] and math.isnan(metrics["train_loss"][2])
    assert math.isnan(metrics["held_out_loss"][0]) and metrics["held_out_loss"][1] == 0.65
    loss_curves(path, tmp_path / "loss.png")


def test_one_line_and_several_an_epoch(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(HEADER + "0,0,1.0,,0,,,,\n")
    loss_curves(path, tmp_path / "loss.png")
    assert _places([0, 1, 2], [5, 10, 15]) == [0, 1, 2]
    assert _places([0, 0, 1, 1], [5, 10, 15, 20]) == [0.25, 0.5, 0.75, 1.0]


def test_unusable(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with pytest.raises(DataError, match=r"cannot be read .*run's metrics.csv"):
        loss_curves(path, tmp_path / "loss.png")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"lacks the columns \['epoch', 'step', 'train_loss'\]"):
        loss_curves(path, tmp_path / "loss.png")
    for text in ("", HEADER, HEADER + "0,1,0.5"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"lacks|no complete line"):
            loss_curves(path, tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()
