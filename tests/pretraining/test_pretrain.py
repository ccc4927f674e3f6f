"""Whole runs, small: what they leave behind, how they go on, how they fail."""

import csv
import json
import signal
import tempfile
from dataclasses import fields
from typing import ClassVar

import numpy as np
import pytest
import timm
import torch
import yaml
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset
from torch.utils.data._utils import signal_handling

from convspark.checkpoints import to_timm
from convspark.checkpoints.whole import load_whole
from convspark.errors import DataError, DivergedError, UsageError
from convspark.pretraining import compile as compiling
from convspark.pretraining import plan
from convspark.pretraining.command import pretrain
from convspark.pretraining.estimate import estimate, resolved_config
from convspark.pretraining.settings import PretrainSettings
from convspark.runs import fit


class Pictures(Dataset):
    """Random pictures; a signal (Ctrl-C) comes while the `stop_at`-th is read."""

    def __init__(self, count: int = 26, stop_at: int | None = None, number: int = signal.SIGINT):
        rng = np.random.default_rng(1)
        self.pictures = [rng.integers(0, 256, (70, 90, 3), dtype=np.uint8) for _ in range(count)]
        self.reads = 0
        self.stop_at = stop_at
        self.number = number

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        self.reads += 1
        if self.reads == self.stop_at:
            signal.raise_signal(self.number)
        return Image.fromarray(self.pictures[index]), 0


class Broken(nn.Module):
    """Not a number, as soon as it is trained."""

    def forward(self, x):
        return x * float("nan") if self.training else x


class OwnNet(nn.Module):
    """A network that timm does not know."""

    def __init__(self, broken: bool = False):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU())
        middle = Broken() if broken else nn.ReLU()
        self.layer2 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), middle)
        self.layer3 = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.head(x.mean((2, 3)))


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "export" / "model.safetensors")


