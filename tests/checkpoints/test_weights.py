"""Existing weights into a backbone: every kind of source, and every way it can be wrong."""

import argparse
import contextlib
import copy
import fractions
import pickle
import re

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


@pytest.mark.parametrize("level", ["state_dict", "model", "module"])
def test_weights_beside_an_accuracy_that_is_a_tensor(source, level, tmp_path):
    """As PyTorch's own example for ImageNet saves them."""
    file = tmp_path / "weights.pth.tar"
    torch.save({"epoch": 3, level: source.state_dict(), "best_acc1": torch.tensor(76.1)}, file)
    backbone = resnet()
    report = load_backbone_weights(backbone, file)
    assert not report.missing and not report.unused
    assert torch.equal(backbone.conv1[0].weight, source.conv1[0].weight)


def test_a_damage_in_the_midst_of_tensors_is_told(source, tmp_path):
    """Torch does not look at the checksums."""
    state = source.state_dict()
    torch.save(state, tmp_path / "w.pth")
    content = bytearray((tmp_path / "w.pth").read_bytes())
    place = content.index(state["conv1.0.weight"].numpy().tobytes())
    content[place : place + 8] = bytes(8)
    (tmp_path / "w.pth").write_bytes(content)
    assert not torch.load(tmp_path / "w.pth")["conv1.0.weight"].equal(state["conv1.0.weight"])
    with pytest.raises(UsageError, match=r"w\.pth is damaged: the checksum of .* differs"):
        load_backbone_weights(resnet(), tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_the_users_error(source, zipped, tmp_path):
    """Some bytes of a file changed, or its end cut off."""
    file, few = tmp_path / "weights.pth", dict(list(source.state_dict().items())[:3])
    torch.save(few, file, _use_new_zipfile_serialization=zipped)
    whole, random = file.read_bytes(), torch.Generator().manual_seed(0)
    for _ in range(60):
        spoilt = bytearray(whole)
        for place in torch.randint(min(len(whole), 800), (3,), generator=random).tolist():
            spoilt[place] = int(torch.randint(256, (1,), generator=random))
        file.write_bytes(spoilt[: int(torch.randint(len(whole), (1,), generator=random)) + 1])
        with contextlib.suppress(UsageError):
            load_backbone_weights(resnet(), file, partial=True)


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
    with pytest.raises(UsageError, match=r"conv1\.0\.weight is 16x2x3x3, the network's is 16x5x3x3.*--model"):
        load_state(target, resnet(in_chans=2).state_dict(), "x")
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


@pytest.mark.parametrize("channels", [1, 4])
def test_colour_weights_take_other_channels_as_timm_fits_them(source, tmp_path, channels):
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    target = resnet(in_chans=channels)
    report = load_backbone_weights(target, tmp_path / "w.safetensors")
    overlay = {"file": str(tmp_path / "w.safetensors"), "num_classes": 0}
    timms = resnet(in_chans=channels, pretrained=True, pretrained_cfg_overlay=overlay)
    assert equal(target, timms)
    assert report.adapted == ["conv1.0.weight"] and "fitted to the images' channels" in str(report)


def test_one_of_two_networks_in_a_file_is_not_taken_by_chance(source, tmp_path):
    state = source.state_dict()
    other = {name: value + 1 for name, value in state.items()}
    pair = (("teacher", other), ("student", state))
    both = {f"{part}.net.{name}": value for part, tensors in pair for name, value in tensors.items()}
    torch.save(both, tmp_path / "two.pth")
    with pytest.raises(
        UsageError, match=r"several networks that fit: student.net, teacher.net. Choose one .*two.pth:t"
    ):
        load_backbone_weights(copy.deepcopy(source), tmp_path / "two.pth")
    for part, tensors in pair:
        target = copy.deepcopy(source)
        load_backbone_weights(target, f"{tmp_path / 'two.pth'}:{part}")
        assert all(torch.equal(value, tensors[name]) for name, value in target.state_dict().items())
    twice = {f"{part}.{name}": value for part in ("a", "b") for name, value in state.items()}
    torch.save(twice, tmp_path / "same.pth")  # of which either will do
    assert not load_backbone_weights(copy.deepcopy(source), tmp_path / "same.pth").missing


def test_several_networks_without_the_classifier_are_told_too():
    network = timm.create_model("test_resnet", num_classes=3)
    own = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    both = {f"{part}.{name}": value + i for i, part in enumerate(("teacher", "student")) for name, value in own.items()}
    with pytest.raises(UsageError, match="several networks that fit: student, teacher"):
        load_state(network, both, "file")
    assert len(load_state(network, both, "file", "student").missing) == 2


def test_levels_of_any_name_are_prefixes(source, tmp_path):
    other = {name: value + 1 for name, value in source.state_dict().items()}
    torch.save({"teacher": source.state_dict(), "epoch": 3, "optimizer": {"lr": 1}}, tmp_path / "one.pth")
    torch.save({"student": other, "teacher": source.state_dict()}, tmp_path / "two.pth")
    for place in ("one.pth", "two.pth:teacher"):
        target = resnet()
        assert not load_backbone_weights(target, f"{tmp_path / place}").missing
        assert equal(target, source)
    with pytest.raises(UsageError, match="several networks that fit: student, teacher"):
        load_backbone_weights(resnet(), tmp_path / "two.pth")


def test_averaged_weights_beside_the_raw_ones_are_told_and_can_be_chosen(source, tmp_path, caplog):
    """As the paper's fine-tuning keeps them, and those of others, as `model_ema`."""
    average = {name: value + 1 for name, value in source.state_dict().items()}
    file = tmp_path / "resnet50_1kfinetuned_best_ema.pth"
    torch.save({"module": source.state_dict(), "ema": average, "optimizer": {"state": {}}, "epoch": 3}, file)
    with caplog.at_level("INFO"):
        for part, expected in (("", source.state_dict()), (":module", source.state_dict()), (":ema", average)):
            target = resnet()
            assert not load_backbone_weights(target, f"{file}{part}").missing
            assert all(torch.equal(value, expected[name]) for name, value in target.state_dict().items()), part
    assert caplog.text.count("also holds ema, other weights of the same network: FILE:ema takes them") == 1


def test_a_part_of_a_file_by_its_prefix(source, tmp_path):
    other = resnet()
    state = {f"student.{n}": t for n, t in source.state_dict().items()}
    state |= {f"teacher.{n}": t for n, t in other.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    for prefix, expected in (("student", source), ("teacher.", other)):
        target = resnet()
        report = load_backbone_weights(target, f"{tmp_path / 'w.pth'}:{prefix}")
        assert equal(target, expected) and not report.missing
    with pytest.raises(UsageError, match=r"begins with 'encoder\.'; there: student\.\*, teacher\.\*"):
        load_backbone_weights(resnet(), f"{tmp_path / 'w.pth'}:encoder")


OFFICIAL = (
    (r"^stem\.(\d)\.", r"downsample_layers.0.\1."),
    (r"^stages\.(\d)\.downsample\.(\d)\.", r"downsample_layers.\1.\2."),
    (r"^stages\.(\d)\.blocks\.(\d)\.", r"stages.\1.\2."),
    (r"conv_dw", "dwconv"),
    (r"mlp\.fc", "pwconv"),
    (r"mlp\.grn\.weight", "grn.gamma"),
    (r"mlp\.grn\.bias", "grn.beta"),
    (r"^head\.norm", "norm"),
)


def official_convnext_v2():
    torch.manual_seed(0)
    network = timm.models.ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 32, 64), num_classes=0, use_grn=True)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    state = {}
    for name, tensor in network.state_dict().items():
        for pattern, replacement in OFFICIAL:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor.view(1, 1, 1, -1) if "grn" in name else tensor
    return network, state


