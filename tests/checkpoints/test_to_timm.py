"""Exports, as plain timm sees them."""

import copy
import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from convspark.checkpoints import to_timm
from convspark.checkpoints.to_timm import export_timm
from convspark.errors import ConvsparkError

NORM = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "image_size": (64, 96)}


def randomised(name: str, **options) -> nn.Module:
    torch.manual_seed(2)
    model = timm.create_model(name, **options)
    for tensor in model.state_dict().values():  # filters that are not in it are constants of the class
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 0.9)
        if tensor.ndim > 1:  # so that sums of many positive products stay finite through many layers
            tensor /= tensor[0].numel()
    return model.to(memory_format=torch.channels_last).train()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {"num_classes": 0}),
        ("test_resnet", {}),
        ("test_resnet", {"features_only": True}),
        ("test_resnet", {"features_only": True, "out_indices": (2, 4), "in_chans": 3}),
        ("test_convnext", {"features_only": True}),
        ("test_efficientnet", {"num_classes": 0, "drop_path_rate": 0.2}),
        ("resnet10t", {"num_classes": 0, "output_stride": 16}),
    ],
)
def test_plain_timm_loads_the_very_weights(tmp_path, name, options):
    backbone = randomised(name, **options)
    before = copy.deepcopy(backbone.state_dict())
    report = export_timm(backbone, tmp_path / "export", **NORM)
    loaded = timm.create_model(f"local-dir:{report.folder}", pretrained=True, num_classes=3)
    ours = {key.replace(".", "_"): value for key, value in backbone.state_dict().items()}
    compared = 0
    for key, value in loaded.state_dict().items():
        if key.replace(".", "_") in ours and not key.startswith(("fc.", "head.fc", "classifier")):
            assert torch.equal(value, ours[key.replace(".", "_")])
            compared += 1
    assert compared >= len(ours) - 2
    assert (loaded.default_cfg["mean"], loaded.default_cfg["std"]) == (list(NORM["mean"]), list(NORM["std"]))
    assert loaded.default_cfg["input_size"][1:] == [64, 96] or tuple(loaded.default_cfg["input_size"]) == (3, 64, 96)
    assert not any(
        "." in key and key.split(".")[0].endswith("_0") for key in load_file(report.folder / "model.safetensors")
    )
    # The backbone goes on as it was.
    assert backbone.training and all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())


def test_classifier_is_left_out_and_other_weights_credentials_too(tmp_path):
    export_timm(randomised("test_resnet"), tmp_path / "export", **NORM)
    assert not any(key.startswith("fc.") for key in load_file(tmp_path / "export" / "model.safetensors"))
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["num_classes"] == 0
    assert not {"tag", "license", "origin_url", "hf_hub_id", "url"} & set(config["pretrained_cfg"])


def test_a_network_whose_first_convolution_does_not_take_the_images_channels(tmp_path):
    """tresnet begins with space to depth, which makes 48 channels of 3."""
    torch.manual_seed(0)
    backbone = timm.create_model("tresnet_m", num_classes=0)
    report = export_timm(backbone, tmp_path / "export", **NORM)
    loaded = timm.create_model(f"local-dir:{report.folder}", pretrained=True)
    assert report.architecture == "tresnet_m" and loaded.default_cfg["input_size"][0] == 3
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in backbone.state_dict().items())


def test_other_channels(tmp_path):
    backbone = randomised("test_resnet", in_chans=5, num_classes=0)
    export_timm(backbone, tmp_path / "export", mean=(0.5,) * 5, std=(0.2,) * 5)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True)
    assert loaded.conv1[0].weight.shape[1] == 5


@pytest.mark.parametrize(
    "options",
    [
        {"features_only": True, "output_stride": 16},
        {"features_only": True, "act_layer": nn.SiLU},
        {"num_classes": 0, "act_layer": nn.SiLU},
    ],
    ids=str,
)
def test_networks_that_no_name_builds_again_keep_their_weights(tmp_path, options):
    """Of the same shapes, and with other features: timm would build another network under the name."""
    backbone = timm.create_model("resnet10t", **options)
    report = export_timm(backbone, tmp_path / "export", **NORM)
    assert report.architecture is None and report.difference == 0
    written = load_file(tmp_path / "export" / "model.safetensors")
    assert written.keys() == backbone.state_dict().keys()
    assert sorted(path.name for path in report.folder.iterdir()) == ["README.md", "model.safetensors"]


