"""Every recipe says what the paper says, is taken by its command, and can be planned."""

import json
from dataclasses import fields, replace
from importlib.resources import files

import pytest
import timm
import torch
import yaml

import convspark
from convspark.cli.main import main
from convspark.errors import UsageError
from convspark.pretraining.build import drop_path_of
from convspark.pretraining.settings import PretrainSettings
from convspark.recipes import all_recipes, find_recipe
from convspark.runs.numbers import count
from convspark.tasks.classification.settings import FinetuneSettings
from convspark.tasks.classification.train import _make_optimizer
from convspark.tasks.detection.settings import DetectSettings
from convspark.tasks.layer_groups import layer_groups

SETTINGS = {"pretrain": PretrainSettings, "finetune": FinetuneSettings, "detect": DetectSettings}
IMAGENET, COCO = 1_281_167, 118_287
RECIPES = list(all_recipes().values())
OF = {command: [one for one in RECIPES if one.command == command] for command in SETTINGS}

# The published numbers, as the paper's tables have them.
PRETRAINED = {
    "resnet50": (0.05, 0.95, 80.6),
    "resnet101": (0.08, 0.95, 82.2),
    "resnet152": (0.10, 0.95, 82.7),
    "resnet200": (0.15, 0.95, 83.1),
    "convnext_small": (0.2, 0.999, 84.1),
    "convnext_base": (0.3, 0.999, 84.8),
    "convnext_large": (0.4, 0.999, 85.4),
    "convnext_large_384": (0.4, 0.999, 86.0),
}
FINETUNED = """
    convnext_small      4096  400  20  adamw  2e-4  .7  .01  .8  3  .3   .9999
    convnext_base       4096  400  20  adamw  1e-4  .7  .01  .8  3  .4   .9999
    convnext_large      4096  200  10  adamw  1e-4  .7  .02  .8  3  .5   .9999
    convnext_large_384  1024  200  20  adamw  6e-5  .7  .01  .8  3  .5   .99995
    resnet50            2048  300   5  lamb   2e-3  .7  .02  .1  0  .05  .9999
    resnet101           2048  300   5  lamb   1e-3  .8  .02  .1  0  .2   .9999
    resnet152           2048  300   5  lamb   1e-3  .8  .02  .1  0  .2   .9999
    resnet200           2048  300   5  lamb   1e-3  .8  .02  .1  0  .2   .9999
"""
ROWS = [line.split() for line in FINETUNED.strip().splitlines()]
STEPS_BELOW_THE_HEAD = {"resnet50": 7, "resnet101": 13, "resnet152": 14, "resnet200": 18, "convnext": 13}


@pytest.mark.parametrize("one", RECIPES, ids=lambda one: one.name)
def test_a_recipe_is_taken_by_its_command_and_has_its_facts(one, capsys):
    assert set(one.settings) <= {field.name for field in fields(SETTINGS[one.command])}
    settings = SETTINGS[one.command](**one.settings)
    if one.command == "pretrain":
        assert main(["pretrain", "--recipe", one.name, "--print_config"]) == 0
        assert one.settings.items() <= yaml.safe_load(capsys.readouterr().out).items()
    else:
        settings.check()
    assert one.network and one.data and one.outcome
    assert all(find_recipe(name).command in ("finetune", "detect") for name in one.then)


@pytest.mark.parametrize("one", RECIPES, ids=lambda one: one.name)
def test_what_is_shown_is_a_config_of_the_same_settings(one, capsys, tmp_path):
    assert main(["recipes", one.name]) == 0
    text = capsys.readouterr().out
    assert one.network in text and one.outcome in text and text.count("# ") >= 4
    assert yaml.safe_load(text) == {"kind": one.command, **one.settings}
    if one.command == "pretrain":
        (tmp_path / "config.yaml").write_text(text)
        shown = []
        for flags in (["--recipe", one.name], ["--config", str(tmp_path / "config.yaml")]):
            assert main(["pretrain", *flags, "--print_config"]) == 0
            shown.append(capsys.readouterr().out)
        assert shown[0] == shown[1]


