"""The paper's checkpoints: read, written back the same, and refused where they do not fit."""

import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from convspark import PatchGrid, SparK
from convspark.checkpoints import paper
from convspark.errors import UsageError

WHOLE = "_withdecoder_1kpretrained_spark_style.pth"
BACKBONE = "_1kpretrained_timm_style.pth"


def resnet_basic(**options) -> nn.Module:
    block = timm.models.resnet.BasicBlock
    return timm.models.resnet.ResNet(block, (1, 1, 1, 1), channels=(8, 16, 32, 64), stem_width=8, **options)


def convnext(**options) -> nn.Module:
    return timm.models.convnext.ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 32, 64), **options)


def small(backbone: nn.Module) -> SparK:
    return SparK(backbone, image_size=64, mask_ratio=0.5, decoder="paper", prove=False)


BUILD = {"resnet_basic": resnet_basic, "convnext": convnext}


@pytest.fixture(params=BUILD)
def kind(request) -> str:
    return request.param


def weights_of(state: dict) -> dict[str, Tensor]:
    dead = ("imn_m", "imn_s", "norm_black")
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and key not in dead}


def test_the_authors_files_come_back_as_they_were(golden_dir, kind):
    path = golden_dir / (kind + WHOLE)
    theirs = torch.load(path, weights_only=True)["module"]
    model = paper.load(path, BUILD[kind]())
    assert (model.image_size, model.mask_ratio, model.decoder_width) == ((96, 96), 0.6, 64)
    assert model.densify_norm == {"resnet_basic": "batch", "convnext": "layer"}[kind]
    ours = paper.state_dict(model)
    assert list(ours) == list(theirs)  # in their order, too
    assert ours["config"] == theirs["config"]
    assert len(weights_of(theirs)) > 100
    for name, value in weights_of(theirs).items():
        assert torch.equal(ours[name], value), name
    for name in ("imn_m", "imn_s", "norm_black"):
        assert ours[name].shape == theirs[name].shape and ours[name].dtype == theirs[name].dtype


def test_a_file_a_dictionary_and_its_module_level_are_the_same(golden_dir, kind):
    path = golden_dir / (kind + WHOLE)
    whole = torch.load(path, weights_only=True)
    bare = {key: value for key, value in whole["module"].items() if key != "config" and not key.startswith("imn")}
    states = [paper.state_dict(paper.load(source, BUILD[kind]())) for source in (path, str(path), whole, bare)]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(value, states[0][name]) for name, value in weights_of(state).items())


def test_settings_can_be_given(golden_dir, kind):
    model = paper.load(golden_dir / (kind + WHOLE), BUILD[kind](), image_size=(64, 128), mask_ratio=0.5)
    assert (model.image_size, model.mask_ratio) == ((64, 128), 0.5)


@pytest.mark.parametrize("suffix", [WHOLE, BACKBONE])
def test_the_backbone_alone(golden_dir, kind, suffix):
    backbone = BUILD[kind]()
    weights = paper.backbone_state_dict(golden_dir / (kind + suffix), backbone)
    missing, unexpected = backbone.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith(("fc.", "head.")) for name in missing)
    if suffix == WHOLE:
        whole = paper.load(golden_dir / (kind + WHOLE), BUILD[kind]()).backbone.state_dict()
        assert all(torch.equal(value, whole[name]) for name, value in weights.items())


