"""Copying rows, with a gradient that is itself a copy.

Every neighbourhood on visible patches is such a copy. Its rows are the positions of the patches: one row is the
channels of one position, contiguous in channels-last memory. A copy has two directions: `there` makes result rows of
source rows, and `back` sums for each source row the gradients of the result rows that show it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from .faster import registered
from .plans import Entries, Plan, cells_seeing, columns, multiples, seen_by_cell

T = TypeVar("T")

# embedding_bag copies and sums rows several times faster than index_select / index_add, in a fixed order.
_BAG_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

SumRows = Callable[[Tensor, Tensor, Tensor, int, float], Tensor]
"""rows (N * positions, C), slots (blocks, block), entries (results, most, 2), N, `outside` -> (blocks * results, C):
of each result's entries the sum, with 0 for masked positions and `outside` for those outside the image."""

SumKernel = Callable[[Tensor], SumRows | None]
"""Rows -> a faster way to sum them, or None."""


class Copy(Protocol):
    """A copy of rows (S, C) to rows (R, C), and its gradient."""

    def there(self, rows: Tensor, /) -> Tensor: ...

    def back(self, grad: Tensor, /) -> Tensor: ...

    def reversed(self) -> Copy:
        """Its gradient as a copy, whose gradient is this copy again, but for what lies outside."""
        ...


def copied(rows: Tensor, copy: Copy) -> Tensor:
    """`copy.there(rows)`, with its gradient."""
    return _Copied.apply(rows, copy)


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, copy: Copy) -> Tensor:  # type: ignore[override]
        ctx.copy = copy
        return copy.there(rows)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return _back(grad, ctx.copy), None


def _back(grad: Tensor, copy: Copy) -> Tensor:
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return copy.back(grad)
    return copied(grad, copy.reversed())  # whose own gradient may be asked for (create_graph)


# ---------------------------------------------------------------- sums of rows of the patches around


class Around:
    """Blocks of patches: those around each visible patch, or all of an image.

    Args:
        slots: int32 (blocks, block) which of the N visible patches lies where; N where masked, N + 1 outside the image.
        patches: N
        own: int32 (blocks,) a visible patch that may be read, and multiplied by 0, where none is.
    """

    def __init__(self, slots: Tensor, patches: int, own: Callable[[], Tensor]) -> None:
        self.slots, self.patches = slots, patches
        self.own = own
        self._tables: dict[object, Tensor] = {}

    def index(self, entries: Entries, positions: int) -> Tensor:
        """int32 (blocks * results * most,): the row that each entry means, of patches of so many positions."""

        def build() -> Tensor:
            return torch.where(self._visible(), self.slots, self.own()[:, None])

        patch = once(self._tables, "nearest", build).index_select(1, entries.patch)
        return torch.add(entries.position, patch, alpha=positions).flatten()

    def weights(self, entries: Entries, dtype: torch.dtype) -> Tensor:
        """(blocks * results * most,): 1 where that row is visible, else 0."""
        weights = once(self._tables, dtype, lambda: self._visible().to(dtype)).index_select(1, entries.patch)
        return (weights if entries.present is None else weights * entries.present).flatten()

    def outside(self, entries: Entries) -> Tensor:
        """bool (blocks * results, 1): whether each result looks outside the image."""
        return (self.slots > self.patches).index_select(1, entries.patch).view(-1, 1)

    def _visible(self) -> Tensor:
        """bool (blocks, block)"""
        return once(self._tables, "visible", lambda: self.slots < self.patches)


def once(known: dict[object, Any], key: object, build: Callable[[], T]) -> T:
    """What was built under this key before; in a graph that is being traced, where nothing may be kept, always anew."""
    if torch.compiler.is_compiling():
        return build()
    if key not in known:
        known[key] = without_inference(build)
    return known[key]