def test_card_names_what_was_not_trained(tmp_path):
    backbone = randomised("test_efficientnet", features_only=True)
    report = export_timm(backbone, tmp_path / "export", **NORM, card={"epochs": 7})
    card = (tmp_path / "export" / "README.md").read_text()
    assert "conv_head.weight" in report.untrained and "* `conv_head.weight`" in card
    assert "| epochs | 7 |" in card and f"local-dir:{tmp_path / 'export'}" in card
    options = NORM | {"untrained": ["layer4.0.x"], "card": {"pre-trained on": "9 images"}}
    plain = export_timm(randomised("test_resnet", num_classes=0), tmp_path / "plain", **options)
    assert plain.untrained == []  # names that the network does not have are left out
    assert "Every tensor in this folder was trained" in (tmp_path / "plain" / "README.md").read_text()


def test_a_module_that_timm_does_not_know(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    report = export_timm(module, tmp_path / "export", **NORM, untrained=["1.weight"])
    assert report.architecture is None and report.untrained == ["1.weight"]
    assert sorted(path.name for path in report.folder.iterdir()) == ["README.md", "model.safetensors"]
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    fresh.load_state_dict(load_file(report.folder / "model.safetensors"))
    assert torch.equal(fresh[0].weight, module[0].weight)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weights_that_hooks_compute(tmp_path):
    module = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)))
    module(torch.randn(1, 3, 8, 8)).sum().backward()
    weight = module[0].weight
    report = export_timm(module, tmp_path / "export", **NORM)
    written = load_file(report.folder / "model.safetensors")
    assert torch.equal(written["0.weight_g"], module[0].weight_g)
    assert module[0].weight is weight and weight.grad_fn is not None


def test_a_module_that_only_claims_to_be_timms(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3))
    module.pretrained_cfg = {"architecture": "test_resnet"}
    assert export_timm(module, tmp_path / "export", **NORM).architecture is None


def test_replaces_an_export_whole_or_not_at_all(tmp_path, monkeypatch):
    backbone = randomised("test_resnet", num_classes=0)
    export_timm(backbone, tmp_path / "export", **NORM)
    first = load_file(tmp_path / "export" / "model.safetensors")
    with torch.no_grad():
        backbone.conv1[0].weight.add_(1)
    monkeypatch.setattr(to_timm, "_features", lambda model, images: [torch.rand(3)])
    with pytest.raises(ConvsparkError, match="does not give the backbone's features back"):
        export_timm(backbone, tmp_path / "export", **NORM)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    again = load_file(tmp_path / "export" / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)
    monkeypatch.undo()
    export_timm(backbone, tmp_path / "export", **NORM)
    again = load_file(tmp_path / "export" / "model.safetensors")
    assert torch.equal(again["conv1.0.weight"], first["conv1.0.weight"] + 1)


@pytest.mark.parametrize("classes", [None, ["a: b", "#c", "d|e"]])
def test_a_hub_reads_the_card(tmp_path, classes):
    """By the hub's own library, which refuses front matter that it cannot use."""
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import metadata_load

    network = timm.create_model("test_resnet", num_classes=0 if classes is None else 3)
    options = {} if classes is None else {"classes": classes}
    export_timm(network, tmp_path / "export", mean=(0.5,) * 3, std=(0.5,) * 3, image_size=(64, 64), **options)
    card = ModelCard.load(tmp_path / "export" / "README.md", ignore_metadata_errors=False)
    data = card.data
    assert (data.library_name, data.license, data.license_name) == ("timm", "other", "not-chosen-yet")
    assert data.pipeline_tag == ("image-feature-extraction" if classes is None else "image-classification")
    assert {"timm", data.pipeline_tag, "convspark"} <= set(data.tags or ())
    assert data.datasets == [] and data.metrics == (None if classes is None else ["accuracy"])
    assert metadata_load(tmp_path / "export" / "README.md")["library_name"] == "timm"
    for heading in ("## Use", "## Training and results", "## Limits", "## Not trained"):
        assert heading in card.text