@pytest.mark.parametrize("prefix", ["", "module.", "student.backbone."])
def test_names_that_timm_knows_are_changed_by_timm(tmp_path, prefix):
    """Those of the official ConvNeXt-V2, whose GRNs have other shapes as well."""
    network, state = official_convnext_v2()
    state = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({"model": state, "args": argparse.Namespace(lr=1)}, tmp_path / "w.pth")
    target = timm.models.ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 32, 64), num_classes=0, use_grn=True)
    assert not load_backbone_weights(target, tmp_path / "w.pth").missing
    assert equal(target, network)


def test_refuses_to_leave_a_whole_kind_of_tensors_random_or_most_of_a_network(source, tmp_path):
    _, state = official_convnext_v2()
    torch.save({n: t for n, t in state.items() if "grn" not in n}, tmp_path / "w.pth")
    target = timm.models.ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 32, 64), num_classes=0, use_grn=True)
    with pytest.raises(UsageError, match=r"all of \*\.mlp\.grn\.weight, \*\.mlp\.grn\.bias.*--partial"):
        load_backbone_weights(target, tmp_path / "w.pth")
    assert len(load_backbone_weights(target, tmp_path / "w.pth", partial=True).missing) == 10
    torch.save({n: t for n, t in source.state_dict().items() if n.startswith(("conv1", "bn1"))}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"no weights for \d\d % of the network.*--partial"):
        load_backbone_weights(resnet(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.to("meta"), r"no plain numbers for conv1.0.weight .without data."),
        (lambda t: t.to(torch.int8), "conv1.*int8, strided"),
        (lambda t: t.to_sparse(), "conv1.*float32, sparse_coo"),
        (lambda t: t.to(torch.complex64), "conv1.*complex64"),
        (lambda t: t / 0, "not finite .NaN, infinity., in conv1.0.weight"),
        (lambda t: t.double() + 1e300, "not finite"),
    ],
)
def test_refuses_tensors_without_plain_numbers(source, change, words):
    state = source.state_dict()
    state["conv1.0.weight"] = change(state["conv1.0.weight"])
    with pytest.raises(UsageError, match=words):
        load_state(resnet(), state, "w.pth")


