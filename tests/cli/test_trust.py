"""Code that somebody else's run, export or config names is not imported, unless the user says so."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from convspark import trust
from convspark.cli.main import main
from convspark.errors import UsageError
from convspark.pretraining.settings import PretrainSettings
from convspark.runs.settings import as_yaml
from convspark.tasks.classification.settings import FinetuneSettings
from convspark.tasks.comparison.settings import CompareSettings
from convspark.tasks.detection.settings import DetectSettings
from convspark.tasks.segmentation.settings import SegmentSettings

pytestmark = pytest.mark.robust("hostile input")

NETWORK = "foreign_code:make"


@pytest.fixture(autouse=True)
def foreign(tmp_path, monkeypatch):
    """A module that leaves a file behind when it is imported, and folders that name it; gives that file."""
    (tmp_path / "foreign_code.py").write_text(
        "import pathlib, timm\npathlib.Path(__file__).with_name('imported').touch()\n"
        "def make():\n    return timm.create_model('resnet10t', num_classes=0)\n"
    )
    pretrained = replace(PretrainSettings(), epochs=1, model=NETWORK, mean=[0.5] * 3, std=[0.5] * 3, images="pictures")
    tasks = {"finetune": FinetuneSettings, "detect": DetectSettings, "segment": SegmentSettings}
    settings = {kind: make(weights=f"random:{NETWORK}", model=NETWORK) for kind, make in tasks.items()}
    for kind, of_it in {"pretrain": pretrained, "compare": CompareSettings(model=NETWORK), **settings}.items():
        folder = tmp_path / kind
        folder.mkdir()
        (folder / type(of_it).file).write_text(as_yaml(of_it))
        (tmp_path / f"{kind}.yaml").write_text(as_yaml(of_it))
    (tmp_path / "finetune" / "export").mkdir()
    described = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    for folder in (tmp_path / "export", tmp_path / "finetune" / "export"):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"architecture": NETWORK, "pretrained_cfg": described}))
    for folder in ("pictures", "labelled/a", "labelled/b"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (64, 64)).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "boxes.json").write_text('{"images": [], "annotations": [], "categories": []}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trust, "_trusted", set())
    monkeypatch.delitem(sys.modules, "foreign_code", raising=False)
    return tmp_path / "imported"


RESUMED = [f"{kind} --resume {kind}" for kind in ("pretrain", "finetune", "detect", "segment", "compare")]
CONFIGURED = [
    f"{kind} {'pictures ' * (kind == 'pretrain')}--config {kind}.yaml"
    for kind in ("pretrain", "finetune", "detect", "segment", "compare")
]
USED = [
    command.format(folder)
    for folder in ("pretrain", "finetune", "export")
    for command in (
        "finetune {} labelled",
        "detect {} --images pictures --train boxes.json",
        "segment {} --images pictures --masks pictures",
        "probe {} labelled",
        "embed {} pictures",
        "export {} --to onnx",
    )
]
OTHERS = ["reconstruct pretrain pictures/0.png", "figures pretrain pictures/0.png", "compare pretrain labelled"]


@pytest.mark.parametrize("line", [*RESUMED, *CONFIGURED, *USED, *OTHERS])
def test_code_that_a_file_names_is_not_imported(line, foreign, capsys):
    assert main(line.split()) == 2
    assert not foreign.exists()
    assert f"names '{NETWORK}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "trusting"),
    [
        ("pretrain --resume pretrain", "--trust-code"),
        *(("embed export pictures", flags) for flags in ("--trust-code", f"--model {NETWORK}", f"--model={NETWORK}")),
    ],
)
def test_it_is_where_the_user_says_so(line, trusting, foreign):
    main([*line.split(), *trusting.split()])
    assert foreign.exists()


def test_names_of_timm_and_torchvision_are_no_code():
    for name in (
        None,
        "resnet50",
        "resnet50.a1_in1k",
        "torchvision:resnet18",
        "hf-hub:timm/resnet18",
        "random:resnet18",
    ):
        trust.check_code(name, "config.yaml")


def test_a_folder_with_a_colon_in_its_name_is_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="Python code of its author's, first"):
        trust.check_code("random:first:run", "config.yaml")
    Path("first:run").mkdir()
    trust.check_code("random:first:run", "config.yaml")
    with pytest.raises(UsageError, match="Python code of its author's, first"):
        trust.check_code("first:run", "config.yaml")  # of a network


@pytest.mark.parametrize("name", [":factory", "..package:factory", ".:factory"])
def test_a_name_without_a_package_is_no_code(name):
    with pytest.raises(UsageError, match=r"--model is .*expected package\.module:name"):
        trust.named_code(name, "--model")
