"""The three senses in which a network is exact, each against an independent truth."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from convspark.sparse import PatchGrid, gather, scatter
from convspark.sparse.oracle import masked_map, visible_part

TOLERANCE = 1e-8  # relative, float64


def assert_exact(
    network: nn.Module,
    image_shape: Sequence[int],
    grid_shape: Sequence[int],
    run: Callable[[nn.Module, Tensor], list[Tensor]] | None = None,
    training: bool = True,
) -> None:
    """Dense equality with every patch visible; features, gradients and buffers of the oracle with some masked; no leak.

    Args:
        image_shape: (B, C, *sides).
        run: network and images or patches -> maps to compare; the network's output where None.
    """
    run = run or (lambda net, x: [net(x)])
    torch.manual_seed(0)
    network = network.double().train(training)
    with torch.no_grad():  # nothing stays at 0 or 1, where mistakes would not show
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    images = torch.randn(*image_shape, dtype=torch.float64)
    everything = torch.ones(image_shape[0], *grid_shape, dtype=torch.bool)
    visible = torch.rand(image_shape[0], *grid_shape) < 0.5
    visible.view(image_shape[0], -1)[0] = True
    visible.view(image_shape[0], -1)[-1] = False  # an image that shows nothing
    visible.view(image_shape[0], -1)[-1, 0] = image_shape[0] < 3

    _assert_equal_dense(network, images, everything, run)
    _assert_equal_oracle(network, images, visible, run)
    _assert_no_leak(network, images, visible, run)


def _assert_equal_dense(network, images, everything, run):
    with torch.no_grad():
        dense = _seeded(run, copy.deepcopy(network), images)
        patches = _seeded(run, copy.deepcopy(network), gather(images, PatchGrid(everything)))
    for expected, found in zip(dense, patches, strict=True):
        assert relative(expected, scatter(found)) < TOLERANCE, "differs from the dense network"


def _assert_equal_oracle(network, images, visible, run):
    ours, theirs = copy.deepcopy(network), copy.deepcopy(network)
    found = [scatter(f) for f in _seeded(run, ours, gather(images, PatchGrid(visible)))]
    truth = [visible_part(f) for f in _seeded(run, theirs, masked_map(images, visible))]
    weights = [torch.randn_like(f) for f in truth]
    sum((f * w).sum() for f, w in zip(found, weights, strict=True)).backward()
    sum((f * w).sum() for f, w in zip(truth, weights, strict=True)).backward()
    for expected, got in zip(truth, found, strict=True):
        assert relative(expected, got) < TOLERANCE, "differs from the oracle"
    largest = max((p.grad.abs().max() for p in theirs.parameters() if p.grad is not None), default=torch.tensor(1.0))
    for (name, ours_p), theirs_p in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        expected = torch.zeros_like(theirs_p) if theirs_p.grad is None else theirs_p.grad
        got = torch.zeros_like(ours_p) if ours_p.grad is None else ours_p.grad
        # A bias in front of a norm has gradient 0 up to rounding: nothing to be relative to but the other gradients.
        floor = 1e-6 * largest
        assert (expected - got).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=floor), f"gradient of {name}"
    for (name, ours_b), theirs_b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        if ours_b.is_floating_point():
            assert relative(theirs_b, ours_b) < TOLERANCE, f"buffer {name}"


def _assert_no_leak(network, images, visible, run):
    mask = visible[:, None]
    for axis, side in enumerate(images.shape[2:], start=2):
        mask = mask.repeat_interleave(side // mask.shape[axis], axis)
    spoilt = torch.where(mask, images, torch.tensor(float("nan"), dtype=images.dtype))
    grid = PatchGrid(visible)
    with torch.no_grad():
        clean = _seeded(run, copy.deepcopy(network), gather(images, grid))
        dirty = _seeded(run, copy.deepcopy(network), gather(spoilt, grid))
    for expected, found in zip(clean, dirty, strict=True):
        assert torch.equal(expected.values, found.values), "depends on masked pixels"


def _seeded(run, network, x):
    torch.manual_seed(1)
    return run(network, x)


def relative(expected: Tensor, found: Tensor) -> float:
    assert expected.shape == found.shape
    if not expected.numel():
        return 0.0
    scale = expected.abs().max().clamp(min=1e-30)
    return float(((expected - found).abs().max() / scale).detach())
