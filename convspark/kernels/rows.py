"""Sums of rows of the patches around, which all that is gathered consists of (sparse/rows.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sparse.rows import SumRows
from .ops import declare, has_kernel, wide


def offer(rows: Tensor) -> SumRows | None:
    """A way to sum rows, where they lie on a device that has a kernel for it."""
    return torch.ops.convspark.sum_rows if has_kernel(rows, "sum_rows") else None


def looked_at(rows: Tensor, around: Tensor, entries: Tensor, patches: int, outside: float = 0.0) -> Tensor:
    """rows (patches * positions, C), entries (results, most, 2) -> (blocks * results, most, C): what each entry sees.

    0 where it is masked, or there is none; `outside` outside the image.
    """
    positions = rows.shape[0] // max(patches, 1)
    absent = entries[..., 0] < 0
    slots = around.index_select(1, entries[..., 0].clamp(min=0).flatten()).view(len(around), *entries.shape[:2])
    slots = torch.where(absent, patches, slots)
    index = torch.where(slots < patches, slots * positions + entries[..., 1], rows.shape[0] + (slots > patches))
    beyond = torch.tensor([[0.0], [outside]], dtype=rows.dtype, device=rows.device).expand(2, rows.shape[1])
    return torch.cat([rows, beyond]).to(wide(rows))[index.flatten(0, 1)]


def _sum_rows(rows: Tensor, around: Tensor, entries: Tensor, patches: int, outside: float) -> Tensor:
    return looked_at(rows, around, entries, patches, outside).sum(1).to(rows.dtype)


declare(
    "sum_rows",
    "Tensor rows, Tensor around, Tensor entries, int patches, float outside",
    "Tensor",
    _sum_rows,
    lambda rows, around, entries, *_: rows.new_empty(around.shape[0] * entries.shape[0], rows.shape[1]),
)