@pytest.mark.parametrize("one", [one for one in OF["pretrain"] if one.data == "ImageNet-1k"], ids=lambda one: one.name)
def test_pre_training_is_the_papers(one):
    s, network = PretrainSettings(**one.settings), one.name.removesuffix("_imagenet")
    drop_path, beta, top1 = PRETRAINED[network]
    large = network.endswith("384")
    assert (s.size, s.mask_ratio, s.batch_size) == ((384, 0.75, 2048) if large else (224, 0.6, 4096))
    assert s.base_learning_rate * s.batch_size / 256 == pytest.approx(3.2e-3)
    assert (s.epochs, s.warmup_epochs, s.weight_decay, s.final_weight_decay) == (1600, 40, 0.04, 0.2)
    assert (s.optimizer, tuple(s.betas), s.gradient_clip) == ("lamb", (0.9, beta), 5.0)
    assert s.drop_path == drop_path == drop_path_of(replace(s, drop_path=None))
    assert (s.decoder, s.decoder_width, tuple(s.crop_scale), s.flip) == ("paper", 768, (0.67, 1.0), True)
    assert s.model == network.removesuffix("_384") and timm.is_model(s.model)
    assert f"{top1} % top-1" in one.outcome and one.then[0] == f"{one.name}_finetune"


def test_all_that_was_published_has_its_recipes():
    names = [f"{network}_imagenet" for network in PRETRAINED]
    assert [one.name for one in OF["pretrain"]] == [*names, "small_data"]
    assert [one.name for one in OF["finetune"]] == [f"{name}_finetune" for name in names]
    assert [one.name for one in OF["detect"]] == ["resnet50_coco", "convnext_base_coco"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_fine_tuning_is_the_papers(row):
    s = FinetuneSettings(**convspark.recipe(f"{row[0]}_imagenet_finetune"))
    batch, epochs, warmup = map(int, row[1:4])
    rate, layer_decay, weight_decay, mixup, repeats, drop_path, ema = (float(value) for value in row[5:])
    assert (s.batch_size, s.epochs, s.warmup_epochs, s.optimizer) == (batch, epochs, warmup, row[4])
    assert (s.base_learning_rate, s.layer_decay, s.weight_decay) == (rate, layer_decay, weight_decay)
    assert (s.mixup, s.repeats, s.drop_path, s.ema_decay) == (mixup, max(1, repeats), drop_path, ema)
    assert (s.cutmix, s.mix_share, s.smoothing, s.erase, s.interpolation) == (1.0, 1.0, 0.1, 0.25, "bicubic")
    large = row[0].endswith("384")
    assert (s.size, s.policy_kind, s.eval_crop) == ((384, "auto", "whole") if large else (224, "trivial", 0.95))


@pytest.mark.parametrize("one", OF["finetune"], ids=lambda one: one.name)
def test_layer_groups_and_optimiser_are_the_papers(one):
    s, name = FinetuneSettings(**one.settings), one.name.removesuffix("_imagenet_finetune").removesuffix("_384")
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=3)
    _, groups = layer_groups(network, group_blocks=s.group_blocks)
    steps = STEPS_BELOW_THE_HEAD[name.partition("_")[0]]
    assert groups == steps + 1
    optimizer = _make_optimizer(network, s.optimizer, s.layer_decay, s.group_blocks)
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert min(scales) == pytest.approx(s.layer_decay**steps) and max(scales) == 1
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    if s.optimizer == "lamb":
        options = {"max_grad_norm": 1e7, "always_adapt": True, "bias_correction": False}
        assert type(optimizer).__name__ == "Lamb" and options.items() <= optimizer.param_groups[0].items()


