"""The three senses in which a network is exact, each against an independent truth."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convspark.sparse import PatchGrid, gather, scatter
from convspark.sparse.proof.draws import SameDraws
from convspark.sparse.proof.oracle import MaskAndMultiply

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
    drawn = 0.02 * torch.randn(9973, dtype=torch.float64)  # each is used often: drawing millions takes long
    with torch.no_grad():  # nothing stays at 0 or 1, where mistakes would not show
        for index, parameter in enumerate(network.parameters()):
            times = -(-parameter.numel() // len(drawn))
            parameter.add_(drawn.roll(97 * index).repeat(times)[: parameter.numel()].view_as(parameter))
    images = torch.randn(*image_shape, dtype=torch.float64)
    everything = torch.ones(image_shape[0], *grid_shape, dtype=torch.bool)
    visible = torch.rand(image_shape[0], *grid_shape) < 0.5
    visible.view(image_shape[0], -1)[0] = True
    visible.view(image_shape[0], -1)[-1] = False  # an image that shows nothing
    visible.view(image_shape[0], -1)[-1, 0] = image_shape[0] < 3

    with SameDraws(as_they_come=True):  # what a network computes in float32 stays in float64
        _assert_equal_dense(network, images, everything, run)
        _assert_equal_oracle(network, images, visible, run)
        _assert_no_leak(network, images, visible, run)


def _assert_equal_dense(network, images, everything, run):
    with _left_as_it_was(network):
        dense = _seeded(run, network, images)
    with _left_as_it_was(network):
        patches = _seeded(run, network, gather(images, PatchGrid(everything)))
    for expected, ours in zip(dense, patches, strict=True):
        assert relative(expected, scatter(ours)) < TOLERANCE, "differs from the dense network"


def _assert_equal_oracle(network, images, visible, run):
    oracle = MaskAndMultiply(visible)

    def masked_and_multiplied(images):
        return oracle(lambda x: _seeded(run, network, x), images)

    truth = _step(network, masked_and_multiplied, images)
    assert not oracle.unknown, f"no oracle of {oracle.unknown}"
    ours = _step(network, lambda x: [scatter(f) for f in _seeded(run, network, gather(x, PatchGrid(visible)))], images)
    for expected, got in zip(truth.maps, ours.maps, strict=True):
        assert relative(expected, got) < TOLERANCE, "differs from the oracle"
    noisy_images = images * (1 + 1e-15 * torch.randn_like(images))
    _assert_equal_gradients(
        truth.gradients, ours.gradients, lambda: _step(network, masked_and_multiplied, noisy_images).gradients
    )
    for name, expected in truth.buffers.items():
        if expected.is_floating_point():
            assert relative(expected, ours.buffers[name]) < TOLERANCE, f"buffer {name}"


@dataclass(frozen=True)
class _Step:
    """What one step of training computes."""

    maps: list[Tensor]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def _step(network: nn.Module, run: Callable[[Tensor], list[Tensor]], images: Tensor) -> _Step:
    """A step that changes nothing: cheaper than a step of a copy."""
    before = [buffer.clone() for buffer in network.buffers()]
    maps = run(images)
    generator = torch.Generator().manual_seed(2)
    sum((f * torch.randn(f.shape, generator=generator, dtype=f.dtype)).sum() for f in maps).backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in network.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.zero_grad()
    with torch.no_grad():
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)
    return _Step([f.detach() for f in maps], gradients, buffers)


def _assert_equal_gradients(expected, gradients, reaction_to_roundings):
    """Relative to each gradient itself; of a network that amplifies roundings, to what they do to the truth."""
    largest = max((g.abs().max() for g in expected.values()), default=torch.tensor(1.0))
    # A bias in front of a norm has gradient 0 up to rounding: nothing to be relative to but the other gradients.
    floor = 1e-6 * largest
    scale = {name: g.abs().max().clamp(min=floor) for name, g in expected.items()}
    off = {name: float((g - gradients[name]).abs().max() / scale[name]) for name, g in expected.items()}
    if max(off.values(), default=0) <= TOLERANCE:
        return
    noisy = reaction_to_roundings()
    reaction = max(float((g - expected[name]).abs().max() / scale[name]) for name, g in noisy.items())
    for name, by in off.items():
        assert by <= max(TOLERANCE, min(1e3 * reaction, 1e-4)), (
            f"gradient of {name}: {by:.1e}; roundings alone {reaction:.1e}"
        )


def _assert_no_leak(network, images, visible, run):
    mask = visible[:, None]
    for axis, side in enumerate(images.shape[2:], start=2):
        mask = mask.repeat_interleave(side // mask.shape[axis], axis)
    spoilt = torch.where(mask, images, torch.tensor(float("nan"), dtype=images.dtype))
    grid = PatchGrid(visible)
    with _left_as_it_was(network):
        clean = _seeded(run, network, gather(images, grid))
    with _left_as_it_was(network):
        dirty = _seeded(run, network, gather(spoilt, grid))
    for expected, other in zip(clean, dirty, strict=True):
        assert torch.equal(expected.values, other.values), "depends on masked pixels"


@contextmanager
def _left_as_it_was(network: nn.Module) -> Iterator[None]:
    """A run without gradients changes its statistics at most; quicker than a run of a copy."""
    before = [buffer.clone() for buffer in network.buffers()]
    with torch.no_grad():
        yield
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)


def _seeded(run, network, x):
    torch.manual_seed(1)
    return run(network, x)


def relative(expected: Tensor, actual: Tensor) -> float:
    assert expected.shape == actual.shape
    if not expected.numel():
        return 0.0
    scale = expected.abs().max().clamp(min=1e-30)
    return float(((expected - actual).abs().max() / scale).detach())
