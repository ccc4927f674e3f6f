"""Fine-tuning, probing, embedding and comparing, from end to end on small pictures."""

import csv
import json
import multiprocessing
import signal
import stat
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from timm.data.config import resolve_data_config
from timm.data.mixup import Mixup

from convspark.checkpoints.origin import Origin, find_weights
from convspark.checkpoints.to_timm import export_timm
from convspark.cli.main import main
from convspark.errors import DivergedError, UsageError
from convspark.runs import callbacks
from convspark.tasks import task
from convspark.tasks.classification import network as classify
from convspark.tasks.classification import train as finetuning
from convspark.tasks.classification.command import finetune
from convspark.tasks.classification.network import ClassifyModule, Scores
from convspark.tasks.classification.settings import read_result
from convspark.tasks.comparison.command import _is_collapsed, compare
from convspark.tasks.features.embed import embed
from convspark.tasks.features.probe import probe

SMALL = {"size": 32, "batch_size": 12, "workers": 0, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def tuned(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tuned"
    return finetune("random:test_resnet", str(pictures), epochs=12, out=str(out), **SMALL)


def test_it_learns_and_its_figures_are_those_of_its_predictions(tuned):
    with open(f"{tuned.folder}/predictions.csv") as file:
        rows = list(csv.DictReader(file))
    truth, predicted = [r["label"] for r in rows], [r["predicted"] for r in rows]
    assert tuned.split == "test" and tuned.pictures == len(rows) == 18
    assert tuned.top1 == pytest.approx(accuracy_score(truth, predicted)) and tuned.top1 > 0.8
    assert tuned.balanced == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert tuned.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert read_result(tuned.folder) == tuned
    with Image.open(f"{tuned.folder}/confusion.png") as picture:
        assert picture.width > 300


def test_its_export_is_a_timm_classifier_that_predicts_the_same(tuned, pictures):
    network = timm.create_model(f"local-dir:{tuned.folder}/export", pretrained=True).eval()
    config = json.loads((Path(tuned.folder) / "export" / "config.json").read_text())
    assert config["label_names"] == ["blue", "green", "red"] and config["num_classes"] == 3
    with open(f"{tuned.folder}/predictions.csv") as file:
        row = next(csv.DictReader(file))
    with Image.open(row["path"]) as picture:
        side = round(0.95 * 40)
        part = picture.convert("RGB").crop((1, 1, 1 + side, 1 + side)).resize((32, 32), Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(config["pretrained_cfg"][key])[:, None, None] for key in ("mean", "std"))
    image = (torch.from_numpy(np.array(part)).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        probability = network(image[None]).softmax(1)[0]
    assert config["label_names"][int(probability.argmax())] == row["predicted"]
    assert float(probability.max()) == pytest.approx(float(row["confidence"]), abs=2e-4)
    assert resolve_data_config({}, model=network)["crop_pct"] == 0.95  # as timm's transforms will cut pictures


def test_whoever_may_read_files_that_are_usual_here_may_read_all_of_a_run(tuned, tmp_path):
    (tmp_path / "usual").touch()
    usual = stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    files = [path for path in Path(tuned.folder).rglob("*") if path.is_file()]
    assert {"best.safetensors", "model.safetensors", "last.ckpt"} <= {path.name for path in files}
    assert not [path for path in files if stat.S_IMODE(path.stat().st_mode) != usual]


def test_balanced_accuracy_and_f1_are_scikit_learns_where_a_class_has_no_picture():
    labels, logits = torch.tensor([0, 0, 1, 1, 0] * 5), torch.randn(25, 4, generator=torch.Generator().manual_seed(0))
    scores = Scores(4)
    for part in (slice(10), slice(10, 25)):
        scores.update(logits[part], labels[part])
    figures, truth, predicted = scores.compute(), labels.numpy(), logits.argmax(1).numpy()
    recalls = [float(np.mean(predicted[truth == label] == label)) for label in (0, 1)]
    assert 2 in predicted and figures["balanced"] == pytest.approx(np.mean(recalls))
    assert figures["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert figures["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)))


def test_a_run_goes_on_by_its_own_command_only(tuned, pictures, capsys):
    assert main(["detect", "--resume", tuned.folder]) == 2
    assert f"`convspark finetune --resume {tuned.folder}` goes on with it" in capsys.readouterr().err
    assert main(["pretrain", "--resume", tuned.folder]) == 2
    assert main(["finetune", "random:test_resnet", str(pictures), "--out", tuned.folder]) == 2
    assert f"go on with `convspark finetune --resume {tuned.folder}`" in capsys.readouterr().err


class _Stop(Exception):
    pass


def test_a_run_that_was_stopped_goes_on_to_the_same_end(tuned, pictures, tmp_path, monkeypatch):
    save = callbacks.Checkpoints._save

    def save_and_stop(self, trainer, module, name=None):
        save(self, trainer, module, name)
        if trainer.global_step == 18:  # in the midst of the fifth epoch
            raise _Stop

    monkeypatch.setattr(callbacks.Checkpoints, "_save", save_and_stop)
    out = str(tmp_path / "run")
    with pytest.raises(_Stop):
        finetune("random:test_resnet", str(pictures), epochs=12, out=out, checkpoint_minutes=1e-9, **SMALL)
    monkeypatch.undo()
    result = finetune(resume=str(tmp_path / "run"))
    assert result.last == tuned.last and result.top1 == tuned.top1 and result.best == tuned.best
    with pytest.raises(UsageError, match="leave out --epochs"):
        finetune(resume=str(tmp_path / "run"), epochs=3)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_while_it_is_measured_loses_nothing_and_leaves_no_process(
    tuned, pictures, tmp_path, monkeypatch, number
):
    measure, calls = ClassifyModule.validation_step, []

    def interrupted(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 3:
            signal.raise_signal(number)
        return measure(self, batch, batch_idx)

    monkeypatch.setattr(ClassifyModule, "validation_step", interrupted)
    monkeypatch.setattr(finetuning, "labelled_loader", partial(classify.labelled_loader, batch_size=2))
    settings = SMALL | {"workers": 1, "epochs": 12, "out": str(tmp_path / "run")}
    with pytest.raises(KeyboardInterrupt, match="Stopped after step"):
        finetune("random:test_resnet", str(pictures), **settings)
    assert not multiprocessing.active_children()
    monkeypatch.undo()
    assert finetune(resume=str(tmp_path / "run")).last == tuned.last


def test_stopped_at_once_it_leaves_no_process(pictures, tmp_path, monkeypatch):
    def twice(self, batch, batch_idx):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ClassifyModule, "validation_step", twice)
    with pytest.raises(KeyboardInterrupt, match="Stopped at once"):
        finetune("random:test_resnet", str(pictures), out=str(tmp_path / "run"), **SMALL | {"workers": 1, "epochs": 2})
    assert not multiprocessing.active_children()


def test_networks_that_are_not_timms_get_a_head(pictures, tmp_path):
    origin = replace(find_weights("random:torchvision:resnet18"), size=64, mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1))
    file, run = tmp_path / "weights.pth", tmp_path / "run"
    torch.save({"model": origin.build().state_dict(), "network": origin.as_record()}, file)
    result = finetune(str(file), str(pictures), epochs=2, out=str(run), **SMALL)
    assert (run / "export" / "model.safetensors").is_file() and result.epochs == 2
    tuned = find_weights(str(run))  # takes images as it was trained on them
    assert tuned == replace(origin, weights=str(run), source=str(run / "export"), size=32)
    trained = load_file(run / "export" / "model.safetensors")["backbone.conv1.weight"]
    assert torch.equal(tuned.build().conv1.weight, trained)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_a_network_that_was_built_without_a_pool_classifies_pictures(name):
    network = timm.create_model(name, num_classes=0, global_pool="")
    logits = classify.with_classifier(network, 3, seed=0).eval()(torch.zeros(2, 3, 64, 64))
    like = timm.create_model(name, num_classes=3).eval()
    like.load_state_dict(network.state_dict())
    assert torch.equal(logits, like(torch.zeros(2, 3, 64, 64)))


