"""Exports for other libraries: loaded by those that are installed; for the rest, names are compared."""

import copy
import re

import numpy as np
import pytest
import timm
import torch
from torchvision import models

from convspark.checkpoints import targets
from convspark.checkpoints.card import read_facts
from convspark.checkpoints.export import _untrained, _warn_of_untrained, export
from convspark.checkpoints.origin import find_weights
from convspark.checkpoints.to_timm import export_timm
from convspark.cli.main import main
from convspark.errors import ConvsparkError, UsageError

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def network(name, **options):
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=0, **options).eval()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return backbone


def test_a_resnet_becomes_torchvisions(tmp_path):
    backbone = network("resnet18")
    written = targets.export_torchvision(backbone, "resnet18", tmp_path / "r.pth", (64, 64))
    theirs = models.resnet18()
    theirs.load_state_dict(torch.load(written.file, weights_only=True), strict=False)
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        assert torch.allclose(theirs.eval()(IMAGES), backbone(IMAGES), atol=1e-4)


def test_what_torchvisions_networks_are_not_is_told(tmp_path):
    grey = network("resnet18", in_chans=1)
    with pytest.raises(UsageError, match="these weights are of images of 1 channel: use --to timm or onnx"):
        targets.export_torchvision(grey, "resnet18", tmp_path / "r.pth", (64, 64))
    dilated = network("resnet18", output_stride=16)
    with pytest.raises(ConvsparkError, match="built with arguments"):
        targets.export_torchvision(dilated, "resnet18", tmp_path / "r.pth", (64, 64))


def test_arguments_of_a_network_that_a_file_does_not_say_are_told(tmp_path, caplog):
    norm = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "image_size": (64, 64)}
    for place, options in (("dilated", {"output_stride": 16}), ("plain", {})):
        export_timm(network("resnet18", **options), tmp_path / place, **norm)
        caplog.clear()
        export(str(tmp_path / place), to="mmdet", out=str(tmp_path / f"{place}.pth"))
        assert ("built with {'output_stride': 16}, which the file does not say" in caplog.text) == bool(options)


def test_a_convnext_becomes_torchvisions(tmp_path):
    backbone = network("convnext_tiny")
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.5, 1.5)
    written = targets.export_torchvision(backbone, "convnext_tiny", tmp_path / "c.pth", (64, 64))
    theirs = models.convnext_tiny()
    theirs.load_state_dict(torch.load(written.file, weights_only=True), strict=False)
    with torch.no_grad():
        expected = backbone.forward_features(IMAGES)
        assert torch.allclose(theirs.eval().features(IMAGES), expected, atol=1e-3 * float(expected.abs().max()))


