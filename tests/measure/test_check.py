"""`check`: verdicts, reasons and advice for networks whose answer is known; nothing is changed by it."""

import copy
import json
import random
import re

import pytest
import timm
import torch
from torch import nn

import convspark
from convspark.errors import NotExactError, UsageError
from convspark.measure.check import check

THIN = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}


def thin_resnet(**options):
    return timm.create_model("resnet10t", **THIN, **options)


def test_an_exact_network_is_left_as_it_was():
    network = thin_resnet(num_classes=3)
    network.layer1.eval()
    network.conv1.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    report = check(network, size=64)
    assert report.exact and report.reason is None and report.proof is not None and report.proof.largest < 1e-10
    assert report.strides == [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert (report.channels, report.patch_size) == ([8, 8, 16, 16], (32, 32))
    assert report.untrained == ["fc"]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training and not network.layer1.training and not network.conv1[0].weight.requires_grad
    assert all(p.grad is None for p in network.parameters())
    assert report.cost is not None and report.cost.image_size == (64, 64) and report.cost.visible.peak_bytes > 0
    assert torch.equal(torch.get_rng_state(), state)
    text = str(report)
    assert text.startswith("ResNet: exact on visible patches") and "left out    fc" in text
    assert "(visible share: 0.50)" in text  # 2 of 4 patches
    json.dumps(report.as_dict())


def test_attention_is_refused_by_name_and_place():
    report = check("levit_128", measure=False)
    assert not report.exact and "self-attention (Attention at 'stages.0.blocks.0.attn'" in str(report)


class Rolled(nn.Module):
    """Moves the map along: refused."""

    def forward(self, x):
        return x.roll(1, 3)


def test_a_refusal_advises_the_patch_that_leaves_the_culprit_out():
    network = thin_resnet()
    network.layer4 = nn.Sequential(network.layer4, Rolled())
    report = check(network, measure=False)
    assert not report.exact and "roll (in layer4.1 (Rolled))" in str(report)
    assert report.advice == "With --patch-size 16 it is exact, which leaves out layer4, fc."
    assert check(network, patch_size=16, measure=False).exact


class SecondPooling(nn.Module):
    """Pools the deepest map once more and comes back: needs two of its positions in a patch."""

    def forward(self, x):
        return x + nn.functional.interpolate(nn.functional.avg_pool2d(x, 2), scale_factor=2)


def test_a_refusal_advises_the_coarser_patch():
    network = thin_resnet()
    network.layer4 = nn.Sequential(network.layer4, SecondPooling())
    report = check(network, measure=False)
    assert "does not divide" in str(report) and report.advice == "With --patch-size 64 it is exact."


class Coordinates(nn.Module):
    """Depends on the size of what it sees: runs, and is wrong."""

    def forward(self, x):
        return x * torch.linspace(0, 1, x.shape[-1], dtype=x.dtype).sum()


def test_what_runs_and_is_wrong_is_found_and_named():
    network = thin_resnet()
    network.layer3 = nn.Sequential(network.layer3, Coordinates())
    report = check(network, measure=False)
    assert not report.exact and "The first module to differ is layer3.1 (Coordinates)" in str(report)
    assert report.proof is not None and report.proof.dense > 1e-3


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 3


class Doubled(nn.Module):
    """Right features, wrong gradients, on visible patches alone."""

    def forward(self, x):
        if isinstance(x, convspark.VisiblePatches):
            from convspark.sparse import as_patches

            return as_patches(WrongGradient.apply(x.values), x.grid)
        return x * 2


def test_wrong_gradients_are_found():
    network = thin_resnet()
    network.layer2 = nn.Sequential(network.layer2, Doubled())
    report = check(network, measure=False)
    assert not report.exact and "gives other gradients" in str(report)
    assert report.proof is not None and report.proof.features < 1e-10 < report.proof.gradients


class Leaky(nn.Module):
    """Remembers what it saw first: an output that depends on masked pixels through a side door."""

    hidden = 0.0

    def forward(self, x):
        return x + self.hidden


def test_a_leak_is_found():
    network = nn.Sequential(nn.Conv2d(3, 4, 2, 2), Leaky(), nn.Conv2d(4, 8, 2, 2))

    def leak(_module, args):
        spoilt = isinstance(args[0], convspark.VisiblePatches) and not args[0].grid.visible.all()
        leak.calls += spoilt
        network[1].hidden = 1.0 if leak.calls > 1 else 0.0  # the second masked run has other masked pixels

    leak.calls = 0
    network.register_forward_pre_hook(leak)
    report = check(network, measure=False)
    assert report.proof is not None and report.proof.leak and "masked patches" in str(report)


class AtSomeSizes(nn.Module):
    """Calls a module where the map is large."""

    def __init__(self):
        super().__init__()
        self.stem, self.more, self.down = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 2, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.down(self.more(x) + x if x.shape[-1] >= 24 else x)


def test_a_module_that_is_called_only_at_some_sizes_is_named():
    report = check(AtSomeSizes(), stages=["stem", "down"], size=96, measure=False)
    assert not report.exact and "The module more (Conv2d) is called on whole images alone" in str(report)
    assert (
        "at 96x96 pixels" in str(report) and check(AtSomeSizes(), size=64, stages=["stem", "down"], measure=False).exact
    )
    with pytest.raises(NotExactError, match=r"module more \(Conv2d\) is called on whole images alone"):
        convspark.SparK(AtSomeSizes(), stages=["stem", "down"], image_size=96, decoder_width=16)


def test_a_stage_that_is_called_only_at_some_sizes_is_named():
    report = check(AtSomeSizes(), stages=["more", "down"], size=96, measure=False)
    assert "stages: module 'more' is not called at this size" in str(report)


class Positions(nn.Module):
    """Adds a position embedding to the map, or to its positions as rows."""

    def __init__(self, *shape):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 16, 2, 2)
        self.position = nn.Parameter(torch.zeros(*shape))

    def forward(self, x):
        x = self.stem(x)
        rows = self.position.movedim(1, -1).unflatten(-1, x.shape[2:]) if self.position.dim() == 3 else self.position
        return self.down(x + rows)