def test_the_pool_of_a_network_stays():
    network = timm.create_model("test_resnet", num_classes=0, global_pool="max")
    assert classify.with_classifier(network, 3, seed=0).global_pool.pool_type == "max"


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_accumulated_steps_and_both_optimisers_train(pictures, tmp_path, optimizer):
    options = {"optimizer": optimizer, "accumulate": 4, "mixup": 0.0, "cutmix": 0.0, "epochs": 3}  # three in a pass
    result = finetune("random:test_resnet", str(pictures), out=str(tmp_path / "run"), **options, **SMALL)
    assert result.steps == 12 and np.isfinite(result.loss)


def test_a_collapse_is_told_while_it_goes_on_and_at_the_end(pictures, tmp_path, caplog):
    # A rate at which LAMB's steps, each as long as its layer's weights, leave a network that sees no difference.
    options = {"optimizer": "lamb", "learning_rate": 0.3, "warmup_epochs": 0.0, "epochs": 4}
    finetune("random:resnet10t", str(pictures), out=str(tmp_path / "run"), **options, **SMALL)
    assert caplog.text.count("calls every validation picture the same") == 1
    assert "The network is no better (33.3 %) than calling every picture" in caplog.text
    assert "Try a third of the --learning-rate (0.1)" in caplog.text


