"""Pictures of several bands, from the files to the tasks: read in the same way everywhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from torch.utils.data import TensorDataset

from convspark.checkpoints.export import export
from convspark.checkpoints.origin import find_weights
from convspark.cli.main import main
from convspark.data import Pixels
from convspark.errors import UsageError
from convspark.pretraining.command import pretrain
from convspark.pretraining.plan import make_plan
from convspark.pretraining.reconstruct import reconstruct
from convspark.pretraining.settings import PretrainSettings
from convspark.runs.run import Run
from convspark.tasks.features.embed import embed
from convspark.tasks.features.probe import probe
from convspark.tasks.segmentation.command import segment

BANDS = [4, 1, 2, 5]  # of five
SIDE = 64


def arrays() -> dict[str, np.ndarray]:
    """Ten smooth (64, 64, 5) int16 of two kinds, with values that are missing."""
    rng = np.random.default_rng(0)
    files: dict[str, np.ndarray] = {}
    for i in range(10):
        coarse = rng.normal(0, 1, (5, 4, 4))
        fine = [np.asarray(Image.fromarray(band).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for band in coarse]
        array = np.stack(fine, 2) * (300, 20, 100, 1000, 50) + (3000, 100 + 100 * (i % 2), 0, 7000, 20)
        files[f"{'ab'[i % 2]}/{i}.npy"] = array.round().astype(np.int16)
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bands")
    for name, array in arrays().items():
        (root / name).parent.mkdir(exist_ok=True)
        np.save(root / name, array)
    return root


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    flags = "--channels 4 --bands 4,1,2,5 --stats auto --show 2,3,4 --model test_resnet --size 64 --decoder-width 32 "
    flags += "--batch-size 4 --epochs 1 --held-out 0.1 --workers 0 --device cpu --precision fp32"
    assert main(["pretrain", str(folder), "--out", str(out), *flags.split()]) == 0
    return out


def test_the_run_keeps_what_was_measured(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    statistics = json.loads((run / "statistics.json").read_text())
    trained = [np.load(path) for path in (run / "train_files.txt").read_text().splitlines()]
    every = np.stack(trained).reshape(-1, 5)[:, [band - 1 for band in BANDS]].astype(float)
    low, high = np.quantile(every, (0.001, 0.999), axis=0)
    scaled = ((every - low) / (high - low)).clip(0, 1)
    for name, expected in {"low": low, "high": high, "mean": scaled.mean(0), "std": scaled.std(0)}.items():
        np.testing.assert_allclose(config[name], expected, rtol=1e-6)
        assert config[name] == statistics[name]
    assert config["bands"] == BANDS and statistics["files"] == 9
    card = (run / "export" / "README.md").read_text()
    assert "bands 4, 1, 2, 5 of each file" in card and f"{low[0]:g}, {low[1]:g}" in card
    pixels = Pixels(4, tuple(BANDS), None, tuple(config["low"]), tuple(config["high"]))
    assert find_weights(str(run)).pixels == find_weights(str(run / "export")).pixels == pixels
    assert find_weights(f"random:{run}").pixels == pixels and find_weights(f"random:{run}").is_random


def test_a_checkpoint_alone_says_how_its_network_is_built_and_fed(run: Path, tmp_path: Path) -> None:
    alone = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "mine.ckpt")
    ours, runs = find_weights(str(alone)), find_weights(str(run))
    assert ours.as_record() == runs.as_record()
    state, expected = ours.build().state_dict(), runs.build().state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize("weights", ["", "export"])
def test_an_export_once_more_reads_files_as_the_first_does(run: Path, weights: str, tmp_path: Path) -> None:
    again = export(str(run / weights), out=str(tmp_path / "again")).file
    assert find_weights(again).pixels == find_weights(str(run)).pixels and not find_weights(again).pixels.is_plain
    assert "bands 4, 1, 2, 5 of each file" in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize("weights", ["", "export"])
def test_features_are_those_of_the_values_by_hand(run: Path, folder: Path, weights: str, tmp_path: Path) -> None:
    """Of a network that plain timm loads, on images that NumPy makes of the arrays."""
    result = embed(str(run / weights), str(folder), out=str(tmp_path / "f.npz"), device="cpu", workers=0)
    assert result.pictures == 10
    c = yaml.safe_load((run / "config.yaml").read_text())
    low, high, mean, std = (np.array(c[name]) for name in ("low", "high", "mean", "std"))
    images = np.stack([array[..., [band - 1 for band in BANDS]] for _, array in sorted(arrays().items())]).astype(float)
    images = (((images - low) / (high - low)).clip(0, 1) - mean) / std
    network = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).eval()
    with torch.no_grad():
        expected = network.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2)).float()).mean((2, 3))
    np.testing.assert_allclose(np.load(tmp_path / "f.npz")["features"], expected, rtol=1e-3, atol=1e-5)


def test_a_run_goes_on_with_the_same_values(run: Path, folder: Path, tmp_path: Path) -> None:
    """Nothing is measured again; a run of the same config elsewhere has the same losses."""
    before = (run / "config.yaml").read_text()
    pretrain(resume=str(run))
    assert (run / "config.yaml").read_text() == before
    out = tmp_path / "again"
    assert main(["pretrain", "--config", str(run / "config.yaml"), "--out", str(out)]) == 0
    rows = [(place / "metrics.csv").read_text().splitlines()[-1].split(",") for place in (run, out)]
    assert rows[0][:3] == rows[1][:3]
    assert not (out / "statistics.json").exists()


def test_tasks_and_pictures(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = probe(str(run), str(folder), seeds=1, device="cpu", workers=0)
    assert set(report.scores) == {str(run), "random:test_resnet"} and report.pictures == 2
    grid = reconstruct(str(run), [str(folder)], output=str(tmp_path / "a.png"))
    other = reconstruct(str(run), [str(folder / "a")], output=str(tmp_path / "b.png"), show=[1])
    with Image.open(grid) as coloured, Image.open(other) as grey:
        pixels = np.asarray(grey).astype(int)
        assert np.ptp(np.asarray(coloured).astype(int), axis=2).max() > 50
        assert np.ptp(pixels[40:], axis=2).max() < 12 and pixels.std() > 20
    with pytest.raises(UsageError, match=r"show is \[5\]: expected three channels or one, counted from 1 to 4"):
        reconstruct(str(run), [str(folder)], output=str(tmp_path / "c.png"), show=[5])
    assert main(["detect", str(run), "--train", "x.json", "--val", "x.json", "--images", str(folder)]) == 2
    assert "a network of images of 4 channels" in capsys.readouterr().err


def test_segmentation(run: Path, folder: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    for name, array in arrays().items():
        (masks / name).parent.mkdir(parents=True, exist_ok=True)
        mask = np.where(array[..., 3] > 7000, 255, 0).astype(np.uint8)  # the first channel tells it
        Image.fromarray(mask).save((masks / name).with_suffix(".png"))
    out = str(tmp_path / "run")
    options: dict[str, Any] = {"device": "cpu", "workers": 0, "precision": "fp32"}
    result = segment(
        str(run), images=str(folder), masks=str(masks), size=64, epochs=12, batch_size=4, out=out, **options
    )
    assert result.pictures == 2 and result.iou > 0.6
    assert (tmp_path / "run" / "pictures" / "predictions.png").is_file()


def test_finetuned_classifiers_read_alike(run: Path, folder: Path, tmp_path: Path) -> None:
    flags = f"finetune {run} {folder} --epochs 1 --batch-size 4 --out {tmp_path / 'run'} --device cpu --workers 0"
    assert main(flags.split()) == 0
    assert find_weights(str(tmp_path / "run")).pixels == find_weights(str(run)).pixels
    assert "bands 4, 1, 2, 5" in (tmp_path / "run" / "export" / "README.md").read_text()


def test_what_cannot_be_asked_for(folder: Path) -> None:
    for options, words in (
        ({"channels": 2, "bands": [1, 2, 3]}, "add --channels 3"),
        ({"channels": 5, "show": [6]}, "show is"),
        ({"channels": 5, "low": [1.0], "high": [0.0]}, "expected low below high"),
        ({"channels": 5}, "measure them by --stats auto"),
        ({"channels": 5, "stats": "auto", "std": [1.0] * 5}, "mean and std belong together"),
    ):
        with pytest.raises(UsageError, match=words):
            pretrain(str(folder), model="test_resnet", size=64, device="cpu", **options)
    images = TensorDataset(torch.zeros(4, 3, 64, 64))
    with pytest.raises(UsageError, match="stats: only for images in files"):
        pretrain(images, model="test_resnet", size=64, device="cpu", stats="auto")


def test_what_is_passed_is_not_measured_and_the_rest_is(folder: Path) -> None:
    flags: dict[str, Any] = {"model": "test_resnet", "size": 64, "epochs": 1, "channels": 5, "stats": "auto"}
    mean, std = [0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.7, 0.8, 0.9, 1.0]
    plan = make_plan(Run(PretrainSettings(str(folder), mean=mean, std=std, held_out=0, **flags)))
    assert (plan.settings.mean, plan.settings.std) == (mean, std)
    values = np.stack(list(arrays().values())).reshape(-1, 5)
    low, high = np.quantile(values, (0.001, 0.999), axis=0)
    assert plan.settings.low is not None and plan.settings.high is not None
    np.testing.assert_allclose([plan.settings.low, plan.settings.high], [low, high], rtol=1e-6)


def test_arrays_of_bytes(tmp_path: Path) -> None:
    """`decode` does not read them."""
    rng = np.random.default_rng(0)
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", rng.integers(0, 256, (64, 64, 3), np.uint8))
    plan = make_plan(Run(PretrainSettings(str(tmp_path), model="test_resnet", size=64, epochs=1, stats="auto")))
    images = plan.module().images_of(plan.train_images[0][None])
    assert plan.images.bad == [] and abs(float(images.mean())) < 0.1


class FourBands(torch.nn.Module):
    """Takes four channels, which nothing but the network itself tells."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(4, 8, 4, 4)
        self.second = torch.nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()).relu()


def test_channels_to_show_are_those_of_the_network(tmp_path: Path) -> None:
    images = TensorDataset(torch.rand(4, 4, 64, 64))
    flags: dict[str, Any] = {"size": 64, "epochs": 1, "mean": [0.5] * 4, "std": [0.3] * 4}
    flags["held_out"] = torch.rand(3, 4, 64, 64)  # a tensor is a Dataset, too; its truth value is an error
    plan = make_plan(Run(PretrainSettings(images, model=FourBands(), show=[4], **flags)))
    assert "3 held out" in "".join(plan.describe())
    with pytest.raises(UsageError, match=r"show is \[5\].*from 1 to 4"):
        make_plan(Run(PretrainSettings(images, model=FourBands(), show=[5], **flags)))
