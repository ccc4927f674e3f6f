"""Copying rows by an index table, with a gradient that is itself a gather.

Every neighbourhood on visible patches is such a copy: the rows are the positions of the patches (one row = the
channels of one position, contiguous in channels-last memory), the table says which position each cell of a window
shows. Cells that show a masked position, or none, have no source row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# embedding_bag copies and sums rows several times faster than index_select / index_add, and its sums have a fixed
# order. It has no float64 kernel that ignores trailing indices, and none at all for integers.
_BAG_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Bags = tuple[Tensor, Tensor]
"""Rows, bag by bag, and offsets: bag i is rows[offsets[i] : offsets[i + 1]]. What lies behind the last is not read."""


class RowTable:
    """Where each of R result rows comes from.

    Args:
        index: (R,) int32. A value in [0, sources) is a source row, as if a masked patch and one outside the image came
            behind all others: the next `spare` values stand for a masked position (always 0), as many again for a
            position outside the image (`outside` of `gather_rows`).
        sources: number of source rows S.
        spare: positions of such a patch.
        inverse: makes the inverse bags, where there is a quicker way than sorting.
    """

    def __init__(self, index: Tensor, sources: int, spare: int, inverse: Callable[[], Bags] | None = None):
        self.index = index
        self.sources = sources
        self.spare = spare
        self._invert = inverse or self._sorted
        self._bags: Bags | None = None
        self._inverse_bags: Bags | None = None
        self._repeated: dict[int, RowTable] = {}
        if torch.compiler.is_compiling():
            # Within an autograd.Function, which is where they are asked for, Dynamo refuses to keep them. Those that
            # nobody asks for are no part of the graph.
            self.bags()
            self.inverse_bags()

    def bags(self) -> Bags:
        """Source rows, (R + 1,) offsets: result row r is the sum of bag r, which holds one row or none."""
        if self._bags is None:
            found = self.index < self.sources
            ends = found.cumsum(0, dtype=torch.int32)
            self._bags = compacted(self.index, found), torch.cat([ends.new_zeros(1), ends])
        return self._bags

    def inverse_bags(self) -> Bags:
        """Result rows, (S + 1,) offsets: bag s holds every result row that shows source s."""
        if self._inverse_bags is None:
            self._inverse_bags = self._invert()
        return self._inverse_bags

    def repeated(self, times: int) -> RowTable:
        """The same table for each of so many sets of sources, one behind the other, and of results; waits for a GPU."""
        if times == 1:
            return self
        if times not in self._repeated:
            first = torch.arange(times, device=self.index.device, dtype=self.index.dtype)[:, None] * self.sources
            index = torch.where(self.index < self.sources, self.index + first, self.index + (times - 1) * self.sources)
            table = RowTable(index.flatten(), times * self.sources, self.spare)
            table._bags = _repeated(self.bags(), times, self.sources)
            table._inverse_bags = _repeated(self.inverse_bags(), times, self.index.shape[0])
            self._repeated[times] = table
        return self._repeated[times]

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


def gather_plainly(rows: Tensor, table: RowTable, outside: float = 0.0) -> Tensor:
    """`gather_rows` without a gradient."""
    if outside == 0 and rows.dtype in _BAG_DTYPES and table.sources:
        # Detached: for rows that want a gradient, embedding_bag keeps books of its own.
        return _sum_bags(rows.detach(), *table.bags())
    special = rows.new_zeros(2 * table.spare, rows.shape[1])
    special[table.spare :] = outside
    return torch.cat([rows, special]).index_select(0, table.index)


def scatter_sums(grad: Tensor, table: RowTable) -> Tensor:
    """The gradient of `gather_rows`: (R, C) -> (S, C), each source the sum of the result rows that show it."""
    if grad.dtype in _BAG_DTYPES and table.index.shape[0]:
        return _sum_bags(grad.contiguous(), *table.inverse_bags())
    total = grad.new_zeros(table.sources + 2 * table.spare, grad.shape[1]).index_add_(0, table.index, grad)
    return total[: table.sources]


def _sum_bags(rows: Tensor, index: Tensor, offsets: Tensor) -> Tensor:
    return torch.embedding_bag(rows, index, offsets, mode=0, include_last_offset=True)[0]  # mode 0: sums
