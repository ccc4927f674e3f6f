"""Configs that would take all memory, all stack or no end: refused in a line, at once, wherever they are read."""

from pathlib import Path

import pytest
import yaml

from convspark.cli.main import main
from convspark.errors import UsageError
from convspark.pretraining.settings import PretrainSettings
from convspark.runs.settings import as_yaml, read_settings, read_yaml

pytestmark = pytest.mark.robust("hostile input")

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
HOSTILE = {
    "aliases of aliases": (BOMB + "model_args: *a11\n", "values, aliases written out: expected a config"),
    "an alias of itself": ("model_args: &a {b: *a}\n", "an alias stands within what it stands for"),
    "lists": ("model_args: " + "[" * 60 + "]" * 60 + "\n", "nested too deeply"),
    "deep lists": ("model_args: " + "[" * 5000 + "]" * 5000 + "\n", "nested too deeply"),
    "deep blocks": ("".join(f"{' ' * i}a:\n" for i in range(900)), "nested too deeply"),
    "a number of 5000 digits": ("seed: " + "9" * 5000 + "\n", "5000 digits"),
    "a date that is none": ("seed: 2026-13-45\n", "month must be"),
    "a list as a key": ("? [a]\n: 1\n", "unhashable key"),
    "a page too long": ("# " + "x" * (1 << 20) + "\nseed: 1\n", "larger than 1 MB"),
    "an object": ("seed: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    "control characters": ("seed: \x07\n", "special characters are not allowed"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_config_is_refused_wherever_it_is_read(kind, tmp_path, capsys):
    text, words = HOSTILE[kind]
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(UsageError, match=f"{config} is not valid YAML: .*{words}"):
        read_settings(PretrainSettings, config)
    assert main(["pretrain", "--config", str(config)]) == 2
    assert f"--config {config} is not YAML" in capsys.readouterr().err
    assert main(["pretrain", "--resume", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err


def test_no_file_is_read_to_an_end_that_it_does_not_have():
    with pytest.raises(yaml.YAMLError, match="larger than"):
        read_yaml(Path("/dev/zero"))


def test_aliases_and_all_that_settings_hold_are_read_as_yaml_reads_them(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("mean: &m [0.5, 0.5, 0.5]\nstd: *m\nmodel_args: {a: {<<: {b: 1}, c: [1, {d: null}]}}\n")
    assert read_yaml(file) == yaml.safe_load(file.read_text())
    file.write_text("")
    assert read_yaml(file) is None
    settings = PretrainSettings("x\u2028y\x85", model_args={"deep": [[[{"a": list(range(1000))}]]]})
    file.write_text(as_yaml(settings))
    assert read_settings(PretrainSettings, file) == settings