@pytest.mark.parametrize("shape", [(1, 8, 16, 16), (1, 256, 8)])
def test_a_position_embedding_is_named_and_what_to_do(shape):
    said = r"position, \(1, .*, seems to be a position embedding, which is tied to the whole map .* leave it out"
    for size in (None, 64):
        report = check(Positions(*shape), size=size, measure=False)
        assert not report.exact and re.search(said, str(report)), str(report)
    with pytest.raises(NotExactError, match=said):
        convspark.SparK(Positions(*shape), image_size=64, decoder_width=16)


def test_a_network_for_signals():
    network = nn.Sequential(nn.Conv1d(2, 8, 7, 4, 3), nn.BatchNorm1d(8), nn.GELU(), nn.Conv1d(8, 16, 3, 2, 1))
    report = check(network)
    assert report.exact and report.strides == [(4,), (8,)] and report.cost is not None, report.reason
    with pytest.raises(UsageError, match=r"takes signals .* `check` proves them"):
        convspark.SparK(network, image_size=64, decoder_width=16)


class Parallel(nn.Module):
    """Three resolutions side by side, joined by strided convolutions and interpolation, as HRNet has them."""

    def __init__(self, **resizing):
        super().__init__()
        self.resizing = resizing
        self.stem, self.down = self.conv(3, 8, 4), self.conv(8, 16, 2)
        self.fine, self.coarse, self.deep = self.conv(8, 8), self.conv(16, 16), self.conv(16, 32, 2)
        self.lift, self.lower, self.raise_ = nn.Conv2d(16, 8, 1), self.conv(8, 16, 2), nn.Conv2d(32, 8, 1)
        self.head = nn.Linear(8, 3)

    @staticmethod
    def conv(inward, outward, stride=1):
        return nn.Sequential(nn.Conv2d(inward, outward, 3, stride, 1), nn.BatchNorm2d(outward), nn.ReLU(inplace=True))

    def resized(self, x, like):
        return nn.functional.interpolate(x, size=like.shape[2:], **self.resizing)

    def forward(self, x):
        fine = self.stem(x)
        coarse = self.down(fine)
        fine, coarse = self.fine(fine), self.coarse(coarse)
        fine, coarse = fine + self.resized(self.lift(coarse), fine), coarse + self.lower(fine)
        joined = fine + self.resized(self.raise_(self.deep(coarse)), fine)
        return self.head(joined.mean((2, 3)))


@pytest.mark.parametrize("resizing", [{}, {"mode": "bilinear", "align_corners": True}])
def test_resolutions_in_parallel(resizing):
    report = check(Parallel(**resizing), measure=False)
    assert report.exact and report.strides == [(4, 4), (8, 8), (16, 16)], report.reason


@pytest.mark.slow
def test_hrnet():
    report = check("hrnet_w18_small", measure=False)
    assert report.exact and report.strides[-1] == (32, 32), report.reason


def test_what_cannot_be_drawn_alike_is_said():
    class Luck(nn.Module):
        def forward(self, x):
            return x * random.random() if self.training else x

    report = check(nn.Sequential(nn.Conv2d(3, 8, 4, 4), Luck(), nn.Conv2d(8, 8, 2, 2)))
    assert report.exact and "evaluation mode" in str(report) and "random numbers that torch does not" in str(report)


def test_wrong_arguments_are_usage_errors():
    with pytest.raises(UsageError, match="did you mean resnet50"):
        check("resnet5O")
    with pytest.raises(UsageError, match="did you mean layer4"):
        check(thin_resnet(), stages=["layer5"])
    with pytest.raises(UsageError, match="patch_size=48"):
        check(thin_resnet(), patch_size=48)
    with pytest.raises(UsageError, match="size is 100x64"):
        check(thin_resnet(), size=(100, 64))
    assert convspark.check is check


class Odd(nn.Module):
    """Its first parameter is not of the type that it computes in, and a module's attributes are no numbers."""

    def __init__(self):
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
        self.body[1].kernel_size, self.body[1].stride = "same", (1, "x")

    def forward(self, x):
        return self.body(x)


def test_networks_with_odd_parts_are_shown():
    report = check(Odd(), measure=False)
    assert report.exact and {row.kind for row in report.modules} >= {"ReLU", "Conv2d 3x3 /2"}


@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_is_measured_within_no_grad_and_of_a_frozen_network(frozen):
    network = Odd()
    for parameter in network.body.parameters():
        parameter.requires_grad_(not frozen)
    with torch.set_grad_enabled(frozen):
        report = check(network, size=8)
    assert report.cost is not None and report.cost.visible.seconds > 0
    assert all(p.grad is None and p.requires_grad is not frozen for p in network.body.parameters())


def test_what_cannot_be_run_is_a_verdict():
    class Raises(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            raise RuntimeError("no")

    assert "RuntimeError: no" in str(check(Raises()).reason)
    assert "lazy layer" in str(check(nn.Sequential(nn.LazyConv2d(8, 3, 2, 1))).reason)
    with pytest.raises(UsageError, match="--channels"):
        check(thin_resnet(), channels=4)
