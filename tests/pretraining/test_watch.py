"""Looks at the features while a run goes on: right, kept, and without effect on what is trained."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import nn

from convspark import probe
from convspark.errors import DataError
from convspark.pretraining import watch
from convspark.pretraining.command import pretrain
from convspark.pretraining.plan import _random_stages
from convspark.pretraining.settings import PretrainSettings
from convspark.pretraining.watch import look_every
from convspark.runs import fit


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """Two classes that are hard to tell apart, so that figures are neither 0 nor 1."""
    root, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(3)
    for part, count in (("train", 20), ("val", 16)):
        for number, name in enumerate(("a", "b")):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                coarse = Image.fromarray(rng.integers(12 * number, 256, (4, 4, 3), dtype=np.uint8))
                coarse.resize((72, 72), Image.Resampling.BICUBIC).save(root / part / name / f"{index}.png")
    return root


class Dropping(nn.Module):
    """With statistics and random numbers."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3))
        self.layer2 = nn.Sequential(nn.Conv2d(8, 16, 2, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout2d(0.3))

    def forward(self, x):
        return self.layer2(self.layer1(x))


def test_a_run_is_the_same_bit_for_bit_whether_it_is_watched_or_not(pictures, labelled, small, tmp_path):
    states, losses = [], []
    for name, settings in {
        "not": {"watch_epochs": 0},
        "watched": {"watch_epochs": 1, "probe": str(labelled)},
    }.items():
        torch.manual_seed(0)
        settings = small | settings | {"model": Dropping(), "size": 32, "held_out": 0.2}
        run = pretrain(str(pictures), out=str(tmp_path / name), **settings)
        states.append(torch.load(run.folder / "checkpoints" / "last.ckpt"))
        losses.append(
            [
                (row["train_loss"], row["held_out_loss"], row["gradient_norm"])
                for row in rows(run.folder / "metrics.csv")
            ]
        )
    assert not (tmp_path / "not" / "watch.csv").exists() and len(rows(tmp_path / "watched" / "watch.csv")) == 3
    assert losses[0] == losses[1]
    assert states[0]["convspark_epoch"] == states[1]["convspark_epoch"]
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)


def test_the_network_to_compare_with_needs_no_file_of_masks(tmp_path):
    stages = _random_stages(PretrainSettings(model="test_resnet", size=64, masks=str(tmp_path / "gone.npy")))
    assert stages.strides[-1] == (32, 32)