def test_detection_is_the_papers():
    resnet, convnext = (DetectSettings(**one.settings) for one in OF["detect"])
    assert (resnet.steps, resnet.batch_size, resnet.learning_rate, resnet.weight_decay) == (90_000, 16, 2.5e-4, 1e-4)
    assert (resnet.layer_decay, resnet.warmup_steps, resnet.milestone_factor) == (0.6, 1000, 0.25)
    a_step = count(COCO, 16, resnet.epochs, None, steps=resnet.steps).steps_per_epoch
    assert [round(epoch * a_step) for epoch in resnet.milestones] == [60_000, 80_000]
    assert (tuple(resnet.short_sides), resnet.heads, resnet.task) == ((480, 896), "norm", "masks")
    assert (convnext.epochs, convnext.learning_rate, convnext.weight_decay) == (36, 2e-4, 0.05)
    assert (convnext.layer_decay, convnext.milestones, convnext.milestone_factor) == (0.65, [27, 33], 0.2)
    assert (convnext.drop_path, tuple(convnext.short_sides), convnext.task) == (0.5, (480, 800), "masks")


IN_PASSES = [
    (one, processes)
    for one in RECIPES
    for processes in (1, 2, 8, 32)
    if one.settings.get("device_batch_size") and one.settings["batch_size"] >= processes
]


@pytest.mark.parametrize(("one", "processes"), IN_PASSES, ids=lambda value: getattr(value, "name", str(value)))
def test_the_batch_is_the_same_on_any_number_of_devices(one, processes):
    s = SETTINGS[one.command](**one.settings)
    images, steps = (COCO, s.steps) if one.command == "detect" else (IMAGENET, None)
    warmup = None if one.command == "detect" else s.warmup_epochs
    numbers = count(
        images, s.batch_size, s.epochs, warmup, processes=processes, device_batch_size=s.device_batch_size, steps=steps
    )
    assert (
        numbers.batch_size == s.batch_size
        and numbers.steps == count(images, s.batch_size, s.epochs, 0, steps=steps).steps
    )
    assert numbers.images_a_pass / processes <= s.device_batch_size
    assert numbers.accumulate == 1 or 2 * numbers.images_a_pass / processes > s.device_batch_size
    assert numbers.images_a_pass / processes % 2 == 0 or one.command == "detect"  # which are mixed in pairs


def test_flags_override_a_recipe_wherever_they_stand(capsys):
    for flags in (["--epochs", "80", "--recipe", "resnet50_imagenet"], ["--recipe=resnet50_imagenet", "--epochs=80"]):
        assert main(["pretrain", *flags, "--print_config"]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["epochs"] == 80


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "--recipe", "resnet5_imagenet"], "did you mean resnet50_imagenet"),
        (["pretrain", "--recipe", "resnet50_coco"], "--recipe resnet50_coco is of `convspark detect`, not of pretrain"),
        (["pretrain", "--recipe"], "--recipe has no value: expected a name"),
        (["recipes", "nothing"], "`convspark recipes` lists them"),
        (["segment", "--recipe", "resnet50_coco"], "--recipe is not known"),
    ],
)
def test_a_recipe_that_is_not_one_of_the_command(arguments, words, capsys):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_the_list_names_all_of_them(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["recipe", "command", "network", "data", "result", "cost"]
    assert [line.split()[:2] for line in lines[1:]] == [[one.name, one.command] for one in RECIPES]
    assert main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {name: entry["settings"] for name, entry in listed.items()} == {one.name: one.settings for one in RECIPES}


def test_in_python_a_recipe_is_arguments():
    settings = convspark.recipe("resnet50_imagenet")
    settings["epochs"] = 3  # a copy of one's own
    assert convspark.recipe("resnet50_imagenet")["epochs"] == 1600
    with pytest.raises(UsageError, match="resnet50_imagenet"):
        convspark.recipe("resnet50_imagnet")


def test_no_file_is_left_out():
    families = {
        path.name.removesuffix(".yaml") for path in files("convspark.recipes").iterdir() if ".yaml" in path.name
    }
    assert families == {"pretraining", "finetuning", "detection", "small"}


def test_a_recipe_that_was_changed_stays_as_it_was_for_others():
    convspark.recipe("resnet50_coco")["short_sides"].append(0)
    assert convspark.recipe("resnet50_coco")["short_sides"] == find_recipe("resnet50_coco").settings["short_sides"]
    assert 0 not in find_recipe("resnet50_coco").settings["short_sides"]
