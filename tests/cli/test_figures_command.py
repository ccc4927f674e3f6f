"""`convspark figures`: of names, runs, the paper's files and modules."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from convspark import SparK, figures
from convspark.checkpoints.whole import load_whole
from convspark.cli.main import main
from convspark.data import few_pictures
from convspark.measure import drawn
from convspark.measure.drawn import Maker
from convspark.measure.masking import Layer
from convspark.measure.subject import find_subject
from convspark.pretraining.module import counted_grid
from convspark.seeds import Use

THREE = ["mask-pattern", "intensities", "features"]


def written(folder: Path) -> tuple[list[str], dict]:
    """Names of the figures, each of which is there twice and in the page, and what figures.json holds."""
    content = json.loads((folder / "figures.json").read_text())
    page = (folder / "README.md").read_text()
    names = [figure["name"] for figure in content["figures"]]
    files = {f"{name}.{ending}" for name in names for ending in ("pdf", "png")}
    assert {path.name for path in folder.iterdir()} == files | {"README.md", "figures.json"}
    for figure in content["figures"]:
        with Image.open(folder / f"{figure['name']}.png") as picture:
            assert picture.width == 1400
        assert f"![]({figure['name']}.png)" in page and figure["caption"][:40] in page
        assert (figure["paper"] or "has no such figure") in page
    return names, content


@pytest.fixture(scope="module")
def picture(folder) -> str:
    return str(next(iter(sorted(folder.rglob("*.png")))))


def test_of_a_name(picture, tmp_path, capsys):
    assert main(["figures", "test_resnet", picture, "-o", str(tmp_path / "f"), "--size", "64"]) == 0
    output = capsys.readouterr().out
    assert "no reconstructions: the weights are random, and have no decoder" in output and "README.md" in output
    names, content = written(tmp_path / "f")
    assert names == THREE and (content["weights"], content["size"]) == ("random", [64, 64])
    pattern, shades, _ = (figure["numbers"] for figure in content["figures"])
    assert pattern["filled_visible"] == [0.5] * len(pattern["layers"])  # 2 of 4 patches
    assert pattern["filled_dense"][-1] == 1
    assert sum(shades["whole"]) == pytest.approx(1) and shades["moved_by_zeros"] > shades["moved_by_leaving_out"]


def test_whoever_stops_it_finds_no_figures(picture, tmp_path, monkeypatch, capsys):
    def stop(_maker):
        raise KeyboardInterrupt

    monkeypatch.setattr(Maker, "intensities", stop)  # the second figure
    assert main(["figures", "test_resnet", picture, "-o", str(tmp_path / "f"), "--size", "64"]) == 130
    assert "nothing was written" in capsys.readouterr().err and not (tmp_path / "f").exists()


@pytest.fixture(scope="module")
def kept(folder, quick, tmp_path_factory) -> Path:
    """A run that kept the checkpoints of its three epochs."""
    out = tmp_path_factory.mktemp("kept") / "run"
    more = ["--epochs", "3", "--keep-epochs", "1", "--picture-epochs", "0", "--mask-ratio", "0.5"]
    assert main(["pretrain", str(folder), "--out", str(out), *quick, *more]) == 0
    return out


def test_of_a_run(kept, folder, tmp_path):
    assert main(["figures", str(kept), str(folder), "-o", str(tmp_path), "--ratios", "0.25,0.75"]) == 0
    names, content = written(tmp_path)
    assert names == [*THREE, "reconstructions", "epochs"]
    assert content["mask_ratio"] == 0.5 and len(content["pictures"]) == 4 and content["left_out"] is None
    ratios, epochs = (figure["numbers"] for figure in content["figures"][3:])
    assert (ratios["ratios"], epochs["epochs"]) == ([0.25, 0.75], [1, 2, 3])
    # By hand: the loss of each checkpoint, with the masks that `reconstruct` draws.
    whole = load_whole(kept)
    images, _ = few_pictures([str(folder)], whole.pixels, whole.size, whole.mean, whole.std, 4)
    grid = counted_grid(whole.model, images, 0, Use.HELD_OUT_MASK)
    for epoch, loss in zip(epochs["epochs"], epochs["loss"], strict=True):
        model = load_whole(kept, checkpoint=kept / "checkpoints" / f"epoch_{epoch}.ckpt").model
        with torch.no_grad():
            assert float(model(images, grid).loss) == pytest.approx(loss, rel=1e-5)
    assert len(set(epochs["loss"])) == 3


def test_masks_are_nested(kept, folder):
    subject = find_subject(str(kept))
    maker = Maker(subject, torch.zeros(2, 3, 64, 96), ["a", "b"], 0.5, 7, None)
    few, more = maker.grid(0.8).visible, maker.grid(0.4).visible
    assert few.sum() < more.sum() and not (few & ~more).any()
    assert maker.usual_ratios() == [0.3, 0.6, 0.9]
    assert Maker(subject, torch.zeros(1, 3, 32, 64), ["a"], 0.5, 0, None).usual_ratios() == [0.3, 0.6]


def test_titles_and_captions_tell_what_is_masked(kept):
    subject = find_subject(str(kept))
    maker = Maker(subject, torch.randn(1, 3, 64, 64), ["a"], 0.6, 0, None)
    described, figure = maker.reconstructions([0.3, 0.6])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "original",
        "25 % masked",
        "reconstructed",
        "50 % masked",
        "reconstructed",
    ]  # 1 and 2 of 4 patches
    assert described.caption.startswith("Pictures masked by 25 %, 50 %,")
    assert described.numbers["masked"] == [0.25, 0.5]


def test_a_layer_from_which_on_all_is_filled_has_no_emptier_one_after_it(monkeypatch):
    """As in a ResNet-18-D, whose shortcut pools the map before a block after the block's convolutions are full."""
    shares = [2, 4, 3, 4, 4]  # of 4 patches
    layers = [Layer(f"layer{n}", np.arange(4).reshape(1, 2, 2) < n, np.ones((1, 2, 2), bool)) for n in shares]
    layers = [replace(layer, name="abcde"[place]) for place, layer in enumerate(layers)]
    monkeypatch.setattr(drawn, "mask_pattern", lambda *_: layers)
    maker = Maker(find_subject("test_resnet", size=64), torch.zeros(1, 3, 64, 64), ["a"], 0.5, 0, None)
    assert "all of them from d on" in maker.pattern()[0].caption