def test_both_files_of_a_convnext_have_the_same_keys_once_read(golden_dir):
    """timm's own translation of the official names is the truth."""
    path = golden_dir / ("convnext" + BACKBONE)
    backbone = convnext(num_classes=0)
    theirs = timm.models.convnext.checkpoint_filter_fn(torch.load(path, weights_only=True), backbone)
    ours = paper.backbone_state_dict(path, backbone)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "build",
    [
        lambda: timm.create_model("resnet18"),
        lambda: timm.create_model("convnext_atto"),
        lambda: timm.create_model("convnext_atto", conv_mlp=False),
        lambda: timm.create_model("convnext_atto", features_only=True),
        pytest.param(lambda: timm.create_model("resnet26d", features_only=True), marks=pytest.mark.slow),
    ],
    ids=["resnet", "convnext-conv-mlp", "convnext", "convnext-features", "resnet-d-features"],
)
def test_load_is_the_inverse_of_state_dict(build):
    torch.manual_seed(0)
    model = small(build()).train()
    model(torch.randn(2, 3, 64, 64)).loss.backward()
    model.eval()
    state = paper.state_dict(model)
    assert not any(value.requires_grad for value in weights_of(state).values())
    again = paper.load(state, build()).eval()
    grid = PatchGrid(torch.tensor([[[1, 0], [0, 1]]]).bool())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(images, grid).prediction, model(images, grid).prediction)
    assert (again.image_size, again.mask_ratio) == ((64, 64), 0.5)


def test_convnext_is_written_with_the_official_names():
    state = paper.state_dict(small(timm.create_model("convnext_atto")))
    prefix = "sparse_encoder.sp_cnn."
    names = {re.sub(r"\d+", "#", key.removeprefix(prefix)) for key in state if key.startswith(prefix)}
    parts = ("gamma", *(f"{p}.{q}" for p in ("dwconv", "norm", "pwconv#", "pwconv#") for q in ("weight", "bias")))
    expected = {f"stages.#.#.{part}" for part in parts}
    assert names == expected | {"downsample_layers.#.#.weight", "downsample_layers.#.#.bias"}
    # the official network has Linear layers where timm may have 1x1 convolutions
    assert state[prefix + "stages.0.0.pwconv1.weight"].shape == (160, 40)


def test_a_model_with_another_decoder_has_no_such_layout():
    model = SparK(resnet_basic(), image_size=64, mask_ratio=0.5, decoder="lean", prove=False)
    with pytest.raises(UsageError, match=r"decoder is the lean one, .*decoder='paper'"):
        paper.state_dict(model)


def small_state(**changes) -> dict:
    state = dict(paper.state_dict(small(resnet_basic())))
    return state | changes


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: "nowhere.pth", "source='nowhere.pth' is no file"),
        (lambda: {"conv1.weight": torch.zeros(1)}, r"holds no decoder .* backbone_state_dict"),
        (lambda: small_state(extra=torch.zeros(1)), r"180 of 180 tensors found; 1 of no place in it: extra"),
        (
            lambda: small_state(**{"mask_tokens.0": torch.zeros(1, 7, 1, 1)}),
            r"1 of another shape: mask_tokens.0 \(1, 7, 1, 1\) instead of \(1, 64, 1, 1\)",
        ),
        (
            lambda: {key: value for key, value in small_state().items() if ".conv1." not in key},
            r"175 of 180 tensors found; 5 missing: sparse_encoder.sp_cnn.conv1.weight, .*, …\. Expected",
        ),
    ],
)
def test_sources_that_cannot_be(source, message):
    with pytest.raises(UsageError, match=message):
        paper.load(source(), resnet_basic())


def test_another_network_is_refused(golden_dir):
    with pytest.raises(UsageError, match="does not fit the backbone"):
        paper.load(golden_dir / ("resnet_basic" + WHOLE), convnext())


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


@pytest.mark.parametrize("content", [b"", b"not weights", pickle.dumps(Trap(), protocol=2)])
def test_files_that_are_no_weights_are_refused_and_run_no_code(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as weights"):
        paper.load(tmp_path / "bad.pth", resnet_basic())
    torch.save({"module": {}, "args": Trap()}, tmp_path / "worse.pth")
    with pytest.raises(UsageError, match="could run any code"):
        paper.backbone_state_dict(tmp_path / "worse.pth", resnet_basic())
    assert not Path("trapped").exists()


def test_layouts_are_told_apart(golden_dir):
    for name in ("resnet_basic" + WHOLE, "convnext" + WHOLE, "convnext" + BACKBONE):
        assert paper.is_paper_layout(torch.load(golden_dir / name, weights_only=True)), name
    assert not paper.is_paper_layout(resnet_basic().state_dict())
    assert not paper.is_paper_layout(convnext().state_dict())
