"""What WEIGHTS may stand for."""

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data.config import resolve_data_config

from convspark.checkpoints.export import export
from convspark.checkpoints.origin import find_weights
from convspark.checkpoints.to_timm import export_timm
from convspark.errors import UsageError
from convspark.tasks.comparison.command import _arms
from convspark.tasks.comparison.settings import CompareSettings
from convspark.tasks.load import load
from convspark.tasks.segmentation.network import Segmenter


def test_random_weights_follow_the_seed():
    origin = find_weights("random:resnet10t")
    assert origin.is_random and origin.model == "resnet10t" and len(origin.mean) == 3
    first, again, other = (origin.build(seed).conv1[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_export_tells_network_size_and_normalisation(tmp_path):
    network = timm.create_model("resnet10t", num_classes=0, in_chans=1)
    export_timm(network, tmp_path / "export", mean=(0.4,), std=(0.3,), image_size=(64, 96))
    origin = find_weights(str(tmp_path / "export"))
    assert (origin.model, origin.size, origin.channels) == ("resnet10t", "64x96", 1)
    assert tuple(origin.mean) == (0.4,) and tuple(origin.std) == (0.3,)
    built = origin.build(seed=5)
    assert all(
        torch.equal(a, b) for a, b in zip(built.state_dict().values(), network.state_dict().values(), strict=True)
    )


def test_random_weights_are_of_the_very_network_and_take_images_as_it_does(tmp_path):
    folder, norm = tmp_path / "export", {"mean": (0.4,), "std": (0.3,), "image_size": (64, 96)}
    export_timm(timm.create_model("test_resnet", num_classes=0, in_chans=1, output_stride=16), folder, **norm)
    trained = find_weights(str(folder))
    for place in (folder, folder / "model.safetensors"):
        for model in (None, "test_resnet"):  # which a run that goes on knows
            random = find_weights(f"random:{place}", model)
            assert random == replace(trained, weights=f"random:{place}", source=None), model
        arms = _arms(CompareSettings(str(place), against=["random"]))
        assert find_weights(*arms["random"]) == replace(trained, weights=f"random:{place}", source=None)
    assert trained.model_args == {"output_stride": 16}
    with pytest.raises(UsageError, match="there is no folder or file 'gone' here"):
        find_weights("random:gone", "test_resnet")  # begun where it was
    for others in (["pre-trained"], ["pre_trained"], ["a b", "a_b"]):  # folders, or labels, of the same name
        with pytest.raises(UsageError, match="would have the same folder"):
            _arms(CompareSettings(str(folder), against=others))
    assert list(_arms(CompareSettings(str(folder), against=["random", "random"]))) == ["pre-trained", "random"]
    plain = _arms(CompareSettings("random:test_resnet"))
    assert plain["random"] == ("random:test_resnet", None)


@pytest.mark.parametrize("arguments", [{"output_stride": 16}, {"act_layer": "silu"}, {"global_pool": "max"}])
def test_an_export_is_built_with_the_arguments_that_it_was_made_with(tmp_path, arguments):
    network = timm.create_model("resnet10t", num_classes=3, **arguments).eval()
    norm = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "image_size": (64, 64)}
    images = torch.randn(1, 3, 64, 64)
    export_timm(network, tmp_path / "classes", **norm, classes=["a", "b", "c"])
    origin = find_weights(str(tmp_path / "classes"))
    assert origin.model_args == arguments
    torch.testing.assert_close(origin.build(classifier=True).eval()(images), network(images))
    network.reset_classifier(0)
    export_timm(network, tmp_path / "features", **norm)
    built = find_weights(str(tmp_path / "features")).build().eval()
    torch.testing.assert_close(built.forward_features(images), network.forward_features(images))


@pytest.mark.parametrize(("crop", "timms"), [(0.9, (0.9, "center")), ("whole", (1.0, "squash"))])
def test_an_export_says_how_much_of_a_picture_the_network_is_to_see(tmp_path, crop, timms):
    network = timm.create_model("test_resnet", num_classes=2)
    norm = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "image_size": (64, 64)}
    export_timm(network, tmp_path / "export", **norm, classes=["a", "b"], crop=crop)
    export(str(tmp_path / "export"), to="timm", out=str(tmp_path / "again"))
    for folder in ("export", "again"):
        loaded = timm.create_model(f"local-dir:{tmp_path / folder}", pretrained=True)
        config = resolve_data_config({}, model=loaded)
        assert (config["crop_pct"], config["crop_mode"]) == timms


def test_weights_that_other_code_keeps_as_a_network(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"network": {"conv1.weight": torch.ones(3)}, "epoch": 3}, file)
    with pytest.raises(UsageError, match="does not name its network: add --model"):
        find_weights(str(file))
    assert find_weights(str(file), "resnet10t").model == "resnet10t"


def test_a_file_needs_the_networks_name(tmp_path):
    network = timm.create_model("resnet10t", num_classes=0)
    file = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), file)
    with pytest.raises(UsageError, match="does not name its network: add --model"):
        find_weights(str(file))
    built = find_weights(str(file), "resnet10t").build()
    assert torch.equal(built.conv1[0].weight, network.conv1[0].weight)
    with pytest.raises(UsageError, match=r"belongs to another network|none of the"):
        find_weights(str(file), "convnext_atto").build()