def test_batches_too_small_for_batchnorm_are_told(pictures, tmp_path, caplog):
    options = {**SMALL, "epochs": 1, "fraction": 0.3}
    finetune("random:test_resnet", str(pictures), out=str(tmp_path / "a"), **options)
    finetune("random:convnext_atto", str(pictures), out=str(tmp_path / "b"), **{**options, "batch_size": 2})
    assert "BatchNorm" not in caplog.text
    finetune("random:test_resnet", str(pictures), out=str(tmp_path / "c"), accumulate=3, **options)
    assert "BatchNorm over 4 pictures at a time" in caplog.text


def test_in_small_batches_batchnorm_keeps_the_statistics_that_it_has(tuned, pictures, tmp_path, caplog):
    def statistics(folder):
        tensors = load_file(f"{folder}/export/model.safetensors")
        return {name: tensor for name, tensor in tensors.items() if name.endswith(("running_mean", "running_var"))}

    options = {**SMALL, "epochs": 2, "fraction": 0.3}
    small = finetune(tuned.folder, str(pictures), out=str(tmp_path / "small"), **{**options, "batch_size": 2})
    assert "so that it keeps its earlier statistics" in caplog.text
    large = finetune(tuned.folder, str(pictures), out=str(tmp_path / "large"), **options)
    before, kept, moved = (statistics(run.folder) for run in (tuned, small, large))
    assert before and all(torch.equal(kept[name], before[name]) for name in before)
    assert not any(torch.equal(moved[name], before[name]) for name in before)


