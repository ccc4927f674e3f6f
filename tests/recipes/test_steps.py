"""Every recipe trains with its own settings but for sizes; by default one of each kind, with a tiny network in place of
its own."""

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import yaml
from labelled_pictures import write_pictures
from PIL import Image
from torchvision.models.detection import MaskRCNN

import convspark
from convspark.recipes import all_recipes
from convspark.tasks.detection import network as detection
from convspark.tasks.fpn import Pyramid

COMMON = {"device": "cpu", "precision": "fp32", "workers": 0}
OF = {
    command: [one for one in all_recipes().values() if one.command == command]
    for command in ("pretrain", "finetune", "detect")
}
ONE_OF_A_KIND = {  # by whose tiny networks each command and each kind of settings is tried by default
    *("resnet50_imagenet", "convnext_small_imagenet", "small_data"),
    *("resnet50_imagenet_finetune", "convnext_small_imagenet_finetune", "resnet50_coco"),
}


def network_of(recipe, whole):
    """The recipe's own network, or the smallest of its kind."""
    if whole:
        return recipe.name.partition("_384")[0].partition("_imagenet")[0].partition("_coco")[0]
    return "test_convnext" if recipe.name.startswith("convnext") else "test_resnet"


def steps(command):
    """The test for each recipe of a command, by a tiny network and by the recipe's own."""
    cases = [
        pytest.param(
            one,
            whole,
            id=f"{one.name}-{'whole' if whole else 'tiny'}",
            marks=[pytest.mark.slow] * (whole or one.name not in ONE_OF_A_KIND),
        )
        for one in OF[command]
        for whole in (False, True)
    ]
    return pytest.mark.parametrize(("recipe", "whole"), cases)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    for seed, (part, count) in enumerate({"train": 4, "val": 2}.items()):
        write_pictures(root / part, count, seed, side=64)
    return root


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A COCO file of pictures with a bright square each."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    images, things = [], []
    for i in range(4):
        pixels = rng.integers(0, 60, (64, 80, 3), dtype=np.uint8)
        left, top = int(rng.integers(0, 50)), int(rng.integers(0, 34))
        pixels[top : top + 30, left : left + 30] = 230
        Image.fromarray(pixels).save(root / f"{i}.png")
        corners = [left, top, left + 30, top, left + 30, top + 30, left, top + 30]
        things.append(
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [left, top, 30, 30], "segmentation": [corners]}
        )
        images.append({"id": i, "file_name": f"{i}.png"})
    content = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "square"}]}
    (root / "all.json").write_text(json.dumps(content))
    return root


def rows_of(folder):
    with (Path(folder) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def kept(folder):
    return yaml.safe_load((Path(folder) / "config.yaml").read_text())


@steps("pretrain")
def test_pre_training(recipe, whole, labelled, tmp_path):
    small = {"size": 64, "batch_size": 4, "epochs": 1, "warmup_epochs": 0, "keep_epochs": None, "held_out": 0}
    small |= {"decoder_width": 32, "device_batch_size": 2, "picture_epochs": 0}
    if not whole:
        small["model"] = network_of(recipe, whole)
    out = tmp_path / "run"
    result = convspark.pretrain(str(labelled), **recipe.settings | small | COMMON, out=str(out))
    assert result.steps == 5 and np.isfinite(result.train_loss)
    config = kept(out)
    assert config["accumulate"] == 2
    if "base_learning_rate" in recipe.settings:
        assert config["learning_rate"] == pytest.approx(recipe.settings["base_learning_rate"] * 4 / 256)


@steps("finetune")
def test_fine_tuning(recipe, whole, labelled, tmp_path):
    small = {"size": 64, "batch_size": 8, "epochs": 1, "warmup_epochs": 0, "device_batch_size": 4}
    if not whole:
        small["group_blocks"] = None
    out = tmp_path / "run"
    weights = f"random:{network_of(recipe, whole)}"
    result = convspark.finetune(weights, str(labelled), **recipe.settings | small | COMMON, out=str(out))
    config = kept(out)
    assert result.steps == 2 and np.isfinite(result.loss)
    assert config["learning_rate"] == pytest.approx(recipe.settings["base_learning_rate"] * 8 / 256)
    assert config["accumulate"] == 2 and config["layer_decay"] == recipe.settings["layer_decay"]
    if recipe is OF["finetune"][0]:  # it goes on with what it resolved, which the paper's rule does not contradict
        assert convspark.finetune(resume=str(out), device="cpu").top1 == result.top1


@steps("detect")
def test_detection(recipe, whole, squares, tmp_path, monkeypatch):
    small = {"size": 64, "short_sides": (32, 96), "batch_size": 2, "device_batch_size": 1, "warmup_steps": 0}
    small |= {"epochs": 2, "milestones": [1], "steps": recipe.settings.get("steps") and 2}
    if not whole:
        small["group_blocks"] = None
        monkeypatch.setattr(detection, "Pyramid", partial(Pyramid, out_channels=16))
        few = {f"rpn_post_nms_top_n_{where}": 20 for where in ("train", "test")}
        monkeypatch.setattr(detection, "MaskRCNN", partial(MaskRCNN, **few))
    places = {"train": str(squares / "all.json"), "val": str(squares / "all.json"), "images": str(squares)}
    out = tmp_path / "run"
    weights = f"random:{network_of(recipe, whole)}"
    result = convspark.detect(weights, **places, **recipe.settings | small | COMMON, out=str(out))
    rows, rate = rows_of(out), recipe.settings["learning_rate"]
    assert result.steps == int(rows[-1]["step"]) == (small["steps"] or 4) and result.task == "masks"
    assert all(np.isfinite(float(row["train_loss"])) for row in rows)
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == pytest.approx([rate, rate * recipe.settings["milestone_factor"]])
    assert kept(out)["accumulate"] == 2


def test_the_slow_ones_are_of_networks_that_exist():
    for one in all_recipes().values():
        assert one.name == "small_data" or timm.is_model(network_of(one, whole=True)), one.name
