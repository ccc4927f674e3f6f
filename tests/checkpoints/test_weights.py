"""Existing weights into a backbone: every kind of source, and every way it can be wrong."""

import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from convspark.checkpoints.weights import load_backbone_weights, load_state, summarise
from convspark.errors import UsageError


def resnet(**options) -> nn.Module:
    return timm.create_model("test_resnet", **{"num_classes": 0, **options})


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours.keys() & theirs.keys())


@pytest.fixture
def source() -> nn.Module:
    torch.manual_seed(1)
    return resnet()


def test_safetensors_and_pytorch_files(source, tmp_path):
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    torch.save({"state_dict": source.state_dict(), "epoch": 3}, tmp_path / "b.pth")
    torch.save(source.state_dict(), tmp_path / "c.bin")
    for file in tmp_path.iterdir():
        target = resnet()
        report = load_backbone_weights(target, file)
        assert equal(target, source)
        assert not report.missing and not report.unused
        assert str(report) == f"{len(source.state_dict())}/{len(source.state_dict())} tensors loaded from {file}"


def test_reports_a_missing_classifier_as_a_module(source):
    target = resnet(num_classes=7)
    report = load_state(target, source.state_dict(), "x")
    total = len(target.state_dict())
    assert str(report) == f"{total - 2}/{total} tensors loaded from x, missing: fc.weight, fc.bias"
    assert equal(target, source)
    back = load_state(resnet(), target.state_dict(), "x")
    assert back.unused == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("prefix", ["module.", "model.backbone.", "state.encoder.sp_cnn."])
def test_any_prefix(source, prefix):
    state = {prefix + name: value for name, value in source.state_dict().items()}
    state["decoder.weight"] = torch.zeros(3)
    target = resnet()
    report = load_state(target, state, "x")
    assert equal(target, source) and not report.missing and not report.unused


def test_features_only_and_plain_models_share_weights(source):
    features = resnet(features_only=True, num_classes=1000)
    load_state(features, source.state_dict(), "x")
    back = resnet()
    assert not load_state(back, features.state_dict(), "x").missing
    assert equal(back, source)


@pytest.mark.parametrize("name", ["resnet_basic", "convnext"])
@pytest.mark.parametrize("kind", ["withdecoder_1kpretrained_spark_style", "1kpretrained_timm_style"])
def test_the_papers_checkpoints(golden_dir, name, kind):
    if name == "convnext":
        backbone = timm.models.ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 32, 64), num_classes=0)
    else:
        backbone = timm.models.ResNet(
            timm.models.resnet.BasicBlock, (1, 1, 1, 1), channels=(8, 16, 32, 64), stem_width=8, num_classes=0
        )
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    report = load_backbone_weights(backbone, golden_dir / f"{name}_{kind}.pth")
    assert len(report.loaded) > 20 and all(key.startswith("head.norm") for key in report.missing)
    first = "conv1.weight" if name == "resnet_basic" else "stem.0.weight"
    assert not torch.equal(before[first], backbone.state_dict()[first])


def test_refuses_another_shape_and_names_it(source):
    target = resnet(in_chans=5)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(UsageError, match=r"conv1\.0\.weight is 16x3x3x3, the network's is 16x5x3x3.*--model"):
        load_state(target, source.state_dict(), "x")
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


def test_refuses_when_nothing_fits(source):
    with pytest.raises(UsageError, match=r"none of the .* tensors in x"):
        load_state(timm.create_model("test_convnext"), source.state_dict(), "x")


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code in a checkpoint was run",))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(b"not weights at all"), "damaged|plain weights"),
        (lambda path: path.write_bytes(pickle.dumps(Trap(), protocol=2)), "plain weights|damaged"),
        (lambda path: torch.save({"trap": Trap()}, path), "plain weights"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no weights"),
        (lambda path: torch.save([1, 2], path), "holds no weights"),
    ],
)
def test_refuses_files_that_hold_no_plain_weights(tmp_path, make, words):
    path = tmp_path / "w.pth"
    make(path)
    with pytest.raises(UsageError, match=words):
        load_backbone_weights(resnet(), path)


def test_refuses_a_damaged_safetensors_file_an_empty_folder_and_an_unknown_name(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"12345678901")
    with pytest.raises(UsageError, match="safetensors"):
        load_backbone_weights(resnet(), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="holds no weights"):
        load_backbone_weights(resnet(), tmp_path)
    with pytest.raises(UsageError, match=r"did you mean resnet50"):
        load_backbone_weights(resnet(), "resnet5O.a1_in1k")


def test_summaries_are_short():
    assert summarise(["a.weight", "a.bias"]) == "a.weight, a.bias"
    assert summarise([f"a.{i}" for i in range(9)]) == "a.*"
    assert summarise([f"a.{i}.w" for i in range(9)]).endswith("(9 in all)")
