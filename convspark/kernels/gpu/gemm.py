"""Kernels in Triton for convolutions over all channels of visible patches: implicit GEMM.

Rows, `around` and `entries` are as in `kernels.py`. A program makes a tile of results and of their channels; tap by tap
it gathers the rows that are seen, and multiplies them by a part of the tap's matrix, on the matrix units where the
numbers' type has some. A tap that no row of the tile sees, masked or outside the image, costs its look-up alone.
"""
# ruff: noqa: N803
# pyright: basic

import triton
import triton.language as tl

from .kernels import look_up


@triton.jit
def convolve(
    out, rows, around, entries, weight, bias, count, ins, outs, patches, positions, block, results, most,
    of_tap, of_in, of_out,
    BIASED: tl.constexpr, FACTOR: tl.constexpr, WIDE: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, INS: tl.constexpr, OUTS: tl.constexpr,
):  # fmt: skip
    """out (count, outs): over entries, the row of `ins` that each sees times weight (most, ins, outs); plus bias.

    The weight lies in memory as its three strides `of_tap`, `of_in`, `of_out` say.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    result = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    valid, in_outs = row < count, result < outs
    total = tl.zeros((ROWS, OUTS), WIDE)
    for entry in range(most):
        source, slot = look_up(around, entries, row, entry, valid, results, block, patches, positions, most, INDEX)
        there = slot < patches
        if tl.max(there.to(tl.int32), 0) != 0:
            for start in range(0, ins, INS):
                channel = start + tl.arange(0, INS)
                in_ins = channel < ins
                seen = rows + source[:, None] * ins + channel[None, :]
                value = tl.load(seen, mask=there[:, None] & in_ins[None, :], other=0)
                matrix = weight + entry * of_tap + channel[:, None] * of_in + result[None, :] * of_out
                taps = tl.load(matrix, mask=in_ins[:, None] & in_outs[None, :], other=0)
                total += tl.dot(value.to(FACTOR), taps.to(FACTOR), input_precision="ieee", out_dtype=WIDE)
    if BIASED:
        total += tl.load(bias + result, mask=in_outs, other=0).to(WIDE)[None, :]
    at = row.to(INDEX)[:, None] * outs + result[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=valid[:, None] & in_outs[None, :])


@triton.jit
def matrices(
    out, grad, rows, around, entries, count, ins, outs, patches, positions, block, results, most, size,
    FACTOR: tl.constexpr, WIDE: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, INS: tl.constexpr, OUTS: tl.constexpr,
):  # fmt: skip
    """out (programs, most, ins, outs): over `size` rows a program, what an entry sees, turned, times grad's row."""
    entry, tiles = tl.program_id(2), tl.cdiv(outs, OUTS)
    channel = (tl.program_id(1) // tiles) * INS + tl.arange(0, INS)
    result = (tl.program_id(1) % tiles) * OUTS + tl.arange(0, OUTS)
    in_ins, in_outs = channel < ins, result < outs
    total = tl.zeros((INS, OUTS), WIDE)
    first = tl.program_id(0) * size
    for start in range(0, size, ROWS):
        row = first + start + tl.arange(0, ROWS)
        valid = row < count
        source, slot = look_up(around, entries, row, entry, valid, results, block, patches, positions, most, INDEX)
        there = slot < patches
        if tl.max(there.to(tl.int32), 0) != 0:
            seen = rows + source[None, :] * ins + channel[:, None]
            value = tl.load(seen, mask=in_ins[:, None] & there[None, :], other=0)  # (INS, ROWS)
            slope = grad + row.to(INDEX)[:, None] * outs + result[None, :]
            slope = tl.load(slope, mask=there[:, None] & in_outs[None, :], other=0)
            total += tl.dot(value.to(FACTOR), slope.to(FACTOR), input_precision="ieee", out_dtype=WIDE)
    place = (tl.program_id(0) * most + entry).to(tl.int64) * ins + channel
    at = place[:, None] * outs + result[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=in_ins[:, None] & in_outs[None, :])
