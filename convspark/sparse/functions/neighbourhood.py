"""What convolutions and poolings share: which window of the map a patch needs, and exact ways to run on it.

* **patch**: no position needs a neighbour in another patch; the dense op runs on the patches as they are.
* **window**: each patch is gathered with its halo, then the dense op runs without padding.
* **taps**: the kernel's inputs at each output position are gathered and multiplied once (conv.py).
* **pairs**: those of them that are visible are listed and multiplied tap by tap (pairs.py); **across**: only those in
  other patches, while the dense op runs on the patches as they are.
* **depthwise**: neighbours are read where they lie (depthwise.py).
* **image**: patches are put back into whole zero images, padded, the dense op runs, visible positions are cut out.
  It is the definition itself, mask-and-multiply, and the only way for what makes a map larger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .. import layout as lay
from ..grid import PatchGrid, kept
from ..patch_kernel import PatchKernel
from ..patches import (
    VisiblePatches,
    as_patches,
    become_patches,
    flat_rows,
    gather,
    scatter,
    unpadded,
    window,
)
from ..registry import Refusal
from ..rows import RowTable


@dataclass(frozen=True)
class Source:
    """Patches to run on, with the padding that F.pad announced or the op brings itself."""

    values: Tensor  # (N, C, *patch)
    grid: PatchGrid
    pads: tuple[tuple[int, int], ...]
    fold: str
    outside: float

    @property
    def patch(self) -> tuple[int, ...]:
        return tuple(self.values.shape[2:])


def source_of(x: VisiblePatches, padding: tuple[int, ...], outside: float = 0.0, dims: int | None = None) -> Source:
    """Read patches and their padding; refuses paddings that cannot be told apart (one mode on top of another).

    Args:
        x: canonical visible patches, or ones padded by F.pad.
        padding: the op's own symmetric padding of each spatial axis.
        outside: what the op itself takes positions outside the image for.
        dims: spatial axes that the op works on.
    """
    core, pending = (x.pending.core, x.pending) if x.pending is not None else (x, None)
    core = with_patches_first(core)
    if dims is not None and core.dim() != dims + 2:
        raise Refusal(f"it works on {dims} spatial axes, and the patches have {core.dim() - 2}")
    if pending is None:
        return Source(core, core.grid, tuple((p, p) for p in padding), "constant", outside)
    if any(padding):
        same = pending.mode == "constant" and pending.value == outside
        if not same:
            raise Refusal("the op pads a tensor that F.pad padded in another way")
    pads = tuple((lo + p, hi + p) for (lo, hi), p in zip(pending.pads, padding, strict=True))
    return Source(core, core.grid, pads, pending.mode, pending.value)


def with_patches_first(x: VisiblePatches) -> VisiblePatches:
    """(1, N * C, *positions), as conditional convolutions arrange it, to (N, C, *positions); refuses other orders."""
    if lay.is_canonical(x.axes):
        return x
    joined = (
        len(x.axes) > 2 and not x.axes[0] and [role for role, _ in x.axes[1]] in ([lay.PATCH, lay.PLAIN], [lay.PATCH])
    )
    if joined and [[role for role, _ in axis] for axis in x.axes[2:]] == [[axis] for axis in range(x.dim() - 2)]:
        values = x.reshape(x.grid.num_visible, -1, *x.shape[2:])
        return as_patches(values, x.grid, lay.canonical(values.shape))
    raise Refusal("its axes are not (patches, channels, *positions)")


def through_images(x: VisiblePatches, function: Callable[[Tensor], Tensor]) -> VisiblePatches:
    """Run a function of whole maps, (B, C, *sides) -> (B, C', *sides'), on patches put back into zero images.

    Refuses unless the result again has a whole number of positions for each patch.
    """
    return cut(function(put_back(x)), x.grid)


def put_back(x: VisiblePatches) -> Tensor:
    """(N, C, *patch) -> (B, C, *sides), 0 at masked positions."""
    return scatter(with_patches_first(unpadded(x)))


def cut(maps: Tensor, grid: PatchGrid) -> VisiblePatches:
    """(B, C, *sides) -> (N, C, *patch); refuses sides that cannot be cut into the grid's patches."""
    if maps.dim() != len(grid.shape) + 2 or any(side % h for side, h in zip(maps.shape[2:], grid.shape, strict=True)):
        sides = tuple(maps.shape[2:])
        raise Refusal(f"it makes maps of {sides} positions, which cannot be cut into {grid.shape} patches")
    return gather(maps, grid)


Sizes = tuple[int, ...]


