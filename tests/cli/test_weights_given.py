"""WEIGHTS as a user types them: a part of a file, and one that has too little."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from convspark.cli.main import main
from convspark.pretraining.train import Pretraining
from convspark.tasks.task import Task

COMMANDS = ("finetune", "segment", "detect", "pretrain", "compare")


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """Pictures of two classes, with masks and boxes; and a file of two networks, and one of a part of one."""
    root = tmp_path_factory.mktemp("places")
    rng = np.random.default_rng(0)
    names = [f"{kind}/{i}" for kind in ("cat", "emu") for i in range(3)]
    for name in names:
        for folder, pixels in (("p", rng.integers(0, 256, (64, 64, 3))), ("m", rng.integers(0, 2, (64, 64)) * 255)):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{name}.png")
    content = {
        "images": [{"id": name, "file_name": f"{name}.png"} for name in names],
        "annotations": [{"image_id": name, "category_id": 1, "bbox": [9, 9, 20, 30]} for name in names],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "boxes.json").write_text(json.dumps(content))
    torch.manual_seed(3)
    one, other = (timm.create_model("resnet10t", num_classes=0).state_dict() for _ in range(2))
    pair = (("one", one), ("other", other))
    torch.save({f"{part}.net.{n}": t for part, tensors in pair for n, t in tensors.items()}, root / "two.pth")
    torch.save({n: t for n, t in one.items() if n.startswith(("conv1", "bn1", "layer1"))}, root / "part.pth")
    return root


def line(command: str, places: Path, weights: str) -> list[str]:
    p, boxes = str(places / "p"), str(places / "boxes.json")
    own = {
        "finetune": [weights, p],
        "segment": [weights, "--images", p, "--masks", str(places / "m")],
        "detect": [weights, "--train", boxes, "--val", boxes, "--images", p],
        "pretrain": [p, "--init", weights, "--held-out", "0.2"],
        "compare": [weights, p, "--seeds", "1"],
    }[command]
    return [command, *own, *"--model resnet10t --size 64 --batch-size 2 --epochs 1 --workers 0 --device cpu".split()]


class _Begun(Exception):
    pass


@pytest.fixture
def begun(monkeypatch):
    """What is about to be trained, instead of its training."""
    jobs = []

    def stop(self, run, *_args, **_options):
        jobs.append(self.plan.model if isinstance(self, Pretraining) else self.network)
        raise _Begun

    monkeypatch.setattr(Task, "fit", stop)
    monkeypatch.setattr(Pretraining, "train", stop)
    return jobs


@pytest.mark.parametrize("command", COMMANDS)
def test_a_part_of_a_file(command, places, begun, tmp_path):
    with pytest.raises(_Begun):
        main([*line(command, places, f"{places / 'two.pth'}:other"), "--out", str(tmp_path / "run")])
    expected = torch.load(places / "two.pth")
    starts = {tuple(value.flatten()[:9].tolist()) for value in begun[0].state_dict().values()}
    for part, there in (("one", False), ("other", True)):
        first = expected[f"{part}.net.layer3.0.conv1.weight"].flatten()[:9]
        assert (tuple(first.tolist()) in starts) == there


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_of_too_little(command, places, begun, tmp_path, capsys):
    asked = [*line(command, places, str(places / "part.pth")), "--out", str(tmp_path / "run")]
    assert main(asked) == 2
    assert "no weights for 64 % of the network" in capsys.readouterr().err and not (tmp_path / "run").exists()
    with pytest.raises(_Begun):
        main([*asked, "--partial"])
    first = torch.load(places / "part.pth")["layer1.0.conv1.weight"]
    assert any(value.shape == first.shape and torch.equal(value, first) for value in begun[0].state_dict().values())
    with pytest.raises(_Begun):  # the run's settings keep --partial
        main([command, "--resume", str(tmp_path / "run")])
