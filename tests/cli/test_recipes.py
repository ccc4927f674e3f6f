"""Every recipe can be read, says what it costs and gives, and means what the paper says."""

from dataclasses import fields
from importlib.resources import files

import pytest
import yaml

from convspark.cli.main import main
from convspark.pretraining.build import drop_path_of
from convspark.pretraining.settings import PretrainSettings
from convspark.runs.numbers import count

RECIPES = sorted(path for path in files("convspark.recipes").iterdir() if path.name.endswith(".yaml"))


def test_there_are_recipes():
    assert len(RECIPES) >= 3


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipe(recipe, capsys):
    text = recipe.read_text()
    assert all(f"# {word}" in text for word in ("command", "cost", "expected"))
    assert set(yaml.safe_load(text)) <= {each.name for each in fields(PretrainSettings)}
    assert main(["pretrain", "--config", str(recipe), "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    numbers = count(1_281_167, config["batch_size"], config["epochs"], config["warmup_epochs"], config["accumulate"])
    assert numbers.steps > 0
    if "imagenet" in recipe.name:  # the paper's peak rate, at its own batch sizes
        assert config["base_learning_rate"] * config["batch_size"] / 256 == pytest.approx(3.2e-3)
        assert (config["warmup_epochs"], config["weight_decay"], config["final_weight_decay"]) == (40, 0.04, 0.2)
        assert config["drop_path"] == drop_path_of(PretrainSettings(model=config["model"]))
