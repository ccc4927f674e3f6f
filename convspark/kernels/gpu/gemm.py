"""Kernels in Triton for convolutions over all channels of visible patches: implicit GEMM.

Rows, `around` and `entries` are as in `kernels.py`. A program makes a tile of results and of their channels; tap by tap
it gathers the rows that are seen, and multiplies them by a part of the tap's matrix, on the matrix units where the
numbers' type has some. Taps and parts of channels are one loop, so that the compiler loads what comes next meanwhile.
Taps that see nothing are multiplied as zeros: a tile in which no row sees a tap is rare, and a branch would stop that.

How large a tile is, is measured: for each number of channels and taps at the first call, and kept on disk for each kind
of GPU, so that later runs add up in the same order.
"""
# ruff: noqa: N803
# pyright: basic

import triton
import triton.language as tl
from triton import knobs
from triton.runtime import driver

from .kernels import look_up

TILES = [
    triton.Config({"ROWS": rows, "INS": ins, "OUTS": outs}, num_warps=warps, num_stages=stages)
    for rows, ins, outs, warps, stages in (
        (32, 16, 16, 4, 2),
        (32, 32, 64, 4, 2),
        (128, 16, 64, 4, 4),
        (128, 32, 32, 4, 4),
        (128, 32, 64, 4, 4),
        (128, 64, 64, 4, 4),
        (128, 64, 64, 4, 7),
        (256, 64, 64, 8, 4),
        (128, 64, 128, 8, 4),
        (128, 64, 128, 8, 7),
    )
]
"""From small to large; the matrix units want 16 of each at least. Which row is seen takes two look-ups, one after the
other, so that Triton loads one part ahead with 4 stages, and two with 7."""

_TRIED = 5


def fitting(tiles, arguments, **more):
    """The largest tiles that fit the channels and the type of numbers; one alone where nothing can be timed."""
    rows, sides = arguments["rows"], {"INS": arguments["ins"], "OUTS": arguments["outs"]}
    narrow = rows.element_size() == 2
    fit = [
        tile
        for tile in tiles
        if all(tile.kwargs[name] < 2 * max(n, 9) for name, n in sides.items()) and (narrow or tile.kwargs["ROWS"] < 64)
    ]
    return fit[-_TRIED:] if rows.is_cuda else fit[-1:]


def _timed(run, quantiles):
    """As Triton times. Its interpreter has no device, and a single tile, which older versions want to time too."""
    if knobs.runtime.interpret:
        return [0.0] * len(quantiles)
    return driver.active.get_benchmarker()(run, quantiles=quantiles)


def _tuned(kernel):
    prune, on = {"early_config_prune": fitting}, ["ins", "outs", "most"]
    return triton.autotune(TILES, on, prune, do_bench=_timed, cache_results=True)(kernel)


@_tuned
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
    parts = tl.cdiv(ins, INS)
    for step in range(most * parts):
        entry, channel = step // parts, (step % parts) * INS + tl.arange(0, INS)
        source, slot = look_up(around, entries, row, entry, valid, results, block, patches, positions, most, INDEX)
        there, in_ins = slot < patches, channel < ins
        seen = rows + source[:, None] * ins + channel[None, :]
        value = tl.load(seen, mask=there[:, None] & in_ins[None, :], other=0)
        matrix = weight + entry * of_tap + channel[:, None] * of_in + result[None, :] * of_out
        taps = tl.load(matrix, mask=in_ins[:, None] & in_outs[None, :], other=0)
        total += tl.dot(value.to(FACTOR), taps.to(FACTOR), input_precision="ieee", out_dtype=WIDE)
    if BIASED:
        total += tl.load(bias + result, mask=in_outs, other=0).to(WIDE)[None, :]
    at = row.to(INDEX)[:, None] * outs + result[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=valid[:, None] & in_outs[None, :])


@_tuned
@triton.jit
def matrices(
    out, grad, rows, around, entries, count, ins, outs, patches, positions, block, results, most, size,
    FACTOR: tl.constexpr, WIDE: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, INS: tl.constexpr, OUTS: tl.constexpr,
):  # fmt: skip
    """out (parts, most, ins, outs): over `size` rows a part, what an entry sees, turned, times grad's row."""
    tiles, part, entry = tl.cdiv(outs, OUTS), tl.program_id(1), tl.program_id(2)
    channel = (tl.program_id(0) // tiles) * INS + tl.arange(0, INS)
    result = (tl.program_id(0) % tiles) * OUTS + tl.arange(0, OUTS)
    in_ins, in_outs = channel < ins, result < outs
    total = tl.zeros((INS, OUTS), WIDE)
    for start in range(0, size, ROWS):
        row = part * size + start + tl.arange(0, ROWS)
        valid = row < count
        source, slot = look_up(around, entries, row, entry, valid, results, block, patches, positions, most, INDEX)
        there = slot < patches
        seen = rows + source[None, :] * ins + channel[:, None]
        value = tl.load(seen, mask=in_ins[:, None] & there[None, :], other=0)  # (INS, ROWS)
        slope = grad + row.to(INDEX)[:, None] * outs + result[None, :]
        slope = tl.load(slope, mask=there[:, None] & in_outs[None, :], other=0)
        total += tl.dot(value.to(FACTOR), slope.to(FACTOR), input_precision="ieee", out_dtype=WIDE)
    place = (part * most + entry).to(tl.int64) * ins + channel
    at = place[:, None] * outs + result[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=in_ins[:, None] & in_outs[None, :])
