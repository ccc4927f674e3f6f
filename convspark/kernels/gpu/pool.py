"""Kernels in Triton for max pooling; rows, entries and blocks of patches as in `kernels.py`."""
# ruff: noqa: N803  (what a kernel is compiled for is in capitals, as is usual in Triton)
# pyright: basic

import triton
import triton.language as tl

from .kernels import look_up


@triton.jit
def largest(
    out, taken, rows, around, entries, count, channels, patches, positions, block, results, most,
    outside: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    WIDE: tl.constexpr, INDEX: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out (count, channels): the largest of what each row's `most` entries see, and in `taken` the first that saw it.

    Masked positions are 0, those outside the image `outside`; what is no number is the largest.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid, wide_enough = row < count, channel < channels
    best, beyond = tl.full((ROWS, CHANNELS), float("-inf"), WIDE), tl.full((ROWS, CHANNELS), outside, WIDE)
    which = tl.zeros((ROWS, CHANNELS), tl.int32)
    for entry in range(most):
        source, slot = look_up(around, entries, row, entry, valid, results, block, patches, positions, most, INDEX)
        there = (slot < patches)[:, None] & wide_enough[None, :]
        value = tl.load(rows + source[:, None] * channels + channel[None, :], mask=there, other=0).to(WIDE)
        value = tl.where((slot > patches)[:, None], beyond, value)
        larger = (value > best) | (value != value)
        best = tl.where(larger, value, best)
        which = tl.where(larger, entry, which)
    at = row.to(INDEX)[:, None] * channels + channel[None, :]
    written = valid[:, None] & wide_enough[None, :]
    tl.store(out + at, best.to(out.dtype.element_ty), mask=written)
    tl.store(taken + at, which.to(tl.int8), mask=written)


@triton.jit
def gradient(
    out, grad, taken, around, entries, count, channels, patches, positions, block, results, most,
    WIDE: tl.constexpr, INDEX: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out (count, channels): of each row's `most` entries, those that have taken what they see of it, their grad."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid, wide_enough = row < count, channel < channels
    total = tl.zeros((ROWS, CHANNELS), WIDE)
    for entry in range(most):
        source, slot = look_up(around, entries, row, entry, valid, results, block, patches, positions, most, INDEX)
        there = (slot < patches)[:, None] & wide_enough[None, :]
        at = source[:, None] * channels + channel[None, :]
        is_taken = there & (tl.load(taken + at, mask=there, other=-1).to(tl.int32) == entry)
        total += tl.load(grad + at, mask=is_taken, other=0).to(WIDE)
    at = row.to(INDEX)[:, None] * channels + channel[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=valid[:, None] & wide_enough[None, :])
