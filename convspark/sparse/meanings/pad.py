"""F.pad: announced rather than written, so that the next conv or pool gathers its window with the padding in it."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import functional

from .. import axes as lay
from ..registry import Refusal, meaning
from ..tensor import GridTensor, Padding, PaddingStep, PerImage, VisiblePatches, as_same_kind
from .neighbourhood import with_patches_first
from .operands import dense_batch, unpadded


@meaning(functional.pad)
def pad(func, input: GridTensor, pad: Sequence[int], mode: str = "constant", value: float | None = None):
    """Along channels: at once. Along positions: announced, for the next convolution, pooling or pad."""
    x = input if isinstance(input, VisiblePatches) and input.pending is not None else unpadded(input)
    pads = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)][::-1]  # outermost first
    if isinstance(x, PerImage):
        if len(pads) == x.dim() and any(pads[0]):
            raise Refusal("it pads the axis of images")
        return dense_batch(func, x, pad, mode, value)
    assert isinstance(x, VisiblePatches)
    first = x.dim() - len(pads)
    of_axis = {first + i: pair for i, pair in enumerate(pads) if any(pair)}
    if not of_axis:
        return as_same_kind(x.clone(), x, x.axes) if x.pending is None else x
    channels = {axis: pair for axis, pair in of_axis.items() if lay.is_plain(x.axes[axis])}
    if channels:
        if x.pending is not None:
            raise Refusal("it pads channels of a tensor that is padded already: pad them first, or together")
        x = _padded_channels(x, channels, mode, value)
    positions = {axis: pair for axis, pair in of_axis.items() if axis not in channels}
    return announce(x, positions, mode, float(value or 0.0)) if positions else x


def _padded_channels(
    x: VisiblePatches, pads: dict[int, tuple[int, int]], mode: str, value: float | None
) -> VisiblePatches:
    if mode != "constant":
        raise Refusal(f"it pads channels with mode={mode!r}")
    flat = [n for axis in reversed(range(x.dim())) for n in pads.get(axis, (0, 0))]
    out = functional.pad(x.values, flat, mode, value)  # Dynamo wants a plain tensor
    layout = tuple(lay.plain_axis(out.shape[at]) if at in pads else axis for at, axis in enumerate(x.axes))
    padded = as_same_kind(out, x, layout)
    assert isinstance(padded, VisiblePatches)
    return padded


def announce(
    x: VisiblePatches, pads: dict[int, tuple[int, int]], mode: str = "constant", value: float = 0.0, view: bool = False
) -> VisiblePatches:
    """With `pads` positions around each axis; `view`: a map without its border, as slices take it."""
    core = x if x.pending is None else x.pending.core
    with_patches_first(core)  # refuses what no convolution can take
    if 0 in pads:
        raise Refusal("it pads patches")
    step = PaddingStep(tuple(pads.get(axis, (0, 0)) for axis in range(2, x.dim())), mode, value)
    return (Padding(core, [step], view) if x.pending is None else x.pending.followed_by(step)).announced()
