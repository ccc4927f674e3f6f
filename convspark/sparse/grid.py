"""PatchGrid: which patches of each image are visible, and the index tables that follow from it."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..errors import UsageError
from .rows import Bags, Near, RowTable, compacted, offsets_of

P = ParamSpec("P")
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
            cells = _window_cells(patch, start, size, self.device)
            return self._table(cells, lambda: cells.rows(self._neighbours(cells.first, cells.count)))

        return self.cached(("windows", patch, start, size, fold), build)

    def _table(self, cells: _Cells, index: Callable[[], Tensor]) -> RowTable:
        """A table of N windows or of their taps."""

        def around(first: tuple[int, ...]) -> Callable[[], Tensor]:
            return lambda: self._neighbours(first, cells.count).contiguous()

        patches, positions, window = self.num_visible, cells.positions, cells.local.shape[0]
        return RowTable(
            index,
            patches * window,
            patches * positions,
            positions,
            lambda: self._cells_showing(cells),
            Near(self.device, patches, positions, around(cells.first), cells.plan),
            Near(self.device, patches, window, around(cells.behind), cells.seen_plan),
        )

    def _cells_showing(self, cells: _Cells) -> Bags:
        """`RowTable.inverse_bags` of a table of windows or taps, without sorting its rows.

        The windows that show a patch are those of its neighbours, each position at cells that are the same for all.
        """
        around = self._neighbours(cells.behind, cells.count).flatten(1)  # (N, neighbours): who sees this patch as one
        seen = around < self.num_visible
        order = cells.order
        first_row = torch.where(seen, around * order.shape[0], -order.shape[0])
        # (neighbours, N) -> (cells, N) -> (N, cells): choosing whole rows, then transposing, is the quickest way.
        row = (first_row.t().contiguous().index_select(0, cells.mirrored) + order[:, None]).t().contiguous()
        counts = (seen.to(cells.shown.dtype) @ cells.shown).to(torch.int32)  # (N, positions)
        return compacted(row.flatten(), row.flatten() >= 0), offsets_of(counts.flatten())

    def _neighbours(self, first: tuple[int, ...], count: tuple[int, ...]) -> Tensor:
        """int32 (N, *count): the slot of each patch in a block around each visible patch that begins at `first`.

        N stands for a masked patch, N + 1 for one outside the image.
        """
        reach = max(1, *(-f for f in first), *(f + n - 1 for f, n in zip(first, count, strict=True)))

        def build() -> Tensor:
            around = self._padded_slots((reach,) * len(self.shape), (reach,) * len(self.shape))
            for axis in range(1, 1 + len(self.shape)):
                around = around.unfold(axis, 2 * reach + 1, 1)
            return around.flatten(0, len(self.shape)).index_select(0, self.cells)

        around = self.cached(("neighbours", reach), build)  # (N, *sides), up to `reach` patches away
        for axis, (f, n) in enumerate(zip(first, count, strict=True), start=1):
            around = around.narrow(axis, reach + f, n)
        return around

    def around(self, reach: tuple[int, ...]) -> Tensor:
        """int32 (N, *(2 * reach + 1)): the slot of each patch up to `reach` patches away; N or more: not visible."""

        def build() -> Tensor:
            return self._neighbours(tuple(-r for r in reach), tuple(2 * r + 1 for r in reach)).contiguous()

        return self.cached(("around", reach), build)

    def _padded_slots(self, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
        """int32 (B, *(before + h + after)): slots, N where masked, N + 1 outside the image."""
        slots = self.slots.to(torch.int32).view(self.batch_size, *self.shape)
        pads = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
        return torch.nn.functional.pad(slots, pads, value=self.num_visible + 1)

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

            def index() -> Tensor:
                windows = self.windows(patch, start, size, fold).index
                return _taps(windows.view(-1, *size), kernel, stride, dilation).flatten()

            if fold == "constant":
                return self._table(_tap_cells(patch, start, size, kernel, stride, dilation, self.device), index)
            outputs = (p // s for p, s in zip(patch, stride, strict=True))
            results = self.num_visible * math.prod(outputs) * math.prod(kernel)
            return RowTable(index, results, self.num_visible * math.prod(patch), math.prod(patch))

        return self.cached(("taps", patch, start, kernel, stride, dilation, fold), build)

    def images(self, patch: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...], fold: Fold) -> RowTable:
        """Table of whole images, padded: B * prod(h * p + before + after) rows from N * prod(patch) rows."""

        def build() -> RowTable:
            sides = tuple(h * p + b + a for h, p, b, a in zip(self.shape, patch, before, after, strict=True))
            cells = _image_cells(patch, self.shape, before, sides, fold, self.device)
            whole = self._padded_slots(
                tuple(max(-(-b // p), 0) for b, p in zip(before, patch, strict=True)),
                tuple(max(-(-a // p), 0) for a, p in zip(after, patch, strict=True)),
            )
            once = fold == "constant" and min(*before, *after, 0) == 0
            return RowTable(
                lambda: cells.rows(whole),
                self.batch_size * math.prod(sides),
                self.num_visible * math.prod(patch),
                math.prod(patch),
                (lambda: _one_each(self._within_images(patch, before, sides))) if once else None,
                Near(self.device, self.num_visible, math.prod(patch), lambda: whole, cells.plan),
            )

        return self.cached(("images", patch, before, after, fold), build)

    def crops(self, patch: tuple[int, ...]) -> RowTable:
        """Table of the visible patches within whole images: N * prod(patch) rows from B * prod(h * p) rows."""

        def build() -> RowTable:
            sides = tuple(h * p for h, p in zip(self.shape, patch, strict=True))
            return RowTable(
                lambda: self._within_images(patch, (0,) * len(patch), sides),
                self.num_visible * math.prod(patch),
                self.batch_size * math.prod(sides),
                0,
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
        slot = torch.where(inside, self.slots[cell], self.num_visible + 1)
        row = (slot * positions + local).flatten().to(torch.int32)
        return RowTable(lambda: row, row.shape[0], self.num_visible * positions, positions)


class _Cells:
    """Where the cells of a window, or of a padded image, lie: in which patch of a block, and where in it.

    The same for every mask, so that what is made of them here is kept from step to step.

    Args:
        patch: positions of a patch along each axis, p.
        at: (n,) positions along each axis, 0 at the first one of the patch that the block is laid around.
        first: the block's first patch along each axis, relative to that patch.
        count: the block's patches along each axis.

    Attributes:
        positions: of a patch.
        first, count: as given.
        behind: the first patch, likewise, of the block around a patch that holds all whose own block holds it.
        which: along each axis, (n,) the patch that each position lies in, from 0.
        local: int32 (cells,) the position of that patch that each cell is.
        neighbour: (cells,) that patch in the flattened block.
    """

    def __init__(
        self, patch: tuple[int, ...], at: list[Tensor], first: tuple[int, ...], count: tuple[int, ...]
    ) -> None:
        self.positions = math.prod(patch)
        self.first, self.count = first, count
        self.behind = tuple(1 - f - n for f, n in zip(first, count, strict=True))
        self._plans: dict[str, Tensor] = {}
        self.which = [torch.div(a, p, rounding_mode="floor") - f for a, p, f in zip(at, patch, first, strict=True)]
        self.local = torch.zeros(1, dtype=torch.int32, device=at[0].device)
        self.neighbour = torch.zeros(1, dtype=torch.int64, device=at[0].device)
        for a, p, which, n in zip(at, patch, self.which, count, strict=True):
            self.local = (self.local[:, None] * p + (a % p).to(torch.int32)).flatten()
            self.neighbour = (self.neighbour[:, None] * n + which).flatten()

    def chosen(self, choose: Callable[[Tensor], Tensor]) -> _Cells:
        """Some of the cells, some of them several times: `choose` is given a value a cell."""
        cells = copy.copy(self)
        cells.local, cells.neighbour = choose(self.local).flatten(), choose(self.neighbour).flatten()
        cells._plans = {}
        return cells

    def prepare(self) -> _Cells:
        """Work out what `PatchGrid._cells_showing` needs.

        order: int32 (cells,) the cells, sorted by the position that they are.
        mirrored: (cells,) in that order, the patch that would have to be the window's for this one to be `neighbour`.
        shown: float (neighbours, positions) how many cells of each neighbour's window are each position.
        """
        neighbours = math.prod(self.count)
        order = self.local.argsort(stable=True)
        self.order = order.to(torch.int32)
        self.mirrored = neighbours - 1 - self.neighbour[order]
        self.shown = torch.zeros(neighbours, self.positions, device=order.device)
        self.shown.index_put_((self.mirrored, self.local[order]), self.shown.new_ones(()), accumulate=True)
        return self

    def plan(self) -> Tensor:
        """As `Near` wants it: (cells, 1, 2)."""
        if "plan" not in self._plans:
            self._plans["plan"] = torch.stack([self.neighbour.to(torch.int32), self.local], 1)[:, None].contiguous()
        return self._plans["plan"]

    def seen_plan(self) -> Tensor:
        """The other way round, as `Near` wants it: (positions, most cells that are one of them, 2)."""
        if "seen" not in self._plans:
            place = self.local[self.order.long()].long()
            counts = place.bincount(minlength=self.positions)
            rank = torch.arange(len(place)) - (counts.cumsum(0) - counts)[place]
            seen = torch.full((self.positions, int(counts.max()), 2), -1, dtype=torch.int32)
            seen[place, rank] = torch.stack([self.mirrored.to(torch.int32), self.order], 1)
            self._plans["seen"] = seen
        return self._plans["seen"]

    def rows(self, slots: Tensor) -> Tensor:
        """Slots of the patches of M blocks, (M, *count), to the rows that the cells have: (M * cells,)."""
        rows = slots * self.positions
        for axis in reversed(range(len(self.which))):  # the first axis last: by then it moves long runs
            rows = rows.index_select(1 + axis, self.which[axis])
        return rows.flatten(1).add_(self.local).flatten()


def kept(build: Callable[P, T]) -> Callable[P, T]:
    """What was built for the same arguments before.

    Built anew while compiling, as a part of the graph, and within a dispatch mode, which may make tensors of its own
    kind (fake ones, say).
    """
    known = functools.lru_cache(maxsize=512)(build)

    @functools.wraps(build)
    def get(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
            return build(*args, **kwargs)
        return known(*args, **kwargs)  # type: ignore[arg-type]

    return get


@kept
def _window_cells(
    patch: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...], device: torch.device
) -> _Cells:
    """The cells of a window of `size` positions from `start`, each along its axis."""
    first = tuple(b // p for b, p in zip(start, patch, strict=True))
    at = [torch.arange(b, b + n, device=device) for b, n in zip(start, size, strict=True)]
    ends = [(b + n - 1) // p for b, n, p in zip(start, size, patch, strict=True)]
    return _Cells(patch, at, first, tuple(end - f + 1 for end, f in zip(ends, first, strict=True))).prepare()


@kept
def _tap_cells(
    patch: tuple[int, ...],
    start: tuple[int, ...],
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    device: torch.device,
) -> _Cells:
    """What a kernel sees at each position of its result, of the cells of such a window."""
    cells = _window_cells(patch, start, size, device)
    return cells.chosen(lambda each: _taps(each.view(1, *size), kernel, stride, dilation)).prepare()


@kept
def _image_cells(
    patch: tuple[int, ...],
    shape: tuple[int, ...],
    before: tuple[int, ...],
    sides: tuple[int, ...],
    fold: Fold,
    device: torch.device,
) -> _Cells:
    """The cells of a whole padded image of `sides` positions; the block is all its patches."""
    at = [
        folded(torch.arange(-b, side - b, device=device), h * p, fold)
        for h, p, b, side in zip(shape, patch, before, sides, strict=True)
    ]
    first = tuple(min(0, -b // p) for b, p in zip(before, patch, strict=True))
    ends = [-(-(side - b) // p) for side, b, p in zip(sides, before, patch, strict=True)]
    return _Cells(patch, at, first, tuple(max(end, h) - f for end, h, f in zip(ends, shape, first, strict=True)))


def _taps(cells: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """(n, *size) -> (n, *out, *kernel), flattened to (n, ...): what the kernel sees at each position of its result."""
    for axis, (k, d, s) in enumerate(zip(kernel, dilation, stride, strict=True)):
        cells = cells.unfold(1 + axis, (k - 1) * d + 1, s)[..., ::d]
    return cells.flatten(1)


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