def test_a_file_in_an_export_is_told_by_it(tmp_path, monkeypatch):
    network = timm.create_model("resnet10t", num_classes=0)
    norm = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "image_size": (64, 96)}
    export_timm(network, tmp_path / "export", **norm)
    origin = find_weights(str(tmp_path / "export" / "model.safetensors"))
    assert (origin.model, origin.size, origin.mean) == ("resnet10t", "64x96", (0.5, 0.4, 0.3))
    assert torch.equal(origin.build(seed=7).conv1[0].weight, network.conv1[0].weight)
    named = find_weights(str(tmp_path / "export" / "model.safetensors"), "resnet10t")
    assert (named.mean, named.size) == (origin.mean, origin.size)  # by the network's name, too
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    # A file named like a network is a file all the same.
    monkeypatch.chdir(tmp_path)
    save_file(network.state_dict(), "resnet10t.safetensors")
    assert find_weights("resnet10t.safetensors", "resnet10t").mean == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("file", "content", "model"),
    [
        ("a.pth", {"arch": "resnet18"}, "resnet18"),
        ("resnet18_1kpretrained_timm_style.pth", {}, "resnet18"),
        ("convnextS_1kpretrained_official_style.pth", {}, "convnext_small"),
        ("convnextL_384_1kpretrained_official_style.pth", {}, "convnext_large"),
        ("resnet101_1kpretrained_timm_style.pth", {}, "resnet101"),
        ("res50_withdecoder_1kpretrained_spark_style.pth", {}, "resnet50"),
        ("cnxS224_withdecoder_1kpretrained_spark_style.pth", {}, "convnext_small"),
        ("cnxL384_withdecoder_1kpretrained_spark_style.pth", {}, "convnext_large"),
        ("resnet18_224_withdecoder_1kpretrained_spark_style.pth", {"arch": 7}, "resnet18"),
    ],
)
def test_the_papers_checkpoints_tell_their_network(tmp_path, file, content, model):
    torch.save({**content, "module": {"conv1.weight": torch.zeros(2)}}, tmp_path / file)
    assert find_weights(str(tmp_path / file)).model == model


@pytest.mark.parametrize(
    ("file", "content", "size"),
    [
        ("cnxL384_withdecoder_1kpretrained_spark_style.pth", {}, 384),
        ("convnextL_384_1kpretrained_official_style.pth", {}, 384),
        ("res50_withdecoder_1kpretrained_spark_style.pth", {}, None),
        ("a.pth", {"arch": "resnet18", "input_size": 160}, 160),
        ("res50_1kpretrained_timm_style.pth", {"config": {"sparse_encoder.input_size": 96}}, 96),
    ],
)
def test_the_papers_checkpoints_tell_their_size(tmp_path, file, content, size):
    torch.save(content | {"conv1.weight": torch.zeros(2)}, tmp_path / file)
    assert find_weights(str(tmp_path / file)).size == size


def test_weights_that_leave_much_random_are_told_aloud(tmp_path, caplog):
    state = timm.create_model("resnet10t", num_classes=0).state_dict()
    save_file({name: t for name, t in state.items() if not name.startswith("layer4")}, tmp_path / "w.safetensors")
    find_weights(str(tmp_path / "w.safetensors"), "resnet10t").build()
    assert "of the network stays random" in caplog.text and "missing: layer4" in caplog.text


def test_a_size_that_the_network_cannot_take_is_told():
    origin = find_weights("random:convnext_atto")
    with pytest.raises(
        UsageError, match=r"size is 16: convnext_atto cannot be run on images of 16x16 pixels \(.*--size"
    ):
        origin.check_size(origin.build(), (16, 16))
    origin.check_size(origin.build(), origin.sides("32x64"))


def test_networks_of_other_channels_are_refused_for_picture_files(tmp_path):
    network = timm.create_model("resnet10t", num_classes=0, in_chans=5)
    export_timm(network, tmp_path / "export", mean=(0.5,) * 5, std=(0.2,) * 5, image_size=(64, 64))
    with pytest.raises(UsageError, match=r"images of 5 channels .*takes only 8-bit colour or grey"):
        find_weights(str(tmp_path / "export")).check_pictures()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (None, "weights are missing"),
        ("resnet5O", "no file or folder 'resnet5O', nor does timm .*did you mean"),
        ("runs/x", "no file or folder 'runs/x', nor"),
        ("resnet18.a1_in2k", "timm has no weights 'a1_in2k' of resnet18: it has a1_in1k"),
    ],
)
def test_nothing_of_that_name(weights, message):
    with pytest.raises(UsageError, match=message):
        find_weights(weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(network={}), "does not say which network it holds: it lacks 'model'"),
        (lambda c: c["network"].update(model=5), "network it holds: model is 5: expected a text"),
        (lambda c: c["network"].update(pixels=[1]), r"network it holds: pixels is \[1\]: expected a dictionary"),
        (lambda c: c.update(model=[]), r"segmenter.pth holds no whole network \(TypeError"),
        (lambda c: c.update(fitted={}), r"segmenter.pth holds no whole network \(KeyError: 'norm'"),
        (lambda c: c.update(classes=["a", "b", "c"]), r"no whole network \(RuntimeError: .*\n?.*size mismatch"),
    ],
)
def test_a_trained_network_that_was_changed_is_refused(change, message, tmp_path):
    origin = find_weights("random:test_resnet")
    network = Segmenter(origin.build(), 2)
    content = {"model": network.state_dict(), "network": origin.as_record(), "classes": ["a", "b"]}
    torch.save(content, tmp_path / "segmenter.pth")
    assert load(str(tmp_path / "segmenter.pth"), device="cpu").classes == ["a", "b"]
    change(content)
    torch.save(content, tmp_path / "segmenter.pth")
    with pytest.raises(UsageError, match=message):
        load(str(tmp_path / "segmenter.pth"), device="cpu")