@kept
def _sizes(
    kernel: Sizes, stride: Sizes, dilation: Sizes, patch: Sizes, grid: Sizes, pads: tuple[tuple[int, int], ...]
) -> tuple[Sizes, ...]:
    """What `Reach` tells, from `extent` to `out`: the same at every step."""
    axes = range(len(kernel))
    extent = tuple((kernel[i] - 1) * dilation[i] + 1 for i in axes)
    before = tuple(lo for lo, _ in pads)
    after = tuple(extent[i] - stride[i] - before[i] for i in axes)
    size = tuple(before[i] + patch[i] + after[i] for i in axes)
    sides = tuple(grid[i] * patch[i] for i in axes)
    image_size = tuple(before[i] + sides[i] + after[i] for i in axes)
    return extent, before, after, size, sides, image_size, tuple(patch[i] // stride[i] for i in axes)


class Reach:
    """How far an op with this kernel, stride and dilation looks from each patch.

    Attributes, each along every axis:
        extent: positions from the first to the last that the kernel sees.
        before: positions needed before a patch's first one.
        after: positions needed behind its last one; negative where the op does not look at the last ones.
        size: positions of a patch with all that it needs around it.
        sides: positions of a whole image.
        image_size: positions of a whole image with all that it needs around it.
        out: positions of a patch in the result.
    """

    def __init__(
        self, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], source: Source
    ) -> None:
        self.kernel, self.stride, self.dilation, self.source = kernel, stride, dilation, source
        patch = source.patch
        sizes = _sizes(kernel, stride, dilation, patch, source.grid.shape, source.pads)
        self.extent, self.before, self.after, self.size, self.sides, self.image_size, self.out = sizes
        for i in range(len(kernel)):
            self._require_whole(patch[i], self.sides[i], stride[i], self._outputs(i))

    def _outputs(self, axis: int) -> int:
        """Positions of the dense op's result along an axis."""
        padded = self.sides[axis] + sum(self.source.pads[axis])
        return (padded - self.extent[axis]) // self.stride[axis] + 1

    @staticmethod
    def _require_whole(patch: int, side: int, stride: int, out: int) -> None:
        """Refuse unless the result again has a whole number of positions for each patch, in the same place."""
        if patch % stride:
            raise Refusal(f"a stride of {stride} does not divide the {patch} positions left in a patch")
        if out != side // stride:
            raise Refusal(
                f"a map of {side} positions becomes one of {out}, not {side // stride}, so its positions no longer "
                "line up with the patches (the padding does not make up for the kernel)"
            )

    @property
    def is_local(self) -> bool:
        """Whether no position needs a neighbour in another patch."""
        return max(self.before) <= 0 and max(self.after) <= 0

    # ---------------------------------------------------------------- the ways to run

    def window(self) -> Tensor:
        """(N, C, *patch) -> (N, C, *size): each patch with what it needs around it."""
        source = self.source
        if not any(self.before) and not any(self.after):
            return source.values
        return window(source.values, self.window_table(), self.size, source.outside)

    def window_table(self) -> RowTable:
        """N * prod(size) rows: each patch with what it needs around it."""
        source = self.source
        return source.grid.windows(source.patch, tuple(-b for b in self.before), self.size, source.fold)

    def tap_table(self) -> RowTable:
        """N * prod(out) * prod(kernel) rows: what the kernel sees at each output position."""
        source, start = self.source, tuple(-b for b in self.before)
        return source.grid.taps(source.patch, start, self.kernel, self.stride, self.dilation, source.fold)

    @property
    def on_patches(self) -> PatchKernel:
        """The kernel, as what looks at neighbours where they lie is told of it."""
        return PatchKernel(self.source.patch, self.kernel, self.stride, self.dilation, self.before)

    def image_table(self) -> RowTable:
        """B * prod(image_size) rows: whole images with what is needed around them."""
        source = self.source
        return source.grid.images(source.patch, self.before, self.after, source.fold)

    def strided_rows(self) -> Tensor:
        """(N, C, *patch) -> (N * prod(out), C): the positions that a kernel of one position sees."""
        if max(self.stride) == 1:
            return flat_rows(self.source.values)
        # Channels last while it is cut, so that its gradient has them last in memory as well.
        rows = self.source.values.movedim(1, -1)[(slice(None), *(slice(None, None, s) for s in self.stride))]
        return rows.reshape(-1, rows.shape[-1])

    def crop_table(self) -> RowTable:
        """N * prod(out) rows: the visible patches of the result, from whole images of it."""
        return self.source.grid.crops(self.out)

    def patches(self, values: Tensor) -> VisiblePatches:
        return become_patches(values, self.source.grid, lay.canonical(values.shape))