def test_what_is_not_mixed_is_smoothed_as_timm_does():
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 2, 1, 1])
    mix = Mixup(0.5, 0.5, prob=0.0, label_smoothing=0.1, num_classes=3)
    expected = mix(images.clone(), labels)
    for ours, theirs in zip(finetuning._smoothed(images, labels, 3, 0.1), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_divergence_is_told(pictures, tmp_path):
    options = {"optimizer": "lamb", "learning_rate": 3.0, "warmup_epochs": 0.0, "epochs": 4}
    with pytest.raises(DivergedError, match=r"the loss grew to .*epoch 1, .*--learning-rate \(1.5\)"):
        finetune("random:test_resnet", str(pictures), out=str(tmp_path / "exploded"), **options, **SMALL)
    assert not (tmp_path / "exploded" / "checkpoints" / "last.ckpt").exists()  # there was no good one to keep
    with pytest.raises(DivergedError, match="the weights are no longer finite numbers at step 2 of 80"):
        finetune("random:test_resnet", str(pictures), epochs=20, learning_rate=1e11, out=str(tmp_path / "run"), **SMALL)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"mixup": -1.0}, "mixup is -1.0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 1000}, "only 48 images"),
        ({"batch_size": 5}, "pictures in each forward pass: expected an even number"),
        ({"batch_size": 12, "accumulate": 4}, "pictures in each forward pass: expected an even number"),
        ({"crop_scale": (0.5, 2.0)}, "crop_scale"),
        ({"smoothing": 1.0}, "smoothing"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_written(pictures, tmp_path, wrong, message):
    with pytest.raises(UsageError, match=message):
        finetune("random:test_resnet", str(pictures), out=str(tmp_path / "run"), **{**SMALL, **wrong})
    assert not (tmp_path / "run").exists()


def test_probe_tells_colours_apart_even_at_random(pictures):
    report = probe("random:test_resnet", str(pictures), size=32, seeds=2, workers=0, device="cpu")
    scores = report.scores["random:test_resnet"]
    assert len(scores["linear"]["top1"]) == 2 and min(scores["linear"]["top1"]) > 0.8
    assert report.chance == pytest.approx(1 / 3) and "±" in str(report)
    assert report.trained_on == 3 * 13  # 80 % of 16, of each class


def test_probe_puts_the_very_network_with_random_weights_beside(pictures, tmp_path, monkeypatch):
    network = timm.create_model("test_resnet", num_classes=0, in_chans=1, output_stride=16)
    export_timm(network, tmp_path / "export", mean=(0.4,), std=(0.3,), image_size=(32, 32))
    build, built = Origin.build, list[Origin]()
    monkeypatch.setattr(Origin, "build", lambda self, *seed: built.append(self) or build(self, *seed))
    probe(str(tmp_path / "export"), str(pictures), seeds=1, workers=0, device="cpu")
    assert built[1] == replace(built[0], weights="random:test_resnet", source=None)


def test_probe_puts_random_weights_beside_others(tuned, pictures):
    report = probe(tuned.folder, str(pictures), size=32, seeds=1, workers=0, device="cpu")
    assert list(report.scores) == [tuned.folder, "random:test_resnet"]


def test_embed_writes_what_the_backbone_makes_of_each_picture(tuned, pictures, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i, path in enumerate(sorted((pictures / "test" / "red").iterdir())):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(path.read_bytes())
    result = embed(f"{tuned.folder}/export", str(tmp_path / "pictures"), out=str(tmp_path / "f.npz"), workers=0)
    stored = np.load(tmp_path / "f.npz")
    assert stored["features"].shape == (6, 96) and result.pictures == 6 and len(stored["paths"]) == 6
    network = timm.create_model(f"local-dir:{tuned.folder}/export", pretrained=True, num_classes=0).eval()
    with Image.open(stored["paths"][2]) as picture:
        image = torch.from_numpy(np.array(picture.resize((32, 32), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = network(((image - mean) / std)[None])[0]
    # Pillow's pixels and ours differ by a rounding, 1 of 255, here and there.
    assert (torch.from_numpy(stored["features"][2]) - expected).norm() < 0.02 * expected.norm()


def test_compare_pairs_its_runs_and_goes_on(pictures, tmp_path):
    out = tmp_path / "comparison"
    options = {"seeds": 2, "fractions": [0.5, 1.0], "epochs": 1, "size": 32, "batch_size": 8, "workers": 0}
    report = compare(
        "random:test_resnet", str(pictures), against=["random"], out=str(out), settings={"precision": "fp32"}, **options
    )
    # The same start, so the very same runs: every difference is exactly nothing.
    assert [d.points for d in report.differences] == [[0.0, 0.0], [0.0, 0.0]]
    assert all("made no certain difference to random weights" in line for line in report.verdict[:2])
    assert {s.labels for s in report.scores} == {24, 48}
    before = {f: f.stat().st_mtime_ns for f in out.glob("*/results.json")}
    assert len(before) == 8
    next(iter(before)).unlink()
    again = compare(resume=str(out), workers=0)
    assert again == report
    after = {f: f.stat().st_mtime_ns for f in out.glob("*/results.json")}
    assert sum(after[f] != before[f] for f in before) == 1
    assert (out / "compare.md").read_text().startswith("Top-1") and (out / "compare.png").is_file()
    environment = json.loads((out / "environment.json").read_text())  # from which the page knows what was typed
    assert environment["command"] == sys.argv and len(environment["resumed"]) == 1
    with pytest.raises(UsageError, match="leave out --seeds"):
        compare(resume=str(out), seeds=5)
    with pytest.raises(UsageError, match=r"without config\.yaml"):  # told at once, not after the first runs
        compare("random:test_resnet", str(pictures), against=["random", str(pictures)], out=str(tmp_path / "b"))
    with pytest.raises(UsageError, match="exists already: go on with"):
        compare("random:test_resnet", str(pictures), out=str(out))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"settings": {"mixup": -1}}, "mixup is -1"),
        ({"settings": {"mixup": "abc"}}, "settings: mixup is 'abc': expected float"),
        ({"settings": {"devices": 2}}, "settings has 'devices': expected settings of finetune"),
        ({"fractions": [1 / 3, 0.3333333, 1.0]}, r"fractions is .*: expected shares that differ in their first six"),
        ({"size": "abc"}, "size is 'abc': expected pixels"),
        ({"size": 1}, "size is 1: .* cannot be run"),
        ({"batch_size": 16}, "batch_size is 16, but 10 % of the labels are 6 pictures"),
        ({"batch_size": 3}, "batch_size is 3, 3 pictures in each forward pass: expected an even number"),
        ({"settings": {"mixup": None}}, "settings: mixup is None: expected float"),
        ({"settings": {"group_blocks": [1]}}, r"group_blocks is \[1\]: expected 4 numbers"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"seeds": 1001, "size": "abc"}, "seeds is 1001: expected 1 to 1000"),
    ],
)
def test_what_no_run_of_a_comparison_could_start_with_shows_before_anything_is_written(
    pictures, tmp_path, wrong, words, monkeypatch
):
    if wrong == {"size": 1}:
        monkeypatch.setattr(timm.models.resnet.ResNet, "forward_features", _of_some_size)
    with pytest.raises(UsageError, match=words):
        compare("random:test_resnet", str(pictures), out=str(tmp_path / "out"), **{"size": 32, "epochs": 1} | wrong)
    assert not (tmp_path / "out").exists()