def without_inference(build: Callable[[], T]) -> T:
    """What is kept may be needed for training later, which tensors made in inference mode cannot be."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return build()
    with torch.inference_mode(False), torch.no_grad():
        return build()


def filled(rows: Tensor, fill: Tensor, images: IntoImages) -> Tensor:
    """Rows of whole images, `fill` (1, C) where nothing is visible; with the gradients of both."""
    return _Filled.apply(rows, fill, images)


class _Filled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, fill: Tensor, images: IntoImages) -> Tensor:  # type: ignore[override]
        ctx.images = images
        return images.filled(rows, fill)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        to_rows = _back(grad, ctx.images)
        if not ctx.needs_input_grad[1]:
            return to_rows, None, None
        wide = torch.promote_types(grad.dtype, torch.float32)
        # What all rows add up to, less those that are visible: nothing of the masked ones is gathered.
        to_fill = grad.sum(0, keepdim=True, dtype=wide) - to_rows.sum(0, keepdim=True, dtype=wide)
        return to_rows, to_fill.to(grad.dtype), None


class Sums:
    """Rows that are sums of rows of the patches around: (N * positions, C) to (blocks * results, C).

    Args:
        around: the blocks.
        positions: of a patch that is read.
        entries, of: `entries(*of)`, int32 (results, most, 2), is what each result of a block is the sum of (plans.py);
            masked rows count as 0.
    """

    def __init__(self, around: Around, positions: int, entries: Callable[..., Tensor], *of: Any) -> None:
        self.around, self.positions, self._entries, self._of = around, positions, entries, of
        self._tables: dict[object, Any] = {}

    def of(self, rows: Tensor, groups: int = 1, outside: float = 0.0) -> Tensor:
        """(N * positions, C) -> (groups * blocks * results, C / groups), one group of channels after the other.

        Args:
            outside: what lies outside the image, where each result looks at one position.
        """
        # Detached: for rows that want a gradient, embedding_bag keeps books of its own.
        rows = rows.detach().contiguous()
        for kernel in registered().sums:
            run = kernel(rows)
            if run is not None:
                sums = run(rows, self.around.slots, self._entries(*self._of), self.around.patches, outside)
                return _by_group(sums, groups)
        entries = columns(self._entries, *self._of)
        index = once(self._tables, "index", lambda: self.around.index(entries, self.positions))
        if not rows.shape[0]:
            return rows.new_zeros(groups * index.shape[0] // entries.most, rows.shape[1] // groups)
        weights = once(self._tables, rows.dtype, lambda: self.around.weights(entries, rows.dtype))
        sums = _sum_weighted(rows, index, weights, entries.most)
        if outside:
            sums = sums.masked_fill(self.around.outside(entries), outside)
        return _by_group(sums, groups)


def _sum_weighted(rows: Tensor, index: Tensor, weights: Tensor, most: int) -> Tensor:
    """rows (S, C) -> (R, C): of `most` rows each, index (R * most,), times their weights (R * most,)."""
    results = index.shape[0] // most
    if rows.dtype in _BAG_DTYPES and results and not torch.compiler.is_compiling():
        offsets = multiples(results, most, rows.device)
        return torch.embedding_bag(  # mode 0: sums
            rows, index, offsets, mode=0, per_sample_weights=weights, include_last_offset=True
        )[0]
    terms = rows.index_select(0, index) * weights[:, None]  # in a graph, one kernel with what is before and after
    return terms if most == 1 else terms.view(results, most, rows.shape[1]).sum(1)


def _by_group(rows: Tensor, groups: int) -> Tensor:
    """(R, C) -> (groups * R, C / groups)"""
    return rows if groups == 1 else rows.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)


def _of_groups(rows: Tensor, groups: int) -> Tensor:
    """(groups * R, C / groups) -> (R, C)"""
    return rows if groups == 1 else rows.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1)


# ---------------------------------------------------------------- the copies


class FromPatches:
    """What a plan sees: N * cells rows from N * positions rows.

    Args:
        around: the patches around each.
        plan: what each cell sees.
        outside: what lies outside the image; masked positions are 0.
    """

    def __init__(self, around: Around, plan: Plan, outside: float = 0.0) -> None:
        device = around.slots.device
        self.outside = outside
        self._there = Sums(around, plan.positions, seen_by_cell, plan, device)
        self._back = Sums(around, plan.cells, cells_seeing, plan, device)

    def there(self, rows: Tensor, groups: int = 1) -> Tensor:
        """(N * positions, C) -> (groups * N * cells, C / groups), one group of channels after the other."""
        return self._there.of(rows, groups, self.outside)

    def back(self, grad: Tensor, groups: int = 1) -> Tensor:
        """(groups * N * cells, C / groups) -> (N * positions, C)"""
        return self._back.of(_of_groups(grad, groups))

    def reversed(self) -> FromPatches:
        other = copy.copy(self)
        other.outside, other._there, other._back = 0.0, self._back, self._there
        return other


class IntoImages:
    """Visible patches put into images of zeros: rows of whole images from N * positions rows.

    Args:
        sums: what each row of the images is.
        filled: the same where one more patch stands for all masked ones.
        index: int64 (N * positions,) where each row of the patches goes.
    """

    def __init__(self, sums: Sums, filled: Sums, index: Tensor) -> None:
        self._sums, self._filled, self._index = sums, filled, index

    def there(self, rows: Tensor, /) -> Tensor:
        """(N * positions, C) -> (rows of all images, C)"""
        return self._sums.of(rows)

    def filled(self, rows: Tensor, fill: Tensor) -> Tensor:
        """The same, with `fill` (1, C) in place of zeros."""
        return self._filled.of(torch.cat([rows, fill.expand(self._filled.positions, -1)]))

    def back(self, grad: Tensor, /) -> Tensor:
        """(rows of all images, C) -> (N * positions, C)"""
        return grad.index_select(0, self._index)

    def reversed(self) -> OutOfImages:
        return OutOfImages(self._sums, self._filled, self._index)


class OutOfImages(IntoImages):
    """Visible patches cut out of images."""

    there, back = IntoImages.back, IntoImages.there

    def reversed(self) -> IntoImages:  # type: ignore[override]
        return IntoImages(self._sums, self._filled, self._index)
