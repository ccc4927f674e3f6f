"""Copying rows by an index table, with a gradient that is itself a gather.

Every neighbourhood on visible patches is such a copy: the rows are the positions of the patches (one row = the
channels of one position, contiguous in channels-last memory), the table says which position each cell of a window
shows. Cells that show a masked position, or none, have no source row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import compiled

# embedding_bag copies and sums rows several times faster than index_select / index_add, and its sums have a fixed
# order. It has no float64 kernel that ignores trailing indices, and none at all for integers.
_BAG_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Bags = tuple[Tensor, Tensor]
"""Rows, bag by bag, and offsets: bag i is rows[offsets[i] : offsets[i + 1]]. What lies behind the last is not read."""

_NARROW = 64
"""Bytes of rows that the compiled kernel copies faster than embedding_bag (measured; it is JIT-compiled, too)."""


class Near:
    """A table as the compiled kernels want it: what lies around each block of results, and where each result looks.

    Args:
        device: of the tensors.
        patches: of the sources.
        others: positions of each.
        around: makes int32 (blocks, ...), the patches around each block: `patches` where masked, more where outside.
        plan: makes int32 (results of a block, most sources of one, 2): which patch around, and which position of it;
            -1: none.
    """

    def __init__(
        self,
        device: torch.device,
        patches: int,
        others: int,
        around: Callable[[], Tensor],
        plan: Callable[[], Tensor],
    ) -> None:
        self.device = device
        self.patches, self.others, self.plan = patches, others, plan
        self._make_around = around
        self._around: Tensor | None = None

    def around(self) -> Tensor:
        """int32 (blocks, ...), made on first use."""
        if self._around is None:
            self._around = self._make_around()
        return self._around

    def bags(self, groups: int) -> Bags:
        """What each result looks at, for each of so many groups of sources and of results, one behind the other."""
        around, plan = self.around(), self.plan()
        results = around.shape[0] * plan.shape[0]
        rows = around.new_empty(groups * results * plan.shape[1])
        offsets = around.new_empty(groups * results + 1)
        compiled.run("make_bags", around, plan, groups, rows, offsets, patches=self.patches, others=self.others)
        return rows[: int(offsets[-1])], offsets

    def copied(self, rows: Tensor, outside: float) -> Tensor:
        """The rows that results show, (S, C) -> (R, C)."""
        around, plan, rows = self.around(), self.plan(), rows.contiguous()
        result = rows.new_empty(around.shape[0] * plan.shape[0], rows.shape[1])
        beyond = rows.new_full((rows.shape[1],), outside) if outside else None
        size = rows.shape[1] * rows.itemsize
        compiled.run("copy_rows", around, plan, size, rows, beyond, result, patches=self.patches, others=self.others)
        return result


class RowTable:
    """Where each of R result rows comes from.

    Args:
        index: makes (R,) int32. A value in [0, sources) is a source row, as if a masked patch and one outside the image
            came behind all others: the next `spare` values stand for a masked position (always 0), as many again for a
            position outside the image (`outside` of `gather_rows`).
        results: R.
        sources: number of source rows S.
        spare: positions of such a patch.
        inverse: makes the inverse bags, where there is a quicker way than sorting.
        near, inverse_near: the same for the compiled kernels, and the other way round.
    """

    def __init__(
        self,
        index: Callable[[], Tensor],
        results: int,
        sources: int,
        spare: int,
        inverse: Callable[[], Bags] | None = None,
        near: Near | None = None,
        inverse_near: Near | None = None,
    ):
        self.results = results
        self.sources = sources
        self.spare = spare
        self.near = near
        self.inverse_near = inverse_near
        self._make_index = index
        self._index: Tensor | None = None
        self._invert = inverse or self._sorted
        self._bags: dict[int, Bags] = {}
        self._inverse_bags: dict[int, Bags] = {}
        if torch.compiler.is_compiling():
            # Within an autograd.Function, which is where they are asked for, Dynamo refuses to keep them. Those that
            # nobody asks for are no part of the graph.
            self.bags()
            self.inverse_bags()

    @property
    def index(self) -> Tensor:
        """(R,) int32."""
        if self._index is None:
            self._index = self._make_index()
        return self._index

    def bags(self, groups: int = 1) -> Bags:
        """Source rows, (R + 1,) offsets: result row r is the sum of bag r, which holds one row or none.

        With groups, for each of so many sets of sources, one behind the other, and of results; waits for a GPU.
        """
        return self._kept(self._bags, self.near, self._found, groups, self.sources)

    def inverse_bags(self, groups: int = 1) -> Bags:
        """Result rows, (S + 1,) offsets: bag s holds every result row that shows source s. Groups as for `bags`."""
        return self._kept(self._inverse_bags, self.inverse_near, self._invert, groups, self.results)

    @staticmethod
    def _kept(known: dict[int, Bags], near: Near | None, make: Callable[[], Bags], groups: int, rows: int) -> Bags:
        if groups not in known:
            if near is not None and compiled.runs_on(near.device):
                known[groups] = near.bags(groups)
            else:
                known[groups] = make() if groups == 1 else _repeated(make(), groups, rows)
        return known[groups]

    def _found(self) -> Bags:
        found = self.index < self.sources
        return compacted(self.index, found), offsets_of(found)

    def _sorted(self) -> Bags:
        order = self.index.argsort(stable=True).to(torch.int32)
        counts = self.index.new_zeros(self.sources + 2 * self.spare + 1).index_add_(
            0, self.index + 1, torch.ones_like(self.index)
        )
        return order, counts.cumsum(0, dtype=torch.int32)[: self.sources + 1]


def _repeated(bags: Bags, times: int, rows: int) -> Bags:
    """Bags of as many sets of rows, `rows` of them each."""
    index, offsets = bags
    index = index[: int(offsets[-1])]  # nothing may lie between two sets
    which = torch.arange(times, device=index.device, dtype=index.dtype)[:, None]
    ends = (offsets[1:] + which * index.shape[0]).flatten()
    return (index + which * rows).flatten(), torch.cat([offsets[:1], ends])


def offsets_of(counts: Tensor) -> Tensor:
    """(n,) counts to int32 (n + 1,): where each of n bags of so many begins, and the last one ends."""
    return torch.cat([counts.new_zeros(1, dtype=torch.int32), counts.cumsum(0, dtype=torch.int32)])


def compacted(values: Tensor, found: Tensor) -> Tensor:
    """(R,) values where `found`, in order, one behind the other; on a GPU, still (R,), with zeros behind them."""
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        return values.masked_select(found)
    # The host must not wait for the number of values, and a graph not depend on it: those without a place are written
    # to a spare cell.
    place = torch.where(found, found.cumsum(0) - 1, values.shape[0])
    return values.new_zeros(values.shape[0] + 1).scatter_(0, place, values)[:-1]


def gather_rows(rows: Tensor, table: RowTable, outside: float = 0.0) -> Tensor:
    """rows (S, C) -> (R, C): row `table.index[r]` of `rows`, 0 where masked, `outside` where outside the image."""
    return _GatherRows.apply(rows, table, outside)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, table: RowTable, outside: float) -> Tensor:  # type: ignore[override]
        ctx.table = table
        return gather_plainly(rows, table, outside)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return scatter_sums(grad, ctx.table), None, None


def gather_plainly(rows: Tensor, table: RowTable, outside: float = 0.0, groups: int = 1) -> Tensor:
    """`gather_rows` without a gradient; (S, C) -> (groups * R, C / groups), one group of channels after the other."""
    near = table.near
    by_bags = outside == 0 and rows.dtype in _BAG_DTYPES and table.sources > 0
    wide = groups > 1 or rows.shape[1] * rows.itemsize > _NARROW
    if near is not None and not (by_bags and wide) and compiled.runs_on(rows.device):
        return _by_group(near.copied(rows, outside), groups)
    if by_bags:
        # Detached: for rows that want a gradient, embedding_bag keeps books of its own.
        return sum_bags(_by_group(rows.detach(), groups), *table.bags(groups))
    special = rows.new_zeros(2 * table.spare, rows.shape[1])
    special[table.spare :] = outside
    return _by_group(torch.cat([rows, special]).index_select(0, table.index), groups)


def scatter_sums(grad: Tensor, table: RowTable, groups: int = 1) -> Tensor:
    """The gradient of `gather_plainly`: each source the sum of the result rows that show it."""
    if grad.dtype in _BAG_DTYPES and table.results:
        return _of_groups(sum_bags(grad.contiguous(), *table.inverse_bags(groups)), groups)
    grad = _of_groups(grad, groups)
    total = grad.new_zeros(table.sources + 2 * table.spare, grad.shape[1]).index_add_(0, table.index, grad)
    return total[: table.sources]


def _by_group(rows: Tensor, groups: int) -> Tensor:
    """(R, C) -> (groups * R, C / groups)"""
    return rows if groups == 1 else rows.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)


def _of_groups(rows: Tensor, groups: int) -> Tensor:
    """(groups * R, C / groups) -> (R, C)"""
    return rows if groups == 1 else rows.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1)


def sum_bags(rows: Tensor, index: Tensor, offsets: Tensor) -> Tensor:
    """rows (S, C) -> (R, C): the sums of R bags, rows that are not the gradient's business."""
    return torch.embedding_bag(rows, index, offsets, mode=0, include_last_offset=True)[0]  # mode 0: sums
