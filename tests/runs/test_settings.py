"""Settings are written and read in one place: whole, of the right types, by the right command."""

import inspect
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import convspark
from convspark.errors import UsageError
from convspark.pretraining.settings import PretrainSettings
from convspark.runs.folder import RunFolder
from convspark.runs.settings import as_yaml, command, kind_of, read_settings, resumed
from convspark.tasks.classification.settings import FinetuneSettings
from convspark.tasks.comparison.settings import CompareSettings
from convspark.tasks.detection.settings import DetectSettings
from convspark.tasks.segmentation.settings import SegmentSettings

COMMANDS = [PretrainSettings, FinetuneSettings, DetectSettings, SegmentSettings, CompareSettings]
PRETRAINED = PretrainSettings(
    "pictures: many",
    model_args={"output_stride": 16, "nested": {"a": [1, 2]}},
    stages=["layer1", "layer2"],
    size="64x96",
    betas=(0.9, 0.95),
    mean=[0.5, 0.5, 0.5],
    held_out="elsewhere",
)


@pytest.mark.parametrize("settings", [PRETRAINED, *(settings() for settings in COMMANDS)], ids=lambda s: s.kind)
def test_reading_gives_back_what_was_written(settings, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(as_yaml(replace(settings, out="somewhere"), "Two\nlines"))
    assert read_settings(type(settings), file) == settings
    assert kind_of(file) == settings.kind
    assert "out" not in yaml.safe_load(file.read_text())


def test_a_file_that_is_torn_anywhere_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    whole = as_yaml(PRETRAINED)
    for length in range(0, whole.rindex(":"), 7):  # within the last value no reader could tell
        file.write_text(whole[:length])
        with pytest.raises(UsageError, match=str(file)):
            read_settings(PretrainSettings, file)
    file.write_text(whole[: whole.index("mean:")])
    with pytest.raises(UsageError, match=r"config\.yaml lacks 'mean', 'std', 'seed'.*torn"):
        read_settings(PretrainSettings, file)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("epochs: many", "epochs is 'many': expected int"),
        ("mask_ratio: null", "mask_ratio is None: expected float"),
        ("betas: [0.9]", r"betas is \[0.9\]: expected tuple"),
        ("decoder: thin", "decoder is 'thin': expected .*paper"),
        ("learning_rat: 1", "`convspark pretrain`, which does not know 'learning_rat'"),
    ],
)
def test_a_foreign_key_or_value_is_named(line, words, tmp_path):
    file = tmp_path / "config.yaml"
    key = line.partition(":")[0]
    file.write_text("".join(f"{row}\n" for row in as_yaml(PRETRAINED).splitlines() if not row.startswith(f"{key}:")))
    with file.open("a") as opened:
        opened.write(f"{line}\n")
    with pytest.raises(UsageError, match=words):
        read_settings(PretrainSettings, file)


def test_a_run_of_old_is_read(tmp_path):
    """Its kind stood in a comment, and neither `decoder` nor `compile` were settings."""
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "config.yaml"
    old = yaml.safe_load(as_yaml(PRETRAINED))
    for name in ("kind", "decoder", "compile"):
        del old[name]
    head = "# The settings of this run, resolved. Again, elsewhere: convspark pretrain --config config.yaml\n"
    file.write_text(head + yaml.safe_dump(old))
    assert read_settings(PretrainSettings, file) == replace(PRETRAINED, decoder="paper", compile=False)
    file.write_text(file.read_text().replace("convspark pretrain", "convspark segment"))
    with pytest.raises(UsageError, match="is a run of `convspark segment`, not of pretrain"):
        RunFolder.open(file.parent, PretrainSettings)


def test_a_comparison_of_old_is_read(tmp_path):
    """It was JSON, without the machine's settings."""
    settings = CompareSettings(
        "run", "data", against=["random", "imagenet"], fractions=[0.5, 1.0], settings={"mixup": 0}
    )
    content = {field.name: getattr(settings, field.name) for field in fields(settings)}
    for name in ("out", "resume", "device", "workers"):
        del content[name]
    (tmp_path / "compare.yaml").write_text(json.dumps(content, indent=2))
    assert read_settings(CompareSettings, RunFolder.open(tmp_path, CompareSettings).config) == settings