@pytest.mark.slow
def test_of_an_export_and_of_a_file(kept, picture, tmp_path, capsys):
    assert main(["figures", str(kept / "export"), picture, "-o", str(tmp_path / "a")]) == 0
    assert "no reconstructions: the weights have no decoder" in capsys.readouterr().out
    file = str(kept / "export" / "model.safetensors")
    assert main(["figures", "test_resnet", picture, "--weights", file, "--size", "64", "-o", str(tmp_path / "b")]) == 0
    one, other = (json.loads((tmp_path / name / "figures.json").read_text()) for name in "ab")
    assert one["figures"][2]["numbers"] == other["figures"][2]["numbers"]
    assert main(["figures", "test_resnet", picture, "--size", "64", "-o", str(tmp_path / "c")]) == 0
    random = json.loads((tmp_path / "c" / "figures.json").read_text())
    assert random["figures"][2]["numbers"] != other["figures"][2]["numbers"]


@pytest.mark.slow
def test_of_a_file_of_the_papers(golden_dir, picture, tmp_path):
    block = timm.models.resnet.BasicBlock
    network = timm.models.resnet.ResNet(block, (1, 1, 1, 1), channels=(8, 16, 32, 64), stem_width=8, num_classes=0)
    file = str(golden_dir / "resnet_basic_withdecoder_1kpretrained_spark_style.pth")
    done = figures(file, [picture], model=network, output=str(tmp_path))
    assert [figure.name for figure in done.figures] == [*THREE, "reconstructions"]
    assert done.figures[3].numbers["ratios"] == [0.3, 0.6, 0.9]


class Own(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = (channels, 8, 8, 16)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(sizes))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return x


@pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_of_a_module_of_any_channels(channels, picture, tmp_path):
    norm = {"mean": [0.5] * channels, "std": [0.3] * channels}
    if channels == 5:
        picture = str(tmp_path / "bands.npy")
        np.save(picture, np.random.default_rng(0).random((5, 48, 48)).astype(np.float32))
    done = figures(Own(channels), [picture], size=32, output=str(tmp_path / "f"), **norm)
    names, content = written(tmp_path / "f")
    assert names == THREE and content["network"] == "Own" and content["patch_size"] == [8, 8]
    assert done.left_out == "a module has no decoder; pass a SparK"


@pytest.mark.slow
def test_of_a_model(picture, tmp_path):
    model = SparK(Own(3), image_size=32, mask_ratio=0.5, prove=False)
    done = figures(model, [picture], output=str(tmp_path), ratios=[0.5])
    assert [figure.name for figure in done.figures] == [*THREE, "reconstructions"]
    assert model.mask_ratio == 0.5 and model.training


@pytest.mark.slow
def test_channels_of_a_name(picture, tmp_path):
    line = ["figures", "test_resnet", picture, "--channels", "1", "--size", "64", "-o", str(tmp_path)]
    assert main(line) == 0
    assert written(tmp_path)[0] == THREE


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["test_resnot", "PICTURE"], 2, "did you mean test_resnet"),
        (["test_resnet", "MISSING"], 3, "does not exist"),
        (["test_resnet", "PICTURE", "--size", "60"], 2, "expected multiples of the patch of 32x32 pixels"),
        (["test_resnet", "PICTURE", "--mask-ratio", "1.5"], 2, "mask_ratio=1.5"),
        (["RUN", "PICTURE", "--ratios", "0.5,0"], 2, "mask_ratio=0"),
        (["test_resnet", "PICTURE", "-o", "PICTURE"], 2, "which is a file"),
        (["test_resnet", "PICTURE", "--show", "9"], 2, "show is [9]"),
        (["vit_tiny_patch16_224", "PICTURE"], 2, "not a convolutional network"),
        (["RUN"], 2, "PICTURE"),
    ],
)
def test_what_cannot_be_is_told(kept, picture, tmp_path, monkeypatch, capsys, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(kept), "PICTURE": picture, "MISSING": "missing.png"}
    assert main(["figures", *(places.get(word, word) for word in arguments)]) == code
    captured = capsys.readouterr()
    assert words in captured.err and not captured.out
    assert not (tmp_path / "figures").exists()
