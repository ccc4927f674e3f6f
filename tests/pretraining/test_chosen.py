"""`pretrain PICTURES` and nothing else."""

import csv
import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from convspark.cli.main import main
from convspark.data import FileSource, Pixels
from convspark.data.glance import glance, sample
from convspark.errors import UsageError
from convspark.measure import choices
from convspark.model.stages import Stages
from convspark.pretraining import choose, pace, plan
from convspark.pretraining.command import pretrain
from convspark.pretraining.estimate import resolved_config
from convspark.runs.machine import Machine, machine_of
from convspark.runs.processes import Processes


@pytest.fixture(scope="module")
def fifty(tmp_path_factory):
    """A folder of 50 pictures of 40 x 33 pixels."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(50):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((40, 33), Image.Resampling.BICUBIC).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture
def short(monkeypatch):
    """Rules by which a run is over after three epochs, on a machine of two cores."""
    monkeypatch.setattr(choices, "_LEAST_STEPS", 12)
    monkeypatch.setattr(choices, "_EPOCHS_OF_FEW", 1)
    monkeypatch.setattr(plan, "machine_of", lambda device, precision: Machine("cpu", 2))


def test_pictures_alone(fifty, short, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", str(fifty)]) == 0
    capsys.readouterr()
    (run,) = (tmp_path / "runs").iterdir()
    config = yaml.safe_load((run / "config.yaml").read_text())
    chosen = {"model": "resnet18", "size": 32, "model_args": {"output_stride": 8}, "batch_size": 16, "epochs": 3}
    assert config.items() >= (chosen | {"patch_size": 8}).items()
    assert run.name.startswith("resnet18-")
    words = [
        "Chosen for these pictures",
        "--model resnet18 ",
        "--size 32 ",
        "--epochs 3 ",
        "This takes about",
        "--init ",
    ]
    places = [caplog.text.index(word) for word in words]
    assert places == sorted(places) and caplog.text.index("epoch 1/3") > places[-1]
    assert "Chosen for" in (run / "log.txt").read_text()
    with (run / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["4", "8", "12"]
    backbone = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True)
    assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, 512)
    # The settings are the run's now: what would be chosen today does not count.
    monkeypatch.setattr(choices, "_LEAST_STEPS", 4000)
    caplog.clear()
    assert main(["pretrain", "--resume", str(run)]) == 0
    assert "Chosen for" not in caplog.text and "3 epochs" in capsys.readouterr().out
    assert main(["pretrain", str(fifty), "--config", str(run / "config.yaml"), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == config


def test_print_config_has_the_choice_and_its_reasons(fifty, tmp_path):
    text = resolved_config(str(fifty), epochs=2, device="cpu")
    config = yaml.safe_load(text)
    assert (config["model"], config["size"], config["batch_size"], config["epochs"]) == ("resnet18", 32, 16, 2)
    assert "#   --model resnet18 " in text and "--epochs" not in text
    assert yaml.safe_load(resolved_config(str(fifty), model="test_resnet", device="cpu"))["size"] == 64
    open_ = yaml.safe_load(resolved_config())
    assert [open_[name] for name in ("model", "size", "epochs", "batch_size")] == ["auto", "auto", None, None]


@pytest.mark.slow
def test_all_processes_have_what_the_first_one_chose(fifty, tmp_path):
    """The others read the config of the run that it has begun, and choose nothing."""
    run = tmp_path / "run"
    flags = [*"--model test_resnet --size 64 --epochs 1 --device cpu --devices 2 --workers 0 --out".split(), str(run)]
    assert main(["pretrain", str(fifty), *flags]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["batch_size"] == 16
    assert Processes.here().count == 1


class Pictures(Dataset):
    """Of 40 x 56 pixels; drawing from the generator that the weights are drawn from."""

    def __len__(self):
        return 30

    def __getitem__(self, index):
        torch.rand(7)
        return Image.fromarray(np.full((40, 56, 3), index, np.uint8))


def test_datasets_and_networks_of_ones_own(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
    run = pretrain(
        Pictures(), model=network, epochs=1, workers=0, device="cpu", precision="fp32", out=str(tmp_path / "r")
    )
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert (config["model"], config["size"], config["patch_size"], config["batch_size"]) == (None, 40, 8, 16)


def test_the_network_is_that_of_the_weights(fifty, tmp_path):
    small = {"size": 32, "batch_size": 16, "epochs": 1, "workers": 0, "device": "cpu", "precision": "fp32"}
    before = pretrain(str(fifty), model="resnet10t", model_args={"output_stride": 16}, out=str(tmp_path / "1"), **small)
    after = pretrain(str(fifty), init=str(before.folder), out=str(tmp_path / "2"), **small)
    config = yaml.safe_load((after.folder / "config.yaml").read_text())
    assert (config["model"], config["model_args"]) == ("resnet10t", {"output_stride": 16})
    config = yaml.safe_load(resolved_config(str(fifty), init=str(before.export.folder), device="cpu"))
    assert config["model"] == "resnet10t" and config["init"] == str(before.export.folder)
    file = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(UsageError, match="add --model"):
        resolved_config(str(fifty), init=str(file), device="cpu")


def test_a_glance(tmp_path):
    sizes = [(30, 50), (40, 40), (20, 90), (10, 10), (60, 70)]
    for index, (height, width) in enumerate(sizes):
        picture = Image.new("L", (width, height))
        exif = Image.Exif()
        exif[0x0112] = 6  # turned: width and height change places
        picture.save(tmp_path / f"{index}.jpg", exif=exif)
    paths = [str(tmp_path / f"{index}.jpg") for index in range(5)]
    seen = glance(FileSource([*paths, str(tmp_path / "gone.jpg")]))
    assert seen is not None and (seen.short, seen.area, seen.are_grey) == (30.0, 1600.0, True)
    Image.new("RGB", (50, 30)).save(tmp_path / "0.jpg")
    seen = glance(FileSource(paths))
    assert seen is not None and not seen.are_grey
    assert glance(FileSource([str(tmp_path / "gone.jpg")])) is None
    np.save(tmp_path / "bands.npy", np.zeros((24, 36, 5), np.float32))
    seen = glance(FileSource([str(tmp_path / "bands.npy")], pixels=Pixels(5, stored=True)))
    assert seen is not None and seen.short == 24


def test_millions_are_sampled():
    places = sample(5_000_000, are_files=True)
    assert len(set(places)) == 256 and min(places) < 100_000 < 4_900_000 < max(places)
    assert places == sample(5_000_000, are_files=True) and sample(3, are_files=False) == [0, 1, 2]


def test_what_is_known_of_machines_and_networks():
    assert replace(machine_of(torch.device("cpu"), "bf16"), cores=1) == Machine("cpu", 1, is_bf16=True)
    # As timm's own tables have them: 1.8 and 4.1 GMAC at 224 pixels.
    for name, gmac in (("resnet18", 1.82), ("resnet50", 4.11)):
        assert choose._gmac(Stages(timm.create_model(name))) == pytest.approx(gmac, rel=0.02)
        assert choices._GMAC[name] == pytest.approx(gmac, rel=0.02)


@pytest.mark.parametrize(("seconds", "is_told"), [(7000.0, True), pytest.param(2000.0, False, marks=pytest.mark.slow)])
def test_a_pace_far_slower_than_guessed_is_told(fifty, short, tmp_path, monkeypatch, caplog, seconds, is_told):
    """By a clock that says how long a step takes; a night has ten hours, the run twelve steps, in three epochs."""
    clock = itertools.count(0.0, seconds)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    small = {"model": "test_resnet", "workers": 0, "device": "cpu", "precision": "fp32"}
    pretrain(str(fifty), out=str(tmp_path / "run"), **small)
    assert caplog.text.count("at this pace the run takes 23 h 20 min, not") == is_told
    assert caplog.text.count("--epochs 1 would take about 10 h") == is_told