@pytest.fixture(scope="module")
def watched(pictures, labelled, small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "watched"
    settings = small | {"held_out": 0.3, "watch_epochs": 1, "probe": str(labelled)}
    return pretrain(str(pictures), out=str(folder), **settings).folder


def test_the_figures_are_those_of_probe(watched, labelled):
    report = probe(str(watched), str(labelled), seeds=1, device="cpu", workers=0)
    looks = rows(watched / "watch.csv")
    assert [row["epoch"] for row in looks] == ["0", "1", "2"] and [row["step"] for row in looks] == ["0", "3", "6"]
    for row, name in ((looks[-1], str(watched)), (looks[0], "random:test_resnet")):
        for kind in ("knn", "linear"):
            expected = report.scores[name][kind]["top1"][0]
            assert float(row[kind]) == pytest.approx(expected, abs=1e-6) and 0.2 < expected < 1
    assert looks[-1]["knn_random"] == looks[0]["knn"] and looks[-1]["linear_random"] == looks[0]["linear"]
    assert looks[-1]["rank_random"] == looks[0]["rank"] != looks[-1]["rank"]
    assert all(1 <= float(row["rank"]) <= 8 and float(row["seconds"]) > 0 for row in looks)
    assert "watch, epoch 2: kNN " in (watched / "log.txt").read_text()


def test_a_run_that_starts_from_weights_is_measured_beside_random_ones(watched, pictures, labelled, small, tmp_path):
    settings = small | {"epochs": 1, "init": str(watched), "held_out": 0.3, "probe": str(labelled)}
    run = pretrain(str(pictures), out=str(tmp_path / "run"), **settings).folder
    first, before = rows(run / "watch.csv")[0], rows(watched / "watch.csv")
    assert [first[name] for name in ("knn", "linear", "rank")] == [
        before[-1][name] for name in ("knn", "linear", "rank")
    ]
    assert [first[f"{name}_random"] for name in ("knn", "linear")] == [before[0][name] for name in ("knn", "linear")]


def test_where_it_goes_on_it_has_the_rows_that_it_would_have_had(
    watched, pictures, labelled, small, tmp_path, stopping
):
    settings = small | {"held_out": 0.3, "watch_epochs": 1, "probe": str(labelled)}
    with stopping(4):
        pretrain(str(pictures), out=str(tmp_path / "run"), **settings)
    pretrain(resume=str(tmp_path / "run"))
    for file in ("watch.csv", "metrics.csv"):
        kept = [
            [{n: c for n, c in row.items() if "second" not in n and "wait" not in n} for row in rows(folder / file)]
            for folder in (watched, tmp_path / "run")
        ]
        assert kept[0] == kept[1]


def test_a_probe_may_come_later(small, pictures, labelled, tmp_path, stopping):
    with stopping(4):
        pretrain(str(pictures), out=str(tmp_path / "run"), **small | {"watch_epochs": 1})
    pretrain(resume=str(tmp_path / "run"), probe=str(labelled))
    looks = rows(tmp_path / "run" / "watch.csv")
    assert [bool(row["knn"]) for row in looks] == [False, False, True] and looks[-1]["knn_random"]
    assert "probe: " + str(labelled) in (tmp_path / "run" / "config.yaml").read_text()


def test_without_labels_and_without_anything_held_out(pictures, small, tmp_path):
    run = pretrain(str(pictures), out=str(tmp_path / "a"), **small | {"epochs": 1, "held_out": 0.3}).folder
    assert set(rows(run / "watch.csv")[0]) == {"epoch", "step", "rank", "dead_channels", "rank_random", "seconds"}
    run = pretrain(str(pictures), out=str(tmp_path / "b"), **small | {"epochs": 1, "held_out": 0}).folder
    assert not (run / "watch.csv").exists() and rows(run / "metrics.csv")[0]["gradient_norm"]


def test_a_probe_that_cannot_be_used_shows_before_anything_is_written(pictures, small, tmp_path):
    with pytest.raises(DataError, match="holds no folders"):
        pretrain(str(pictures), out=str(tmp_path / "run"), probe=str(pictures), **small)
    assert not (tmp_path / "run").exists()


def test_looks_cost_a_small_share():
    assert look_every(200, 1_280_000, 1500) == 4  # fifty looks
    assert look_every(200, 3000, 1500) == 10  # 1,500 of 30,000 pictures: five per cent
    assert look_every(6, 100, 5000) == 6 and look_every(1, 10, 1) == 1


def test_many_labelled_pictures_are_thinned_out(labelled, monkeypatch):
    from convspark.data import PLAIN

    monkeypatch.setattr(watch, "_MOST_TRAINED", 10)
    monkeypatch.setattr(watch, "_MOST_MEASURED", 16)
    pictures = watch.ProbePictures.of(str(labelled), PLAIN, 0)
    assert [[label for _, label in part].count(1) for part in (pictures.train, pictures.val)] == [5, 8]
    assert len(pictures.train) == 10 and len(pictures.val) == 16


def test_a_run_that_learns_nothing_is_warned_of_once(pictures, small, tmp_path):
    settings = small | {"epochs": 10, "learning_rate": 1e-9, "warmup_epochs": 0, "picture_epochs": 0, "watch_epochs": 0}
    run = pretrain(str(pictures), out=str(tmp_path / "run"), **settings | {"held_out": 0.3}).folder
    warnings = rows(run / "warnings.csv")
    assert [row["kind"] for row in warnings].count("flat") == 1
    assert warnings[[row["kind"] for row in warnings].index("flat")]["epoch"] == "6"
    text = (run / "log.txt").read_text()
    assert text.count("the training loss is flat") == 1 and "--learning-rate three times" in text


class Board(TensorBoardLogger):
    """Takes what TensorBoard would."""

    def __init__(self):
        self.figures, self.pictures = [], []

    log_dir = root_dir = save_dir = None  # type: ignore[assignment]
    name = version = "board"  # type: ignore[assignment]

    @property
    def experiment(self):  # type: ignore[override]
        return self

    def add_image(self, name, pixels, step, dataformats):
        self.pictures.append((name, pixels.shape, step, dataformats))

    def log_metrics(self, metrics, step=None):
        self.figures.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def save(self):
        pass

    def finalize(self, status):
        pass

    def log_graph(self, *args, **kwargs):
        pass


def test_a_tracker_gets_figures_and_pictures(pictures, small, tmp_path, monkeypatch):
    board = Board()
    monkeypatch.setattr(fit, "make_tracker", lambda name, folder: board)
    run = pretrain(str(pictures), out=str(tmp_path / "run"), **small | {"held_out": 0.3}).folder
    ranks = [(step, figures["watch/rank"]) for step, figures in board.figures if "watch/rank" in figures]
    assert ranks == [(int(row["step"]), pytest.approx(float(row["rank"]), abs=1e-5)) for row in rows(run / "watch.csv")]
    with Image.open(run / "pictures" / "last.png") as picture:
        assert board.pictures[-1] == ("reconstructions", (picture.height, picture.width, 3), 6, "HWC")
    assert len(board.pictures) == 2
