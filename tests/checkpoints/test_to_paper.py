"""The paper's files in every layout: used as any weights are, and written so that the paper's code reads them."""

import logging

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from convspark.checkpoints.origin import find_weights
from convspark.checkpoints.whole import load_whole
from convspark.cli.main import main
from convspark.errors import UsageError

WHOLE = "{}_withdecoder_1kpretrained_spark_style.pth"
ENCODER = "{}_1kpretrained_timm_style.pth"
LAYOUTS = ("whole", "whole bare", "encoder", "encoder in module")

# The networks of the golden files, as a user has them in code of his own.
CODE = """
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, ResNet

def resnet_basic():
    return ResNet(BasicBlock, (1, 1, 1, 1), channels=(8, 16, 32, 64), stem_width=8, num_classes=0, global_pool="")

def convnext():
    return ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 32, 64), num_classes=0)
"""


@pytest.fixture(params=["resnet_basic", "convnext"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A current folder with the networks' code, and a picture."""
    (tmp_path / "networks_of_the_paper.py").write_text(CODE)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def in_layout(golden_dir, kind: str, layout: str, folder) -> str:
    """One of the authors' files, saved in one of the layouts."""
    whole = layout.startswith("whole")
    content = torch.load(golden_dir / (WHOLE if whole else ENCODER).format(kind), weights_only=True)
    content = {"whole bare": lambda: content["module"], "encoder in module": lambda: {"module": content}}.get(
        layout, lambda: content
    )()
    torch.save(content, folder / "weights.pth")
    return str(folder / "weights.pth")


def values_of(golden_dir, kind: str) -> dict[str, Tensor]:
    """The backbone's tensors in timm's names; timm's own translation of the official ConvNeXt's is the truth."""
    state = torch.load(golden_dir / ENCODER.format(kind), weights_only=True)
    if kind == "convnext":
        network = timm.models.convnext.ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 32, 64), num_classes=0)
        state = timm.models.convnext.checkpoint_filter_fn(state, network)
    return state


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_can_be_weights(golden_dir, kind, layout, place):
    weights = in_layout(golden_dir, kind, layout, place)
    built = find_weights(weights, f"networks_of_the_paper:{kind}").build().state_dict()
    expected = values_of(golden_dir, kind)
    assert set(built) - set(expected) <= {"head.norm.weight", "head.norm.bias"}
    assert all(torch.equal(built[name], value) for name, value in expected.items())


def same(ours: object, theirs: object, at: str) -> None:
    """Equal in every key, its place, type and shape, and in every value but those of buffers that nothing reads."""
    assert type(ours) is type(theirs) or isinstance(theirs, dict), at
    if isinstance(theirs, dict):
        assert isinstance(ours, dict) and list(ours) == list(theirs), at
        for key, value in theirs.items():
            same(ours[key], value, key)
    elif isinstance(theirs, Tensor):
        assert isinstance(ours, Tensor) and (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), at
        assert at in ("imn_m", "imn_s", "norm_black") or torch.equal(ours, theirs), at
    else:
        assert ours == theirs, at


@pytest.mark.parametrize("layout", ["whole", "whole bare"])
def test_what_is_written_is_what_the_authors_wrote(golden_dir, kind, layout, place, capsys):
    weights = in_layout(golden_dir, kind, layout, place)
    line = ["export", weights, "--to", "paper", "--model", f"networks_of_the_paper:{kind}", "--out", "written"]
    assert main(line) == 0
    assert "2 files, read back, every tensor equal" in capsys.readouterr().out
    written = place / "written"
    assert {file.name for file in written.iterdir()} == {WHOLE.format(kind), ENCODER.format(kind), "README.md"}
    theirs = torch.load(golden_dir / ENCODER.format(kind), weights_only=True)
    same(torch.load(written / ENCODER.format(kind), weights_only=True), dict(theirs), "encoder")
    ours = torch.load(written / WHOLE.format(kind), weights_only=True)
    theirs = torch.load(golden_dir / WHOLE.format(kind), weights_only=True)
    same(ours["module"], dict(theirs["module"]), "module")
    # Where a file has no optimiser's state, the authors' code starts with a new optimiser.
    kept = set(theirs) - {"optimizer"} - ({"epoch"} if layout == "whole bare" else set())
    assert set(ours) == kept
    assert all(type(ours[key]) is type(theirs[key]) for key in kept - {"module"})
    assert all(ours[key] == theirs[key] for key in kept & {"input_size", "arch", "epoch", "is_pretrain"})


def test_an_encoder_is_written_without_a_decoder(golden_dir, kind, place, capsys):
    weights = in_layout(golden_dir, kind, "encoder", place)
    line = ["export", weights, "--to", "paper", "--model", f"networks_of_the_paper:{kind}", "--out", "written"]
    assert main(line) == 0
    assert f"no {WHOLE.format(kind)}: the weights have no decoder" in capsys.readouterr().out
    theirs = torch.load(golden_dir / ENCODER.format(kind), weights_only=True)
    same(torch.load(place / "written" / ENCODER.format(kind), weights_only=True), dict(theirs), "encoder")


@pytest.mark.parametrize("layout", ["whole", "whole bare"])
def test_a_file_reconstructs(golden_dir, kind, layout, place):
    weights = in_layout(golden_dir, kind, layout, place)
    whole = load_whole(weights, f"networks_of_the_paper:{kind}")
    assert (whole.size, whole.model.mask_ratio) == ((96, 96), 0.6)
    assert whole.epoch == (3 if layout == "whole" else None)
    line = ["reconstruct", weights, "picture.png", "--model", f"networks_of_the_paper:{kind}", "-o", "out.png"]
    assert main(line) == 0
    with Image.open("out.png") as page:
        assert page.size[0] > 3 * 192