def test_a_run_goes_on_with_its_own_settings_but_for_the_machines(tmp_path):
    own = replace(PRETRAINED, device="cpu", epochs=7, mask_ratio=0.5)
    asked = PretrainSettings(resume="run", device="cuda", workers=3, epochs=7, betas=(0.9, 0.95))
    assert resumed(own, asked, tmp_path) == replace(own, device="cuda", workers=3)
    with pytest.raises(UsageError, match="leave out --out, --mask-ratio, --seed"):
        resumed(own, PretrainSettings(resume="run", seed=3, mask_ratio=0.7, out="other"), tmp_path)


def test_what_is_named_counts_though_it_is_the_default(tmp_path):
    own = replace(PRETRAINED, device="cpu", checkpoint_minutes=1.0, mask_ratio=0.5, model="resnet18", compile=True)

    @command(PretrainSettings)
    def going_on(passed):
        return resumed(own, passed, tmp_path)

    assert going_on(resume="run") == own
    assert going_on(None, model="auto", probe=None, resume="run") == own  # left to be chosen
    named = {"device": "auto", "checkpoint_minutes": 10.0, "compile": False}
    assert going_on(resume="run", **named) == replace(own, **named)
    with pytest.raises(UsageError, match="leave out --mask-ratio, --seed"):
        going_on(resume="run", mask_ratio=0.6, seed=3, epochs=own.epochs)


@pytest.mark.parametrize(
    ("own", "passed"),
    [
        (FinetuneSettings(), {"policy_kind": "auto"}),
        (FinetuneSettings("run"), {"weights": "auto"}),
        (PretrainSettings(), {"stats": "auto"}),
        (SegmentSettings(images="a", masks="b"), {"val_images": "auto"}),
    ],
)
def test_auto_that_is_not_the_default_is_a_value_like_others(own, passed, tmp_path):
    """AutoAugment's policy, statistics to measure, a file of that name: none leaves anything to be chosen."""
    with pytest.raises(UsageError, match=f"leave out --{next(iter(passed)).replace('_', '-')} "):
        resumed(own, type(own)(resume="run", **passed), tmp_path)


def test_data_that_cannot_be_moved_are_not_said_to_be(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="data that were moved"):
        resumed(FinetuneSettings(), FinetuneSettings(resume="run", epochs=3), tmp_path)
    monkeypatch.setattr(FinetuneSettings, "may_move", ())
    with pytest.raises(UsageError, match=r"only .* may differ\)"):
        resumed(FinetuneSettings(), FinetuneSettings(resume="run", epochs=3), tmp_path)


@pytest.mark.parametrize("images", ["a.tar", ["a.tar", "b.tar"]])
def test_other_pictures_than_those_of_the_run_are_not_left_aside(images, tmp_path):
    own = replace(PRETRAINED, images=images)
    for other in (np.zeros((4, 8, 8, 3)), [object()], ["a.tar", "c.tar"]):
        with pytest.raises(UsageError, match="leave out --images"):
            resumed(own, PretrainSettings(other, resume="run"), tmp_path)
        of_dataset = resumed(replace(own, images=None), PretrainSettings(other, resume="run"), tmp_path)
        assert of_dataset.images is other
    assert resumed(own, PretrainSettings(images, resume="run"), tmp_path) == own
    if isinstance(images, str):  # they may have been moved, a single place
        assert resumed(own, PretrainSettings(Path("new"), resume="run"), tmp_path).images == "new"


@pytest.mark.parametrize(
    ("settings", "words"),
    [(PretrainSettings, "convspark pretrain IMAGES --init RUN --epochs"), (FinetuneSettings, "convspark finetune RUN")],
)
def test_more_epochs_are_a_new_run_from_the_weights(settings, words):
    with pytest.raises(UsageError, match=words):
        resumed(settings(epochs=7), settings(resume="RUN", epochs=9), Path("RUN"))


@pytest.mark.parametrize("settings", COMMANDS, ids=lambda settings: settings.kind)
def test_a_command_takes_its_settings_as_arguments_and_describes_each(settings):
    function = getattr(convspark, settings.kind)
    parameters = inspect.signature(function).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        field.name: field.default for field in fields(settings)
    }
    lines = [line.strip().partition(":")[0] for line in (function.__doc__ or "").splitlines()]
    assert {field.name for field in fields(settings)} <= set(lines)
    with pytest.raises(TypeError, match="learning_rat"):
        function(learning_rat=1)
