"""F.pad: announced rather than written, so that the next conv or pool gathers its window with the padding in it."""

from __future__ import annotations

from torch.nn import functional

from .. import axes as lay
from ..registry import Refusal, meaning
from ..tensor import Padding, PerImage, VisiblePatches, as_patches, as_same_kind
from .neighbourhood import with_patches_first
from .operands import arguments, dense_batch


@meaning(functional.pad)
def pad(func, args, kwargs):
    x = args[0]
    given = arguments(args, kwargs, "pad", "mode", "value")
    pads = [(given["pad"][i], given["pad"][i + 1]) for i in range(0, len(given["pad"]), 2)][::-1]  # outermost first
    mode, value = given.get("mode", "constant"), given.get("value") or 0.0
    if isinstance(x, PerImage):
        if len(pads) == x.dim() and any(pads[0]):
            raise Refusal("it pads the axis of images")
        return dense_batch(func, x, args, kwargs)
    if not any(any(pair) for pair in pads):
        return x
    padded = dict(zip(range(x.dim() - len(pads), x.dim()), pads, strict=True))
    if x.pending is None and all(lay.is_plain(x.axes[axis]) for axis, pair in padded.items() if any(pair)):
        out = func(*args, **kwargs)
        layout = tuple(
            lay.plain_axis(out.shape[at]) if any(padded.get(at, (0, 0))) else axis for at, axis in enumerate(x.axes)
        )
        return as_same_kind(out, x, layout)
    return _announce(x, padded, mode, float(value))


def _announce(x: VisiblePatches, padded: dict[int, tuple[int, int]], mode: str, value: float) -> VisiblePatches:
    core = x if x.pending is None else x.pending.core
    with_patches_first(core)  # refuses what no convolution can take
    if any(any(padded.get(axis, (0, 0))) for axis in (0, 1)):
        raise Refusal("it pads patches or, together with positions, channels")
    pads = tuple(padded.get(axis, (0, 0)) for axis in range(2, x.dim()))
    if x.pending is not None:
        if (mode, value) != ("constant", x.pending.value) or x.pending.mode != "constant":
            raise Refusal("it pads a tensor that was padded in another way")
        pads = tuple((a + c, b + d) for (a, b), (c, d) in zip(x.pending.pads, pads, strict=True))
    sizes = [p + lo + hi for p, (lo, hi) in zip(core.shape[2:], pads, strict=True)]
    # Cells that nobody wrote: a number that shows if anybody reads it.
    unwritten = core.new_full((1,), float("nan")).expand(*core.shape[:2], *sizes)
    announced = as_patches(unwritten, core.grid, (*core.axes[:2], *(((i, n),) for i, n in enumerate(sizes))))
    announced.pending = Padding(core, pads, mode, value)
    return announced