def metrics(folder) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(pictures, small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return pretrain(str(pictures), out=str(folder), **small)


def test_leaves_a_whole_run_folder(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert names - {"warnings.csv"} == {  # pictures this small are waited for on some machines
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "watch.csv",
        "report.html",
        "log.txt",
        "train_files.txt",
        "held_out_files.txt",
        "file_sizes.txt",
        "checkpoints",
        "pictures",
        "export",
    }
    assert [path.name for path in (finished.folder / "checkpoints").iterdir()] == ["last.ckpt"]
    assert {"epoch_1.png", "epoch_2.png", "last.png", "curves.png"} == {
        path.name for path in (finished.folder / "pictures").iterdir()
    }
    assert "loaded again with timm and equal" in (finished.folder / "log.txt").read_text()
    train = (finished.folder / "train_files.txt").read_text().split()
    held_out = (finished.folder / "held_out_files.txt").read_text().split()
    assert len(train) == 25 and len(held_out) == 1 and not set(train) & set(held_out)


def test_metrics_have_a_row_an_epoch(finished):
    rows = metrics(finished.folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["4", "8"]  # 25 images in batches of 8, the last filled up
    assert float(rows[-1]["held_out_loss"]) == pytest.approx(finished.held_out_loss)
    assert float(rows[-1]["weight_decay"]) == pytest.approx(0.2)


def test_export_loads_in_plain_timm(finished):
    model = timm.create_model(f"local-dir:{finished.export.folder}", pretrained=True, num_classes=5)
    assert torch.equal(model.conv1[0].weight, weights(finished.folder)["conv1.0.weight"])
    trained = load_whole(finished.folder).model
    assert torch.equal(model.conv1[0].weight, trained.backbone.conv1[0].weight)
    fresh = timm.create_model("test_resnet", num_classes=0)
    assert not torch.equal(model.conv1[0].weight, fresh.conv1[0].weight)


def test_config_is_resolved_and_gives_the_same_run_again(finished, tmp_path):
    config = yaml.safe_load((finished.folder / "config.yaml").read_text())
    assert config.pop("kind") == "pretrain"
    assert set(config) == {field.name for field in fields(PretrainSettings)} - {"out", "resume", "devices", "nodes"}
    unresolved = {name for name, value in config.items() if value is None}
    optional = {"init", "model_args", "base_learning_rate", "stages", "keep_epochs", "drop_path"}
    optional |= {"device_batch_size", "levels", "shards_per_epoch", "cuda_graph"}
    of_bands = {"bands", "band_axis", "stats", "low", "high", "show", "probe"}
    assert unresolved <= optional | of_bands
    images = config.pop("images")
    again = pretrain(images, out=str(tmp_path / "again"), **config)
    assert again.train_loss == finished.train_loss
    ours, theirs = weights(finished.folder), weights(again.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_number_of_workers_changes_nothing(finished, pictures, small, tmp_path):
    again = pretrain(str(pictures), out=str(tmp_path / "again"), **{**small, "workers": 2})
    assert again.train_loss == finished.train_loss


def test_after_a_run_processes_that_die_are_still_heard_of(pictures, small, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    try:
        pretrain(str(pictures), out=str(tmp_path / "run"), **{**small, "workers": 1, "epochs": 1})
        assert callable(signal.getsignal(signal.SIGCHLD)) and signal_handling._SIGCHLD_handler_set
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_complete_run_goes_on_to_nothing(finished):
    before = weights(finished.folder)
    again = pretrain(resume=str(finished.folder))
    assert (again.steps, again.train_loss) == (finished.steps, finished.train_loss)
    assert all(torch.equal(before[name], value) for name, value in weights(finished.folder).items())


STOPPED = {"model": "test_convnext", "drop_path": 0.2, "epochs": 4, "picture_epochs": 0}


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """A run that nothing stops."""
    return pretrain(Pictures(), out=str(tmp_path_factory.mktemp("runs") / "whole"), **small | STOPPED)


@pytest.mark.parametrize(
    ("stop_at", "step"),
    [
        pytest.param(20, 2, id="first epoch", marks=pytest.mark.slow),
        pytest.param(84, 10, id="third epoch"),
        pytest.param(99, 12, id="an epoch's end", marks=pytest.mark.slow),
    ],
)
def test_stopped_by_ctrl_c_it_goes_on_to_the_very_same_weights(whole, small, tmp_path, stop_at, step):
    small = small | STOPPED
    with pytest.raises(KeyboardInterrupt, match=f"after step {step} of 16.*\n.*convspark.pretrain\\(images, resume="):
        pretrain(Pictures(stop_at=stop_at), out=str(tmp_path / "part"), **small)
    assert (tmp_path / "part" / "checkpoints" / "last.ckpt").is_file()
    assert not (tmp_path / "part" / "export").exists()
    assert json.loads((tmp_path / "part" / "ended.json").read_text())["state"] == "stopped"
    resumed = pretrain(Pictures(), resume=str(tmp_path / "part"))
    assert not (tmp_path / "part" / "ended.json").exists()
    assert resumed.steps == whole.steps == 16
    ours, theirs = weights(whole.folder), weights(resumed.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    kept = ("epoch", "step", "train_loss", "held_out_loss", "learning_rate")
    rows = [[[row[name] for name in kept] for row in metrics(r.folder)] for r in (whole, resumed)]
    assert rows[0] == rows[1]


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(small, tmp_path, caplog):
    small = small | {"epochs": 3, "picture_epochs": 0, "checkpoint_minutes": 1e-6}  # after each step
    whole = pretrain(Pictures(), out=str(tmp_path / "whole"), **small)
    with pytest.raises(KeyboardInterrupt):
        pretrain(Pictures(stop_at=60), out=str(tmp_path / "part"), **small)
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    last.write_bytes(data)
    resumed = pretrain(Pictures(), resume=str(tmp_path / "part"))
    assert "last.ckpt is damaged" in caplog.text
    ours, theirs = weights(whole.folder), weights(resumed.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.train_loss == whole.train_loss


@pytest.mark.parametrize("files", [False, True], ids=["dataset", "files"])
def test_datasets_are_passed_again_where_a_run_goes_on(pictures, small, tmp_path, files):
    small = small | {"epochs": 1, "picture_epochs": 0, "batch_size": 13}
    images, kept = str(pictures) if files else Pictures(), Pictures(3)
    whole = pretrain(images, held_out=kept, out=str(tmp_path / "run"), **small)
    for name in ("checkpoints/last.ckpt", "metrics.csv"):
        (whole.folder / name).unlink()
    with pytest.raises(UsageError, match="held out a Dataset: pass it again"):
        pretrain(None if files else images, resume=str(whole.folder))
    again = pretrain(None if files else images, held_out=kept, resume=str(whole.folder))
    assert again.held_out_loss == whole.held_out_loss is not None


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_signals_leave_a_checkpoint_and_the_handlers_as_they_were(small, tmp_path, number):
    before = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt, match="Stopped after step"):
        pretrain(Pictures(stop_at=9, number=number), out=str(tmp_path / "run"), **small)
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == before
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_no_checkpoint_takes_the_way_through_the_folder_for_temporary_files(pictures, small, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    run = pretrain(pictures, out=tmp_path / "run", **small)
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["last.ckpt"]


def test_resuming_takes_no_other_settings(finished):
    with pytest.raises(UsageError, match="leave out --epochs, --learning-rate"):
        pretrain(resume=str(finished.folder), epochs=3, learning_rate=1.0)


def test_accumulating_gives_steps_of_the_whole_batch(pictures, small, tmp_path):
    small = small | {"accumulate": 4, "epochs": 1, "optimizer": "adamw"}
    result = pretrain(str(pictures), out=str(tmp_path / "run"), **small)
    assert result.steps == 4


def test_own_network_and_its_export(small, tmp_path):
    small = small | {"model": OwnNet(), "epochs": 1, "size": 32}
    result = pretrain(Pictures(), out=str(tmp_path / "run"), **small)
    assert result.export.architecture is None
    assert set(result.export.untrained) == {"head.weight", "head.bias"}
    written = weights(result.folder)
    assert all(torch.equal(written[name], value) for name, value in small["model"].state_dict().items())
    with pytest.raises(UsageError, match="model="):
        pretrain(Pictures(), resume=str(result.folder))


def test_an_export_that_would_fail_shows_before_anything_is_written(small, tmp_path, monkeypatch):
    monkeypatch.setattr(to_timm, "_features", lambda model, images: [torch.rand(3)])
    with pytest.raises(UsageError, match="weights could not be exported at the end of the run"):
        pretrain(Pictures(), **small, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_channels_are_those_of_the_images_whatever_the_network_begins_with(small, tmp_path):
    network = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
    result = pretrain(Pictures(), **small | {"model": network}, out=str(tmp_path / "run"))
    assert set(weights(result.folder)) == set(network.state_dict())


def test_a_loss_that_is_no_number_ends_the_run(small, tmp_path):
    small = small | {"model": OwnNet(broken=True), "size": 32}
    with pytest.raises(DivergedError, match=r"step 1 of 8.*--learning-rate") as error:
        pretrain(Pictures(), out=str(tmp_path / "run"), **small)
    assert error.value.exit_code == 4
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_starts_from_a_run(finished, pictures, small, tmp_path):
    small = small | {"epochs": 1, "learning_rate": 1e-12, "init": str(finished.folder)}
    result = pretrain(str(pictures), out=str(tmp_path / "run"), **small)
    before, after = weights(finished.folder), weights(result.folder)
    torch.testing.assert_close(after["conv1.0.weight"], before["conv1.0.weight"], rtol=1e-6, atol=1e-8)
    assert "tensors loaded from" in (result.folder / "log.txt").read_text()


def test_held_out_images_of_their_own(pictures, small, tmp_path):
    result = pretrain(Pictures(), held_out=str(pictures), out=str(tmp_path / "run"), **{**small, "epochs": 1})
    assert result.held_out_loss is not None
    assert len((result.folder / "held_out_files.txt").read_text().split()) == 26


def test_a_tracker_gets_the_rows_of_the_metrics(small, tmp_path, monkeypatch):
    class Tracker(DummyLogger):
        rows: ClassVar[list] = []

        def log_metrics(self, metrics, step=None):
            self.rows.append((step, metrics))

    monkeypatch.setattr(fit, "make_tracker", lambda name, folder: Tracker())
    result = pretrain(Pictures(), out=str(tmp_path / "run"), **small)
    rows = [(step, figures["train_loss"]) for step, figures in Tracker.rows if "train_loss" in figures]
    assert [step for step, _ in rows] == [4, 8] and rows[-1][1] == pytest.approx(result.train_loss)


def test_arguments_of_the_network_are_kept(pictures, small, tmp_path):
    small = small | {"model": "resnet10t", "model_args": {"output_stride": 16}, "size": 32, "epochs": 1}
    result = pretrain(str(pictures), out=str(tmp_path / "run"), **small)
    assert load_whole(result.folder).model.patch_size == (16, 16)
    loaded = timm.create_model(f"local-dir:{result.export.folder}", pretrained=True)
    assert loaded(torch.zeros(1, 3, 64, 64)).shape == (1, 512)
    assert loaded.forward_features(torch.zeros(1, 3, 64, 64)).shape == (1, 512, 4, 4)


def test_nothing_held_out(small, tmp_path):
    result = pretrain(Pictures(), held_out=0, out=str(tmp_path / "run"), **{**small, "epochs": 1})
    assert result.held_out_loss is None and result.picture is not None


def test_held_out_pictures_that_others_stand_in_for_are_listed(small, tmp_path):
    class Damaged(Pictures):
        def __getitem__(self, index):
            if index == 1:
                raise OSError("cut off")
            return super().__getitem__(index)

    result = pretrain(Pictures(8), held_out=Damaged(3), out=str(tmp_path / "run"), **{**small, "epochs": 1})
    assert (result.folder / "bad_files.txt").read_text() == "item 1\tOSError: cut off\n"


def test_bad_files_are_skipped_counted_and_listed(pictures, small, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in pictures.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "empty.png").write_bytes(b"")
    result = pretrain(str(folder), out=str(tmp_path / "run"), **{**small, "epochs": 1})
    assert "empty.png" in (result.folder / "bad_files.txt").read_text()
    assert "1 unreadable" in (result.folder / "log.txt").read_text()
    (folder / "text.png").write_text("not a picture")
    with pytest.raises(DataError, match="more than 5"):
        pretrain(str(folder), out=str(tmp_path / "other"), **small)
    assert not (tmp_path / "other").exists()


def test_estimate_writes_nothing_and_counts(pictures, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cost = estimate(str(pictures), **small)
    assert cost.steps == 8 and cost.step_seconds > 0 and cost.memory_bytes > 2**20
    assert cost.total_seconds >= 8 * cost.step_seconds
    assert "patches of 32: 2 of 4 visible" in str(cost)
    json.dumps(cost.as_dict())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "steps", "tolerance"),
    [
        # From the second step on, a ReLU's sign may hang on a rounding, after which LAMB takes other steps: with the
        # lean decoder it does here, with the paper's it does not.
        pytest.param({"batch_size": 25, "epochs": 1}, 1, {"rtol": 1e-4, "atol": 1e-5}, marks=pytest.mark.slow),
        # Eight steps of LAMB, each of up to 2 % of a layer's size, from gradients that differ by roundings.
        pytest.param({"decoder": "paper"}, 8, {"rtol": 1e-3, "atol": 1e-4}, marks=pytest.mark.slow),
    ],
    ids=["one step", "eight steps"],
)
def test_compiled_steps_are_the_same_steps(pictures, small, settings, steps, tolerance, tmp_path, monkeypatch):
    """Traced by torch.compile, and run without a compiler: the same run but for rounding, with the same names."""
    traced = []

    def trace(function, **options):
        traced.append(options)
        return torch_compile(function, backend="eager", **options)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", trace)
    plain = pretrain(str(pictures), out=str(tmp_path / "plain"), **small | settings)
    assert not traced
    result = pretrain(str(pictures), out=str(tmp_path / "run"), compile=True, **small | settings)
    assert result.steps == steps
    assert {"fullgraph": True, "dynamic": False} in traced
    assert yaml.safe_load((result.folder / "config.yaml").read_text())["compile"] is True
    names, expected = (
        torch.load(run.folder / "checkpoints" / "last.ckpt")["state_dict"].keys() for run in (result, plain)
    )
    assert names == expected
    for name, weight in weights(plain.folder).items():
        torch.testing.assert_close(weights(result.folder)[name], weight, **tolerance)


def test_an_estimate_of_compiled_steps_runs_them_compiled(pictures, small, monkeypatch):
    calls = []

    def trace(function, **options):
        return lambda *arguments: calls.append(options) or function(*arguments)

    monkeypatch.setattr(torch, "compile", trace)
    assert estimate(str(pictures), compile=True, **small).step_seconds > 0
    assert {"fullgraph": True, "dynamic": False} in calls


def test_a_machine_without_a_compiler_is_told_what_to_do(pictures, small, tmp_path, monkeypatch):
    def missing(x):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(compiling, "_something", missing)
    with pytest.raises(UsageError, match=r"No working C\+\+ compiler.*such as g\+\+.*leave --compile out"):
        pretrain(str(pictures), out=str(tmp_path / "run"), compile=True, **small)
    assert not (tmp_path / "run").exists()


def test_resolved_config_without_images_is_a_template(small):
    config = yaml.safe_load(resolved_config(**{**small, "batch_size": None}))
    assert config["images"] is None and config["batch_size"] is None
    assert config["learning_rate"] is None  # depends on how many steps there will be


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "resnet5o"}, "resnet50"),
        ({"model": "test_vit"}, "self-attention"),
        ({"size": 100}, "96x96 or 128x128"),
        ({"model_args": {"output_strid": 16}}, "cannot be built with.*output_strid"),
        ({"model_args": {"act_layer": "swich"}}, "cannot build with.*swich"),
        ({"channels": 0}, "channels is 0"),
        ({"mask_ratio": 0.99}, "mask_ratio"),
        ({"mask_ratio": 0.01}, "mask_ratio"),
        ({"batch_size": 100}, "only 25 images"),
        ({"learning_rate": 1e-3, "base_learning_rate": 1e-4}, "exclude each other"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"final_weight_decay": -1.0}, "final_weight_decay is -1"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"held_out": 1.5}, "held_out is 1.5"),
        ({"channels": 5}, "--mean and --std"),
        ({"model": "test_efficientnet", "drop_path": 1.5}, "drop_path is 1.5"),
        ({"init": "nowhere"}, "no file or folder 'nowhere'"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"tracker": "wandb"}, r"pip install 'convspark\[wandb\]'"),
    ],
)
def test_refuses_with_a_word_on_what_to_do(pictures, small, tmp_path, monkeypatch, changes, words):
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=words):
        pretrain(str(pictures), out=str(tmp_path / "run"), **{**small, **changes})
    assert not (tmp_path / "run").exists()