def test_a_file_of_zeros_is_refused(source):
    """As a full disk leaves it; single layers of zeros are some networks' own."""
    state = source.state_dict()
    state["conv1.0.weight"] = torch.zeros_like(state["conv1.0.weight"])
    assert "conv1.0.weight" in load_state(resnet(), state, "w.pth").loaded
    with pytest.raises(UsageError, match=r"w\.pth holds nothing but zeros"):
        load_state(resnet(), {name: torch.zeros_like(tensor) for name, tensor in state.items()}, "w.pth")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_takes_floats_of_any_size(source, kind):
    state = {n: t.to(kind) if t.is_floating_point() else t for n, t in source.state_dict().items()}
    target = resnet()
    load_state(target, state, "w.pth")
    assert torch.equal(target.conv1[0].weight, state["conv1.0.weight"].float())


def test_infinities_that_a_network_has_itself_are_taken():
    """As masks of attention have them."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert "mask" in load_state(network, copy.deepcopy(network).state_dict(), "w.pth").loaded


def test_says_which_foreign_objects_a_file_holds(source, tmp_path):
    torch.save({"model": source.state_dict(), "when": fractions.Fraction(1, 2)}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"objects of type fractions\.Fraction\. Code in a file") as caught:
        load_backbone_weights(resnet(), tmp_path / "w.pth")
    assert "\x1b" not in str(caught.value) and "torch.load" not in str(caught.value)


def test_refuses_when_nothing_fits(source):
    with pytest.raises(UsageError, match=r"none of the .* tensors in x"):
        load_state(timm.create_model("test_convnext"), source.state_dict(), "x")


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code in a checkpoint was run",))


def holding_itself():
    content = {}
    content["model"] = content
    return content


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(b"not weights at all"), "damaged|plain weights"),
        (lambda path: path.write_bytes(pickle.dumps(Trap(), protocol=2)), "plain weights|damaged"),
        (lambda path: torch.save({"trap": Trap()}, path), "plain weights"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no weights"),
        (lambda path: torch.save([1, 2], path), "holds no weights"),
        (lambda path: torch.save(holding_itself(), path), "holds no weights"),
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
