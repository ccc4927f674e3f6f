"""PatchGrid: which patches of each image are visible, and the index tables that follow from it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..errors import UsageError
from .rows import RowTable, compacted

T = TypeVar("T")
Fold = str  # "constant", "reflect", "replicate" or "circular": what a position outside the image shows


class PatchGrid:
    """Which patches of each image of a batch are visible, with cached index tables.

    Args:
        visible: bool (B, *shape), True = visible. Counts may differ from image to image and may be 0.

    Attributes:
        batch_size: B.
        shape: patches along each spatial axis, (h, w) for pictures, (d, h, w) for volumes.
        cells: (N,) int64, the visible patches as positions in the flattened (B, *shape), in order.
        slots: (B * prod(shape),) int64, the row of each patch among the visible ones, N where masked.
        visible_per_image: their number where it is known to be the same in each image, else None.
        process_group: processes over whose visible positions batch norms take their statistics; None: this one alone.
    """

    process_group: ProcessGroup | None = None

    def __init__(self, visible: Tensor):
        if visible.dtype != torch.bool or visible.dim() < 2:
            raise UsageError(
                f"visible must be a bool tensor (B, h, w), True = visible, but is {visible.dtype} of shape "
                f"{tuple(visible.shape)}. Convert it with mask.bool(), or ~mask.bool() if True means masked."
            )
        cells = visible.flatten().nonzero().squeeze(1)
        self._fill(cells, visible.shape[0], tuple(visible.shape[1:]), None)

    def _fill(self, cells: Tensor, batch_size: int, shape: tuple[int, ...], per_image: int | None) -> None:
        self.cells = cells
        self.batch_size = batch_size
        self.shape = shape
        self.visible_per_image = per_image
        slots = cells.new_full((batch_size * math.prod(shape),), cells.shape[0])
        self.slots = slots.scatter(0, cells, torch.arange(cells.shape[0], device=cells.device))
        self.image = cells // math.prod(shape)
        self._tables: dict[object, object] = {}

    @classmethod
    def random(
        cls,
        batch_size: int,
        shape: Sequence[int],
        mask_ratio: float = 0.6,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> PatchGrid:
        """Draw round(prod(shape) * (1 - mask_ratio)) visible patches in each image, uniformly.

        The numbers are drawn on the generator's device, then moved, so that a CPU generator gives the same masks on
        every machine. Nothing waits for the device: the number of visible patches is known beforehand.
        """
        if not 0 <= mask_ratio <= 1:
            raise UsageError(f"mask_ratio must lie between 0 and 1, but is {mask_ratio}.")
        patches = math.prod(shape)
        keep = round(patches * (1 - mask_ratio))
        draw_on = generator.device if generator is not None else device
        score = torch.rand(batch_size, patches, generator=generator, device=draw_on)
        chosen = score.topk(keep, dim=1).indices.sort(dim=1).values  # (B, keep)
        chosen = chosen + torch.arange(batch_size, device=chosen.device)[:, None] * patches
        cells = chosen.flatten().to(device, non_blocking=True)  # or else the host would wait for the copy
        return cls.from_cells(cells, batch_size, tuple(shape), keep)

    @classmethod
    def from_cells(
        cls, cells: Tensor, batch_size: int, shape: tuple[int, ...], visible_per_image: int | None = None
    ) -> PatchGrid:
        """Make a grid from sorted positions (N,) in the flattened (B, *shape); needs no `nonzero`."""
        grid = cls.__new__(cls)
        grid._fill(cells, batch_size, shape, visible_per_image)
        return grid

    @property
    def visible(self) -> Tensor:
        """bool (B, *shape), True = visible."""
        return (self.slots < self.num_visible).view(self.batch_size, *self.shape)

    @property
    def num_visible(self) -> int:
        """N, the number of visible patches in the whole batch."""
        return self.cells.shape[0]

    @property
    def device(self) -> torch.device:
        return self.cells.device

    def counts(self) -> Tensor:
        """(B,) int64, the visible patches of each image."""

        def build() -> Tensor:
            zeros = self.cells.new_zeros(self.batch_size)
            return zeros.index_add(0, self.image, torch.ones_like(self.image))

        return self.cached("counts", build)

    def to(self, device: torch.device | str) -> PatchGrid:
        if self.device == torch.device(device):
            return self
        return self._again(self.cells.to(device))

    def afresh(self) -> PatchGrid:
        """The same grid with its index tables yet to be built.

        For a function that `torch.compile` traces: tables that it left behind in a grid from outside would become
        results of the graph. What it returns may not have this grid, then.
        """
        return self._again(self.cells)

    def _again(self, cells: Tensor) -> PatchGrid:
        grid = PatchGrid.from_cells(cells, self.batch_size, self.shape, self.visible_per_image)
        return grid if self.process_group is None else grid.across(self.process_group)

    def across(self, group: ProcessGroup | None) -> PatchGrid:
        """The same grid, its index tables shared, as one process's part of a group's batch."""
        grid = copy.copy(self)
        grid.process_group = group
        return grid

    def __repr__(self) -> str:
        h_w = "×".join(map(str, self.shape))
        return f"PatchGrid({self.batch_size} images of {h_w} patches, {self.num_visible} visible)"

    # ---------------------------------------------------------------- index tables

    def cached(self, key: object, build: Callable[[], T]) -> T:
        """The plan under `key`, built on first use: layers that need the same table share it."""
        if key not in self._tables:
            self._tables[key] = build()
        return self._tables[key]  # type: ignore[return-value]

    def windows(self, patch: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...], fold: Fold) -> RowTable:
        """Table of each visible patch with its surroundings: N * prod(size) rows from N * prod(patch) rows.

        Args:
            patch: positions of a patch along each axis, p.
            start: first position of the window along each axis, relative to the patch (-1: one row of halo before it).
            size: positions of the window along each axis.
            fold: what lies outside the image.
        """

        def build() -> RowTable:
            if fold != "constant":
                return self._folded_windows(patch, start, size, fold)
            span = _Span(patch, start, size, self.device)
            around = self._neighbours(span.first, span.count)  # (N, neighbours)
            index = self._rows(around, span.neighbour, span.local, math.prod(patch))
            return RowTable(index, self.num_visible * math.prod(patch), lambda: self._windows_showing(span))

        return self.cached(("windows", patch, start, size, fold), build)

    def _windows_showing(self, span: _Span) -> tuple[Tensor, Tensor]:
        """`RowTable.inverse_bags` of a table of windows, without sorting.

        The windows that show a patch are those of its neighbours, each position at places that are the same for all.
        """
        behind = tuple(1 - first - count for first, count in zip(span.first, span.count, strict=True))
        around = self._neighbours(behind, span.count)  # (N, neighbours): who sees this patch as its own neighbour
        cells = span.local.shape[0]
        order = span.local.argsort(stable=True)
        mirrored = math.prod(span.count) - 1 - span.neighbour[order]
        seen_by = around.index_select(1, mirrored)  # (N, cells), source by source
        found = seen_by < self.num_visible
        row = seen_by * cells + order.to(seen_by.dtype)
        ends = torch.cat([found.new_zeros(1, dtype=torch.int32), found.flatten().cumsum(0, dtype=torch.int32)])
        shown = torch.searchsorted(span.local[order], torch.arange(1, span.positions + 1, device=self.device))
        at = torch.arange(self.num_visible, device=self.device)[:, None] * cells + shown
        return compacted(row.flatten(), found.flatten()), torch.cat([ends[:1], ends[at.flatten()]])

    def _neighbours(self, first: tuple[int, ...], count: tuple[int, ...]) -> Tensor:
        """int32 (N, prod(count)): the slot of each patch in a block around each visible patch that begins at `first`.

        N stands for a masked patch, N + 1 for one outside the image.
        """

        def build() -> Tensor:
            place, inside = self.cells % math.prod(self.shape), None
            cell = self.image[:, None]
            for axis, (h, begin, n) in enumerate(zip(self.shape, first, count, strict=True)):
                at = (place // math.prod(self.shape[axis + 1 :]) % h)[:, None] + torch.arange(
                    begin, begin + n, device=self.device
                )  # (N, n)
                within = (at >= 0) & (at < h)
                cell = (cell[:, :, None] * h + at.clamp(0, h - 1)[:, None, :]).flatten(1)
                inside = within if inside is None else (inside[:, :, None] & within[:, None, :]).flatten(1)
            return torch.where(inside, self.slots[cell], self.num_visible + 1).to(torch.int32)  # type: ignore[arg-type]

        return self.cached(("neighbours", first, count), build)

    def _rows(self, slots: Tensor, which: Tensor, local: Tensor, positions: int) -> Tensor:
        """(M, n) slots to rows (M * cells,): cell c shows position local[c] of the patch in column which[c]."""
        slot = slots.index_select(1, which)
        row = slot * positions + local.to(slot.dtype)
        return torch.where(slot < self.num_visible, row, slot + self.num_visible * (positions - 1)).flatten()

    def _folded_windows(
        self, patch: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...], fold: Fold
    ) -> RowTable:
        offsets = [torch.arange(b, b + n, device=self.device) for b, n in zip(start, size, strict=True)]
        positions = [
            torch.arange(h, device=self.device)[:, None] * p + o[None]
            for h, p, o in zip(self.shape, patch, offsets, strict=True)
        ]  # each (h_i, size_i): absolute positions
        cell, local, inside = self._locate(positions, patch, fold)  # each (*shape, *size)
        place = math.prod(self.shape)
        where = self.cells % place  # (N,)
        cell = cell.flatten(0, len(patch) - 1).flatten(1).index_select(0, where) + self.image[:, None] * place
        local = local.flatten(0, len(patch) - 1).flatten(1).index_select(0, where)
        inside = inside.flatten(0, len(patch) - 1).flatten(1).index_select(0, where)
        return self._row_table(cell, local, inside, patch)

    def taps(
        self,
        patch: tuple[int, ...],
        start: tuple[int, ...],
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
        fold: Fold,
    ) -> RowTable:
        """Table of what a kernel sees at each output position: rows (N, *out, *kernel), flattened."""

        def build() -> RowTable:
            size = tuple(p - s + (k - 1) * d + 1 for p, s, k, d in zip(patch, stride, kernel, dilation, strict=True))
            windows = self.windows(patch, start, size, fold).index.view(-1, *size)
            for axis, (k, d, s) in enumerate(zip(kernel, dilation, stride, strict=True)):
                windows = windows.unfold(1 + axis, (k - 1) * d + 1, s)[..., ::d]
            return RowTable(windows.reshape(-1), self.num_visible * math.prod(patch))

        return self.cached(("taps", patch, start, kernel, stride, dilation, fold), build)

    def images(self, patch: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...], fold: Fold) -> RowTable:
        """Table of whole images, padded: B * prod(h * p + before + after) rows from N * prod(patch) rows."""

        def build() -> RowTable:
            positions = [
                torch.arange(-b, h * p + a, device=self.device)[None]
                for h, p, b, a in zip(self.shape, patch, before, after, strict=True)
            ]
            cell, local, inside = (t.reshape(-1) for t in self._locate(positions, patch, fold))
            slots = self.slots.view(self.batch_size, -1).to(torch.int32)
            outside = slots.new_full((self.batch_size, 1), self.num_visible + 1)
            which = torch.where(inside, cell, slots.shape[1])
            index = self._rows(torch.cat([slots, outside], 1), which, local, math.prod(patch))
            once = fold == "constant" and min(*before, *after, 0) == 0
            sides = tuple(h * p + b + a for h, p, b, a in zip(self.shape, patch, before, after, strict=True))
            return RowTable(
                index,
                self.num_visible * math.prod(patch),
                (lambda: _one_each(self._within_images(patch, before, sides))) if once else None,
            )

        return self.cached(("images", patch, before, after, fold), build)

    def crops(self, patch: tuple[int, ...]) -> RowTable:
        """Table of the visible patches within whole images: N * prod(patch) rows from B * prod(h * p) rows."""

        def build() -> RowTable:
            sides = tuple(h * p for h, p in zip(self.shape, patch, strict=True))
            index = self._within_images(patch, (0,) * len(patch), sides)
            return RowTable(
                index,
                self.batch_size * math.prod(sides),
                lambda: self.images(patch, (0,) * len(patch), (0,) * len(patch), "constant").bags(),
            )

        return self.cached(("crops", patch), build)

    def _within_images(self, patch: tuple[int, ...], before: tuple[int, ...], sides: tuple[int, ...]) -> Tensor:
        """int32 (N * prod(patch),): where each position of each visible patch lies in flattened (B, *sides)."""
        place = self.cells % math.prod(self.shape)
        row = self.image[:, None].to(torch.int32)
        for axis, (h, p, b, side) in enumerate(zip(self.shape, patch, before, sides, strict=True)):
            corner = (place // math.prod(self.shape[axis + 1 :]) % h * p + b)[:, None].to(torch.int32)
            at = corner + torch.arange(p, device=self.device, dtype=torch.int32)  # (N, p)
            row = (row[:, :, None] * side + at[:, None, :]).flatten(1)
        return row.flatten()

    def _locate(self, positions: list[Tensor], patch: tuple[int, ...], fold: Fold) -> tuple[Tensor, Tensor, Tensor]:
        """Absolute positions along each axis, (a_i, n_i), to (cell, place within the cell, inside?), (*a, *n) each."""
        dims = len(patch)
        cell = local = torch.zeros((), dtype=torch.int64, device=self.device)
        inside = torch.ones((), dtype=torch.bool, device=self.device)
        for axis, (h, p, at) in enumerate(zip(self.shape, patch, positions, strict=True)):
            at = folded(at, h * p, fold)
            view = [1] * (2 * dims)
            view[axis], view[dims + axis] = at.shape
            within = (at >= 0) & (at < h * p)
            cell = cell * h + torch.div(at, p, rounding_mode="floor").view(view)
            local = local * p + (at % p).view(view)
            inside = inside & within.view(view)
        return torch.where(inside, cell, 0), local, inside

    def _row_table(self, cell: Tensor, local: Tensor, inside: Tensor, patch: tuple[int, ...]) -> RowTable:
        positions = math.prod(patch)
        masked = self.num_visible * positions
        slot = self.slots[cell]
        row = torch.where(slot < self.num_visible, slot * positions + local, masked)
        return RowTable(torch.where(inside, row, masked + 1).flatten().to(torch.int32), masked)


class _Span:
    """Where the positions of a window lie: in which neighbour of a patch, and where in it; the same for all patches.

    Attributes:
        first, count: the block of neighbours, along each axis, relative to the patch.
        neighbour: (prod(size),) which neighbour of the block each position of the window lies in.
        local: (prod(size),) which position of that patch it is.
        positions: of a patch.
    """

    def __init__(
        self, patch: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...], device: torch.device
    ) -> None:
        self.positions = math.prod(patch)
        self.first = tuple(b // p for b, p in zip(start, patch, strict=True))
        ends = [(b + n - 1) // p for b, n, p in zip(start, size, patch, strict=True)]
        self.count = tuple(end - first + 1 for end, first in zip(ends, self.first, strict=True))
        self.neighbour = self.local = torch.zeros(1, dtype=torch.int64, device=device)
        for p, b, n, first, count in zip(patch, start, size, self.first, self.count, strict=True):
            at = torch.arange(b, b + n, device=device)
            which = torch.div(at, p, rounding_mode="floor") - first
            self.neighbour = (self.neighbour[:, None] * count + which).flatten()
            self.local = (self.local[:, None] * p + at % p).flatten()


def _one_each(index: Tensor) -> tuple[Tensor, Tensor]:
    """Bags of one row each."""
    return index, torch.arange(index.shape[0] + 1, device=index.device, dtype=index.dtype)


def folded(position: Tensor, size: int, fold: Fold) -> Tensor:
    """Positions outside [0, size) mapped back into it as the padding mode says; left as they are for "constant"."""
    if fold == "circular":
        return position % size
    if fold == "replicate":
        return position.clamp(0, size - 1)
    if fold == "reflect":
        return size - 1 - (size - 1 - position.abs()).abs()
    return position
