"""Prove that a given network runs exactly on visible patches; name what does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NotExactError
from .grid import PatchGrid
from .oracle import masked_map, visible_part
from .patches import VisiblePatches, gather, scatter

Forward = Callable[[Tensor], Sequence[Tensor]]
TOLERANCE = 1e-8  # relative to the largest value of a map, in float64


def prove(
    forward: Forward,
    module: nn.Module,
    in_chans: int,
    image_size: Sequence[int],
    patch_size: Sequence[int],
    tolerance: float = TOLERANCE,
) -> float:
    """Run a network densely and on visible patches, and compare.

    Two comparisons in float64 and evaluation mode, without gradients: with every patch visible against the dense
    network, and with some masked against the oracle. Parameters, buffers, mode and random state are left as they were.

    Args:
        forward: images or visible patches -> the features of each stage.
        module: the network that `forward` runs, whose parameters are taken to float64 meanwhile.
        in_chans: channels of its images.
        image_size: sides of its images; at most three patches a side are used.
        patch_size: sides of a patch.

    Returns:
        The largest deviation, relative to the largest value of the map.

    Raises:
        NotExactError: the results differ; names the first module whose output does.
    """
    grid_shape = [max(min(side // p, 3), 1) for side, p in zip(image_size, patch_size, strict=True)]
    sides = [h * p for h, p in zip(grid_shape, patch_size, strict=True)]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, in_chans, *sides, generator=generator, dtype=torch.float64).to(device)
    everything = PatchGrid(torch.ones(2, *grid_shape, dtype=torch.bool, device=device))
    some = torch.rand(2, *grid_shape, generator=generator).to(device) < 0.5
    some.view(2, -1)[:, 0] = True  # something to compare in each image
    deviation = 0.0
    with _in_float64(module), torch.no_grad(), torch.random.fork_rng(devices=[]):
        visible = gather(images, everything)
        deviation = _compare(forward, module, images, visible, "with every patch visible, the dense network", tolerance)
        if math.prod(grid_shape) > 1:
            masked = masked_map(images, some)
            visible = gather(images, PatchGrid(some))
            truth = "with some patches masked, the same network run by mask-and-multiply"
            deviation = max(deviation, _compare(forward, module, masked, visible, truth, tolerance))
    return deviation


def _compare(
    forward: Forward, module: nn.Module, whole: Tensor, visible: VisiblePatches, truth: str, tolerance: float
) -> float:
    """Largest relative deviation between the features of whole maps and of visible patches."""
    expected, found = forward(whole), forward(visible)
    deviations = [_deviation(e, f) for e, f in zip(expected, found, strict=True)]
    if max(deviations) <= tolerance:
        return max(deviations)
    stage = next(i for i, d in enumerate(deviations) if not d <= tolerance)
    raise NotExactError(
        f"{type(module).__name__} is not exact on visible patches: {truth} gives other features at stage {stage} "
        f"(relative deviation {deviations[stage]:.2g}, tolerated {tolerance:.0e}). "
        f"{_culprit(forward, module, whole, visible, tolerance)} "
        "A function there may act by the size of what it is given (coordinates, a pooling over the whole map). "
        "Take stages before that module, or give the function a meaning with convspark.sparse.meaning."
    )


def _culprit(forward: Forward, module: nn.Module, whole: Tensor, visible: Tensor, tolerance: float) -> str:
    """Sentence naming the first module whose output deviates."""
    expected, found = _outputs(forward, module, whole), _outputs(forward, module, visible)
    for (name, kind, e), (_, _, f) in zip(expected, found, strict=False):
        if e.shape[1:2] == f.shape[1:2] and not _deviation(e, f) <= tolerance:
            return f"The first module to differ is {name} ({kind})."
    return "No single module could be made out."


def _outputs(forward: Forward, module: nn.Module, images: Tensor) -> list[tuple[str, str, Tensor]]:
    """Path, class and output of each module, in the order in which they finish."""
    seen: list[tuple[str, str, Tensor]] = []

    def remember(name: str) -> Callable[..., None]:
        def hook(owner: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() >= 3:
                seen.append((name or "the network itself", type(owner).__name__, output))

        return hook

    handles = [owner.register_forward_hook(remember(name)) for name, owner in module.named_modules()]
    try:
        forward(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _deviation(expected: Tensor, found: Tensor) -> float:
    """Largest difference relative to the largest expected value; infinite where they cannot be compared."""
    if not isinstance(found, VisiblePatches):
        values = getattr(found, "values", found)
        return _relative(expected, values) if isinstance(values, Tensor) and values.shape == expected.shape else 0.0
    try:
        found_map = scatter(found)
    except Exception:  # a form that cannot be put back into an image says nothing
        return 0.0
    if not isinstance(expected, Tensor) or found_map.shape != expected.shape:
        return math.inf
    truth = visible_part(expected) if type(expected).__name__ == "MaskedMap" else expected
    return _relative(truth, found_map)


def _relative(expected: Tensor, found: Tensor) -> float:
    scale = expected.abs().max()
    difference = (expected - found).abs().max()
    if not torch.isfinite(scale):
        return math.inf
    return float(difference / scale) if scale > 0 else float(difference)


@contextmanager
def _in_float64(module: nn.Module) -> Iterator[None]:
    """The module's floating-point tensors in float64 and evaluation mode, put back afterwards as they were."""
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    originals = [t.data for t in tensors]
    modes = {owner: owner.training for owner in module.modules()}
    try:
        for tensor in tensors:
            tensor.data = tensor.data.double()
        module.eval()
        yield
    finally:
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.data = original
        for owner, training in modes.items():
            owner.training = training
