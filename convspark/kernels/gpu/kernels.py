"""Kernels in Triton that read the neighbours of visible patches where they lie; nothing is gathered beforehand.

Rows are positions: (patches * positions of each, channels), channels last in memory. A program makes some rows of a
result, for some channels. Row r of a result is result r % results of block r // results; `entries` says, the same for
all blocks, which position of which patch of the block it sees (sparse/plans.py), and `around` which visible patch lies
there: `patches` where it is masked, `patches` + 1 outside the image.
"""
# ruff: noqa: N803  (what a kernel is compiled for is in capitals, as is usual in Triton)
# pyright: basic

import triton
import triton.language as tl


@triton.jit
def look_up(around, entries, row, entry, valid, results, block, patches, positions, most, INDEX: tl.constexpr):
    """Of an entry of each row: the row that it sees, and the slot where it looks, `patches` or more where nothing is.

    `row`, `entry` and `valid` are of one shape; an entry is two int32, the patch (-1: none) and the position in it.
    """
    both = tl.load(entries + (row % results) * most + entry, mask=valid, other=-1)
    patch = both.to(tl.int32)
    there = valid & (patch >= 0)
    slot = tl.load(around + (row // results).to(INDEX) * block + patch, mask=there, other=patches)
    return slot.to(INDEX) * positions + (both >> 32).to(INDEX), slot


@triton.jit
def sums(
    out, rows, around, entries, count, channels, patches, positions, block, results, most,
    outside: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    OUTSIDE: tl.constexpr, WIDE: tl.constexpr, INDEX: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out (count, channels): each row's `most` entries, summed.

    Masked positions count as 0, and those outside the image as `outside`, where that is wanted. Without its annotation
    Triton would round it to float32.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid, wide_enough = row < count, channel < channels
    total, beyond = tl.zeros((ROWS, CHANNELS), WIDE), tl.full((ROWS, CHANNELS), outside, WIDE)
    for entry in range(most):
        source, slot = look_up(around, entries, row, entry, valid, results, block, patches, positions, most, INDEX)
        there = (slot < patches)[:, None] & wide_enough[None, :]
        value = tl.load(rows + source[:, None] * channels + channel[None, :], mask=there, other=0).to(WIDE)
        if OUTSIDE:
            value = tl.where((slot > patches)[:, None], beyond, value)
        total += value
    at = row.to(INDEX)[:, None] * channels + channel[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=valid[:, None] & wide_enough[None, :])
