"""Parts of a batch, computed one after the other, against the whole batch."""

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from convspark import PatchGrid, gather
from convspark.model.jointly import Jointly
from convspark.parts import part_of

DRAWS = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout in place": lambda x: F.dropout(x * 1, 0.5, True, True),
    "dropout, by name": lambda x: F.dropout(input=x, p=0.3, training=True),
    "torch.dropout": lambda x: torch.dropout(x, 0.5, True),
    "dropout of channels": lambda x: F.dropout2d(x, 0.5),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.5, True),
    "alpha dropout of channels": lambda x: F.feature_alpha_dropout(x, 0.5, True),
    "no dropout": lambda x: F.dropout(x, 0.5, False),
    "timm's stochastic depth": lambda x: timm.layers.drop_path(x, 0.5, True),
    "torchvision's stochastic depth": lambda x: StochasticDepth(0.5, "row").train()(x),
    "noise like it": lambda x: x + torch.randn_like(x),
}
PLAIN = DRAWS | {
    "one number an image": lambda x: x * torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype),
    "of sizes in a tuple": lambda x: x + torch.randn((x.shape[0], 3, 1, 1), dtype=x.dtype),
    "of sizes by name": lambda x: x * torch.rand(size=(len(x), 1, 1, 1), dtype=x.dtype),
    "whole numbers": lambda x: x + torch.randint(5, (len(x), 1, 1, 1)),
    "whole numbers from one on": lambda x: x + torch.randint(1, 5, (len(x), 1, 1, 1)),
    "Bernoulli's": lambda x: x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5, dtype=x.dtype)),
    "filled": lambda x: x * x.new_empty(len(x), 3, 1, 1).uniform_(0.5, 2),
    "the same for all": lambda x: x * torch.rand(7, dtype=x.dtype)[0],
}


def images(count=8, side=8):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_parts(function, x: Tensor, parts: int) -> Tensor:
    outputs = []
    for number in range(parts):
        part = part_of(len(x), parts, number)
        torch.manual_seed(3)
        with Jointly(*part):
            outputs.append(function(x[part.first : part.first + part.images]))
    return torch.cat(outputs)


def whole(function, x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return function(x)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("draw", PLAIN)
def test_parts_draw_what_the_whole_batch_does(draw, parts):
    x = images()
    expected = whole(PLAIN[draw], x)
    assert torch.equal(by_parts(PLAIN[draw], x, parts), expected)
    if draw not in ("no dropout",):
        assert not torch.equal(expected, x)


@pytest.mark.parametrize("draw", DRAWS)
def test_so_do_visible_patches(draw):
    x, visible = images(side=32), PatchGrid.random(8, (4, 4), 0.6, torch.Generator().manual_seed(2)).visible

    def encode(rows: slice) -> Tensor:
        patches = gather(x[rows], PatchGrid(visible[rows]))
        return DRAWS[draw](patches.relu()).values

    expected = whole(lambda _: encode(slice(None)), x)
    outputs = []
    for number in range(2):
        part = part_of(8, 2, number)
        torch.manual_seed(3)
        with Jointly(*part):
            outputs.append(encode(slice(part.first, part.first + part.images)))
    assert torch.equal(torch.cat(outputs), expected)


def test_memory_format_changes_nothing():
    x = images().to(memory_format=torch.channels_last)
    assert torch.equal(by_parts(lambda x: F.dropout(x, 0.5), x, 2), whole(lambda x: F.dropout(x, 0.5), x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_and_what_a_checkpoint_draws_again(reentrant):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.Conv2d(4, 3, 1)).double()
    x = images().requires_grad_()
    tensors = [x, *network.parameters()]
    expected = torch.autograd.grad(whole(network, x).square().sum(), tensors)
    for number in range(2):
        part = part_of(8, 2, number)
        torch.manual_seed(3)
        jointly = Jointly(*part)
        with jointly:
            out = checkpoint(network, x[part.first : part.first + part.images], use_reentrant=reentrant)
            loss = out.square().sum()
        with jointly.backwards():
            loss.backward()
    for tensor, gradient in zip(tensors, expected, strict=True):
        torch.testing.assert_close(tensor.grad, gradient, rtol=1e-12, atol=1e-12)


def test_a_generator_of_its_own_is_left_alone():
    with Jointly(4, 4, 8):
        drawn = torch.rand(8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, torch.rand(8, generator=torch.Generator().manual_seed(0)))


def test_a_network_of_many_layers():
    network = torchvision.models.efficientnet_b0(num_classes=3).double().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = images(4, 32)
    torch.testing.assert_close(by_parts(network, x, 2), whole(network, x), rtol=1e-9, atol=1e-9)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
@settings(deadline=None)
def test_parts_divide_a_batch(count, passes, processes):
    batch = count * passes * processes
    for number in range(passes):
        parts = [part_of(batch, passes, number, rank, processes) for rank in range(processes)]
        together = [place for part in parts for place in range(part.first, part.first + part.images)]
        alone = part_of(batch, passes, number)
        assert together == list(range(alone.first, alone.first + alone.images))  # whatever the number of processes
    assert sum(part_of(batch, passes, number).images for number in range(passes)) == batch


def test_dropout_of_parts_is_compiled():
    drop, images = torch.compile(lambda x: F.dropout(x, 0.5), backend="aot_eager", fullgraph=True), []
    for first, count in ((0, 4), (0, 2), (2, 2)):
        torch.manual_seed(0)
        with Jointly(first, count, 4):
            images.append(drop(torch.ones(count, 8)))
    whole, *parts = images
    assert torch.equal(torch.cat(parts), whole) and len(whole.unique()) == 2