def test_what_cannot_reconstruct_is_told(golden_dir, place, capsys):
    encoder = in_layout(golden_dir, "resnet_basic", "encoder", place)
    of = ["picture.png", "--model", "networks_of_the_paper:resnet_basic"]
    assert main(["reconstruct", encoder, *of]) == 2
    assert "holds no decoder" in capsys.readouterr().err
    whole = in_layout(golden_dir, "resnet_basic", "whole", place)
    assert main(["reconstruct", whole, "picture.png", "--model", "networks_of_the_paper:convnext"]) == 2
    assert "weights.pth' does not fit the backbone" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"weights\.pth does not name its network: add --model"):
        load_whole(whole)


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Runs of one step from the authors' weights, by the name of the decoder."""

    def make(decoder: str, init: str, model: str):
        root = tmp_path_factory.mktemp("run")
        rng = np.random.default_rng(0)
        for index in range(6):
            (root / "p").mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (70, 70, 3), dtype=np.uint8)).save(root / "p" / f"{index}.png")
        flags = "--size 64 --batch-size 4 --epochs 1 --workers 0 --device cpu --precision fp32 --picture-epochs 0"
        line = ["pretrain", str(root / "p"), "--out", str(root / "run"), "--model", model, "--init", init]
        assert main([*line, "--decoder", decoder, "--decoder-width", "32", *flags.split()]) == 0
        return root / "run"

    return make


def test_a_run_from_the_authors_weights_becomes_their_files(golden_dir, place, run_of, caplog, capsys):
    init = in_layout(golden_dir, "resnet_basic", "whole bare", place)
    with caplog.at_level(logging.INFO):
        run = run_of("paper", init, "networks_of_the_paper:resnet_basic")
    assert "78/78 tensors loaded from" in caplog.text + (run / "log.txt").read_text()
    assert main(["export", str(run), "--to", "paper", "--trust-code"]) == 0
    folder = next(run.glob("*-paper"))
    file = folder / WHOLE.format("resnet_basic")
    content = torch.load(file, weights_only=True)
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert (content["input_size"], content["epoch"]) == (64, kept["epoch"])
    trained = {name.removeprefix("model."): value for name, value in kept["state_dict"].items()}
    module = content["module"]
    for theirs, ours in (  # by hand: what the authors call a weight of each part
        ("sparse_encoder.sp_cnn.layer3.0.conv2.weight", "backbone.layer3.0.conv2.weight"),
        ("densify_norms.0.running_mean", "densify.0.norm.running_mean"),
        ("densify_projs.3.weight", "densify.3.project.weight"),
        ("mask_tokens.2", "densify.2.mask_token"),
        ("dense_decoder.dec.4.up_sample.bias", "decoder.blocks.4.up.bias"),
        ("dense_decoder.dec.0.conv.4.weight", "decoder.blocks.0.norm2.weight"),
        ("dense_decoder.proj.bias", "decoder.head.bias"),
    ):
        assert torch.equal(module[theirs].flatten(), trained[ours].flatten()), theirs
    assert len(module) == len(trained) + 4  # three dead buffers, and config
    # The file gives the same picture as the run itself.
    assert main(["reconstruct", str(run), "picture.png", "-o", "run.png", "--trust-code"]) == 0
    assert (
        main(
            ["reconstruct", str(file), "picture.png", "-o", "file.png", "--model", "networks_of_the_paper:resnet_basic"]
        )
        == 0
    )
    assert (place / "run.png").read_bytes() == (place / "file.png").read_bytes()


def test_a_run_with_the_lean_decoder_becomes_an_encoder_and_says_why(golden_dir, place, run_of, capsys):
    init = in_layout(golden_dir, "convnext", "encoder", place)
    run = run_of("lean", init, "networks_of_the_paper:convnext")
    assert main(["export", str(run), "--to", "paper", "--trust-code", "--out", "written"]) == 0
    output = capsys.readouterr().out
    assert "1 file, read back" in output and "its decoder is the lean one" in output and "--decoder paper" in output
    assert "its decoder is the lean one" in (place / "written" / "README.md").read_text()
    written = torch.load(place / "written" / ENCODER.format("convnext"), weights_only=True)
    theirs = torch.load(golden_dir / ENCODER.format("convnext"), weights_only=True)
    assert list(written) == list(theirs)
    assert {name: value.shape for name, value in written.items()} == {name: v.shape for name, v in theirs.items()}
    trained = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    name = "stages.2.blocks.1.mlp.fc1.weight"
    assert torch.equal(written["stages.2.1.pwconv1.weight"].flatten(), trained[f"model.backbone.{name}"].flatten())


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"image_size": (64, 96)}, "64x96 pixels"), ({"patch_size": 64, "image_size": 128}, "patches are 64x64 pixels")],
)
def test_what_the_layout_cannot_say_is_told(changes, words):
    from convspark import SparK
    from convspark.checkpoints import paper

    network = timm.create_model("test_resnet", num_classes=0)
    model = SparK(network, **{"decoder": "paper", "decoder_width": 32, "mask_ratio": 0.5, "prove": False, **changes})
    assert words in str(paper.no_place_for(model))