def _of_some_size(self, images):
    raise ValueError("too small")


def test_pictures_that_are_all_of_a_class_and_called_so_are_no_collapse():
    pictures = [f"{i}.png" for i in range(4)]
    assert not _is_collapsed(dict.fromkeys(pictures, (True, "cat")))
    assert _is_collapsed({picture: (i < 2, "cat") for i, picture in enumerate(pictures)})
    assert not _is_collapsed({picture: (False, "cat dog"[4 * (i % 2) :]) for i, picture in enumerate(pictures)})


def test_the_commands_print_json(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--size", "32", "--json", "--workers", "0"]
    assert main(["embed", "random:test_resnet", str(pictures / "val"), "-o", "f.npz", *small]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 12 and Path("f.npz").is_file()
    assert main(["probe", "random:test_resnet", str(pictures), "--size", "32", "--seeds", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["split"] == "test"
    assert main(["finetune", "random:test_resnet"]) == 2
    assert "data is missing" in capsys.readouterr().err


def test_options_of_a_recipe_do_what_they_say(pictures, tmp_path, monkeypatch):
    fit, clips = task.fit, []
    monkeypatch.setattr(
        task, "fit", lambda *args, **kwargs: clips.append(kwargs["gradient_clip"]) or fit(*args, **kwargs)
    )
    settings = SMALL | {
        "epochs": 2,
        "repeats": 3,
        "eval_crop": "whole",
        "policy_kind": "auto",
        "interpolation": "bicubic",
    }
    for number, clip in enumerate((None, 0, 2.5)):
        settings |= {"base_learning_rate": 0.01, "ema_decay": 0.0, "gradient_clip": clip}
        result = finetune("random:test_resnet", str(pictures), out=str(tmp_path / str(number)), **settings)
    assert clips == [5.0, None, 2.5]
    with open(tmp_path / "0" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert result.steps == 8  # of 48 pictures in batches of 12: three crops of 16
    assert all(row[f"val_{name}"] == row[f"ema_{name}"] for row in rows for name in ("loss", "top1"))  # no average
    config = yaml.safe_load((tmp_path / "0" / "config.yaml").read_text())
    assert config["learning_rate"] == pytest.approx(0.01 * 12 / 256) and config["base_learning_rate"] is None


@pytest.mark.slow
def test_what_is_measured_is_squeezed_or_cropped(pictures, tmp_path):
    """With the same weights, pictures of 40 x 80 pixels have other losses."""
    for part in ("train", "val"):
        for path in (pictures / part).rglob("*.png"):
            wide = tmp_path / "wide" / path.relative_to(pictures)
            wide.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as picture:
                noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(np.concatenate([np.asarray(picture), noise], 1)).save(wide)
    losses = []
    for crop in ("whole", 1.0, 0.5):
        out = str(tmp_path / f"run{crop}")
        losses.append(
            finetune("random:test_resnet", str(tmp_path / "wide"), epochs=1, eval_crop=crop, out=out, **SMALL).loss
        )
    assert len(set(losses)) == 3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"eval_crop": 0.0}, "eval_crop is 0.0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"repeats": 0}, "repeats is 0"),
        ({"learning_rate": 1e-3, "base_learning_rate": 1e-3}, "exclude each other"),
        ({"gradient_clip": -1.0}, "gradient_clip is -1.0"),
        ({"device_batch_size": 0}, "device_batch_size is 0"),
    ],
)
def test_what_is_wrong_with_them_is_said(pictures, wrong, words):
    with pytest.raises(UsageError, match=words):
        finetune("random:test_resnet", str(pictures), **SMALL, **wrong)