def test_a_network_of_torchvisions_own_goes_back_as_it_is(tmp_path):
    torch.manual_seed(0)
    backbone = models.shufflenet_v2_x0_5()
    written = targets.export_torchvision(backbone, "torchvision:shufflenet_v2_x0_5", tmp_path / "s.pth", (64, 64))
    theirs = models.shufflenet_v2_x0_5()
    theirs.load_state_dict(torch.load(written.file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(theirs.eval()(IMAGES), backbone.eval()(IMAGES))


def test_what_cannot_be_read_back_is_not_kept(tmp_path, monkeypatch):
    save = torch.save

    def spoils(content, path):
        content["state_dict"]["backbone.conv1.weight"] = torch.zeros(1)
        save(content, path)

    backbone = network("resnet18")
    monkeypatch.setattr(targets.torch, "save", lambda content, path: spoils(copy.deepcopy(content), path))
    with pytest.raises(ConvsparkError, match="could not be read back"):
        targets.export_mmdet(backbone, "resnet18", tmp_path / "m.pth")
    assert not list(tmp_path.iterdir())


def test_names_are_those_of_the_other_libraries(tmp_path):
    written = targets.export_detectron2(network("resnet50"), "resnet50", tmp_path / "d.pth")
    state = torch.load(written.file, weights_only=True)["model"]
    # As in detectron2's own checkpoints of its ResNet-50, after `backbone.bottom_up.`.
    for name in (
        "stem.conv1.weight",
        "stem.conv1.norm.running_var",
        "res2.0.shortcut.weight",
        "res2.0.shortcut.norm.bias",
    ):
        assert f"backbone.bottom_up.{name}" in state
    assert state["backbone.bottom_up.res5.2.conv3.norm.weight"].shape == (2048,)
    assert len(state) == 53 * 5

    written = targets.export_mmdet(network("convnext_atto"), "convnext_atto", tmp_path / "m.pth")
    state = torch.load(written.file, weights_only=True)["state_dict"]
    for name in (
        "downsample_layers.0.0.weight",
        "downsample_layers.2.1.bias",
        "stages.2.5.depthwise_conv.weight",
        "stages.0.1.pointwise_conv2.bias",
        "stages.3.0.gamma",
    ):
        assert f"backbone.{name}" in state
    assert state["backbone.stages.2.5.pointwise_conv1.weight"].shape == (640, 160)  # of a linear layer


def test_onnx_takes_any_number_of_images(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    backbone = network("resnet10t")
    written = targets.export_onnx(backbone, tmp_path / "r.onnx", (64, 64))
    session = onnxruntime.InferenceSession(written.file, providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {"images": IMAGES[:1].numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(features, backbone(IMAGES[:1]).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (targets.export_detectron2, "convnext_atto"),
        (targets.export_mmdet, "seresnet18"),
        (targets.export_mmdet, "resnet10t"),
        (targets.export_mmdet, "convnext_atto_ols"),
    ],
)
def test_networks_without_a_table_are_refused(write, name, tmp_path):
    with pytest.raises(UsageError, match=f"plain ResNets only, not for {name}"):
        write(network(name), name, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="torchvision has no network that equals timm's efficientnet_b0"):
        targets.export_torchvision(network("resnet10t"), "efficientnet_b0", tmp_path / "x.pth", (64, 64))


def test_the_command_writes_once(tmp_path, capsys):
    out = str(tmp_path / "r.pth")
    assert main(["export", "random:resnet18", "--to", "torchvision", "--size", "64", "--out", out]) == 0
    assert "loaded by torchvision" in capsys.readouterr().out
    assert main(["export", "random:resnet18", "--to", "torchvision", "--out", out]) == 2
    assert "exists already" in capsys.readouterr().err
    card = (tmp_path / "r.pth.md").read_text()
    assert "# resnet18 for torchvision" in card and "| image size | 64x64 pixels |" in card
    assert "| weights of | none: random |" in card and "load_state_dict" in card


@pytest.fixture
def classifier(tmp_path):
    """The export of a classifier, as a fine-tuning leaves it."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3).eval()
    facts = {
        "fine-tuned on": "9 labelled pictures (pictures)",
        "command": "`convspark finetune a | b`",
        "top-1": "50 %",
    }
    norm = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "image_size": (64, 64)}
    export_timm(model, tmp_path / "export", card=facts, classes=["a", "b", "c"], **norm)
    assert read_facts(tmp_path / "export") == facts
    return model, str(tmp_path / "export"), facts


def test_onnx_keeps_the_classifier_and_its_card_says_what_it_was_trained_on(classifier, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, folder, _ = classifier
    written = export(folder, to="onnx", out=str(tmp_path / "c.onnx"))
    (logits,) = onnxruntime.InferenceSession(written.file, providers=["CPUExecutionProvider"]).run(
        None, {"images": IMAGES.numpy()}
    )
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(IMAGES).numpy(), rtol=1e-3, atol=1e-4)
    card = (tmp_path / "c.onnx.md").read_text()
    assert "in the order of the outputs: a, b, c" in card and "| top-1 | 50 % |" in card
    assert "convspark finetune a \\| b" in card and f"| weights of | {folder} |" in card


@pytest.mark.parametrize("file", [pytest.param("", marks=pytest.mark.slow), "/model.safetensors"])
def test_onnx_of_a_network_of_four_channels(tmp_path, file):
    onnxruntime = pytest.importorskip("onnxruntime")
    backbone = timm.create_model("resnet10t", num_classes=0, in_chans=4).eval()
    export_timm(backbone, tmp_path / "export", mean=(0.5,) * 4, std=(0.2,) * 4, image_size=(64, 64))
    model = "resnet10t" if file else None
    written = export(f"{tmp_path}/export{file}", model=model, to="onnx", out=str(tmp_path / "four.onnx"))
    session = onnxruntime.InferenceSession(written.file, providers=["CPUExecutionProvider"])
    images = torch.rand(3, 4, 64, 64)
    with torch.no_grad():
        np.testing.assert_allclose(
            session.run(None, {"images": images.numpy()})[0], backbone(images).numpy(), rtol=1e-3, atol=1e-4
        )


def test_a_copy_for_timm_keeps_classifier_and_card(classifier, tmp_path):
    model, folder, facts = classifier
    written = export(folder, to="timm", out=str(tmp_path / "copy"))
    loaded = timm.create_model(f"local-dir:{written.file}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), model(IMAGES))
    assert read_facts(tmp_path / "copy") == {"weights of": folder, **facts}


def test_outputs_through_layers_that_pretraining_does_not_reach_are_told(tmp_path, caplog):
    """They are read from a run that has not ended, or from the card of an export, which copies of it have, too."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("# Again: convspark pretrain --config config.yaml\nmodel: efficientnet_b0\n")
    network = timm.create_model("efficientnet_b0", num_classes=0)
    origin = find_weights("random:efficientnet_b0")
    names = _untrained(network, origin, str(run))
    assert {name.partition(".")[0] for name in names} == {"conv_head", "bn2"}
    _warn_of_untrained(network, origin, names)
    assert "go through conv_head, bn2, which pre-training does not reach" in caplog.text
    norm = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "image_size": (64, 64)}
    facts = {"pre-trained on": "9 images"}
    export_timm(network, tmp_path / "first", untrained=names, card=facts, **norm)
    export(str(tmp_path / "first"), out=str(tmp_path / "second"))
    for place in ("first", "second"):
        assert _untrained(network, origin, str(tmp_path / place)) == names


def test_a_card_names_what_of_its_file_was_not_trained(tmp_path):
    untrained = ["fc.weight", "fc.bias"]
    norm = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "image_size": (32, 32)}
    export_timm(models.resnet18(), tmp_path / "export", untrained=untrained, card={"pre-trained on": "9"}, **norm)
    for to in ("torchvision", "mmdet"):
        file = str(tmp_path / f"{to}.pth")
        written = export(str(tmp_path / "export"), to=to, model="torchvision:resnet18", out=file, size=32)
        inside = untrained if "fc.weight" in torch.load(written.file, weights_only=True) else []
        card = (tmp_path / f"{to}.pth.md").read_text()
        assert [name for name in untrained if f"`{name}`" in card] == inside
        assert ("It has no classifier" in card) == (not inside)


def test_cards_claim_no_training_that_is_not_known_of(tmp_path):
    # In an older encoding of Windows, whose apostrophe is no UTF-8.
    (tmp_path / "README.md").write_bytes("# Somebody’s\n\n| a | b |\n|---|---|\n| c | d |\n".encode("cp1252"))
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "w.pth")
    export(str(tmp_path / "w.pth"), model="test_resnet", out=str(tmp_path / "timm"))
    card = (tmp_path / "timm" / "README.md").read_text()
    assert "SparK" not in card and "spark" not in card.replace("convspark", "") and "was trained" not in card
    assert read_facts(tmp_path / "timm") == {"weights of": str(tmp_path / "w.pth")}


def test_an_export_draws_no_numbers_and_says_in_code_where_it_is(tmp_path):
    place = tmp_path / 'a "quoted"\nfolder'
    state = torch.get_rng_state()
    written = export("random:test_resnet", out=str(place), size=64)
    assert torch.equal(torch.get_rng_state(), state)
    card = (place / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict = {"timm": timm}
    exec(code[1] if code else "", names)
    for loaded in (names["backbone"], eval(written.use, {"timm": timm})):
        assert loaded.num_classes == 0


def test_a_target_that_is_not_known_is_refused():
    with pytest.raises(UsageError, match="to is 'pytorch': expected 'timm', 'torchvision'"):
        export("random:resnet18", to="pytorch")  # type: ignore[arg-type]
