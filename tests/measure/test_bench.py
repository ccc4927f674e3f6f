"""`bench`: the three ways are one and the same network, and the report says what was measured."""

import json

import pytest
import timm
import torch
from torch import nn

from convspark.cli.main import main
from convspark.errors import UsageError
from convspark.measure.bench import bench


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("convnextv2_atto", "convnext_atto", "regnety_002", "mobilenetv3_small_050", "resnext26ts")
        ),
    ],
)
def test_three_ways_of_the_same_network(name):
    """Of the first network whole steps, too: after the encoder all networks' steps are alike."""
    parts = ("encoder", "step") if name == "resnet10t" else ("encoder",)
    report = bench(name, size=96, batch_size=1, repeats=1, precision="fp32", decoder_width=64, parts=parts)
    assert report.not_imitated is None, report.not_imitated
    assert list(report.encoder) == ["dense", "mask-and-multiply", "visible only"]
    assert list(report.step) == (list(report.encoder) if "step" in parts else [])
    assert report.visible_share == 4 / 9
    assert all(one.seconds > 0 and one.peak_bytes > 0 for one in (*report.encoder.values(), *report.step.values()))
    text = str(report)
    assert name in text and "limit" in text and "mask-and-multiply" in text


def test_memory_of_visible_patches_is_less():
    report = bench("resnet10t", size=128, batch_size=4, repeats=1, precision="fp32", parts=("encoder",))
    assert report.visible_share == 6 / 16
    memory = {way: one.peak_bytes for way, one in report.encoder.items()}
    assert memory["visible only"] < 0.8 * memory["dense"] < memory["mask-and-multiply"]


def test_mask_and_multiply_that_is_not_the_same_is_not_measured():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.GroupNorm(2, 16)
    )
    report = bench(net, size=32, batch_size=1, repeats=1, precision="fp32")
    assert report.not_imitated is not None and "unknown" in report.not_imitated
    assert list(report.step) == ["dense", "visible only"]
    assert "not measured" in str(report)


@pytest.mark.slow
def test_bfloat16_and_volumes():
    small = {"size": 64, "batch_size": 1, "repeats": 1, "mask_ratio": 0.5, "decoder_width": 32}
    assert bench("test_resnet", precision="bf16", **small).precision == "bf16"
    net = nn.Sequential(nn.Conv3d(1, 4, 3, 2, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 8, 3, 2, 1))
    assert bench(net, size=8, channels=1, batch_size=1, repeats=1, precision="fp32").not_imitated is None


def test_parts_alone_and_nothing_masked():
    report = bench("test_resnet", size=64, batch_size=1, repeats=1, precision="fp32", mask_ratio=0, parts=("encoder",))
    assert report.visible_share == 1 and report.step == {} and list(report.encoder)[-1] == "visible only"
    assert "Whole step" not in str(report)


def test_channels_last_is_told_from_channels_first():
    # (B, H, W, C), with channels that 4 patches divide
    net = timm.create_model("convnextv2_atto", depths=(1, 1, 1, 1), conv_mlp=False)
    report = bench(net, size=64, batch_size=1, repeats=1, precision="fp32", mask_ratio=0.5, parts=("encoder",))
    assert report.not_imitated is None, report.not_imitated


def test_visible_patches_are_compiled_as_one_graph(monkeypatch):
    asked = []

    def trace(function, fullgraph=False, **options):
        asked.append(fullgraph)
        return torch_compile(function, fullgraph=fullgraph, backend="eager", **options)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", trace)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
    report = bench(net, size=16, batch_size=1, repeats=1, precision="fp32", compile=True, parts=("encoder",))
    assert asked == [False, True] * 2  # encoder and step, of which the first is run; dense, visible only
    assert report.compiled and "as one graph for all masks" in str(report)


def test_buffers_of_the_network_survive_the_comparison_in_float64():
    net = timm.create_model("test_resnet")
    bench(net, size=64, batch_size=1, repeats=1, precision="fp32", mask_ratio=0.5, decoder_width=32)
    assert all(tensor.dtype != torch.float64 for tensor in net.state_dict().values())


def test_command_prints_json(capsys):
    flags = "--size 64 --batch-size 1 --repeats 1 --precision fp32 --mask-ratio 0.5 --decoder-width 32 --json".split()
    assert main(["bench", "test_resnet", *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["encoder"]["visible only"]["images_per_second"] > 0
    assert report["encoder"]["dense"]["share_of_dense"] == 1


def test_bad_arguments_are_named(capsys):
    with pytest.raises(UsageError, match="batch_size is 0"):
        bench("resnet10t", batch_size=0)
    assert main(["bench"]) == 2
    assert main(["bench", "resnet10t", "--size", "50"]) == 2
    assert "64" in capsys.readouterr().err
