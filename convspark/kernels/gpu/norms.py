"""Kernels in Triton for batch norms and layer norms of rows, (count, channels), and for sums over all rows.

Sums are over parts of `size` rows, a program each, and then over the parts, always in the same order. Their loops load
three tiles ahead: waiting for each took a third longer (H200, 2026-11-27).
"""
# ruff: noqa: N803  (what a kernel is compiled for is in capitals, as is usual in Triton)
# pyright: basic

import triton
import triton.language as tl


@triton.jit
def moments(
    out, rows, count, channels, size,
    WIDE: tl.constexpr, INDEX: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out (2, parts, channels): of each part's rows the mean, and the sum of squares about it."""
    first, parts = tl.program_id(0) * size, tl.num_programs(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    # Squares about one of the rows, not about 0: where the mean is large, they would cancel.
    about = tl.load(rows + first.to(INDEX) * channels + channel, mask=there, other=0).to(WIDE)
    total, squares = tl.zeros((ROWS, CHANNELS), WIDE), tl.zeros((ROWS, CHANNELS), WIDE)
    for start in tl.range(0, size, ROWS, num_stages=4):  # pyright: ignore
        row = first + start + tl.arange(0, ROWS)
        valid = (row < count)[:, None] & there[None, :]
        value = tl.load(rows + row.to(INDEX)[:, None] * channels + channel[None, :], mask=valid, other=0).to(WIDE)
        value = tl.where(valid, value - about[None, :], 0)
        total += value
        squares += value * value
    number = tl.minimum(size, count - first).to(WIDE)
    mean = tl.sum(total, 0) / number
    at = tl.program_id(0) * channels + channel
    tl.store(out + at, mean + about, mask=there)
    tl.store(out + parts * channels + at, tl.maximum(tl.sum(squares, 0) - number * mean * mean, 0), mask=there)


@triton.jit
def join(
    mean_out, scale_out, running_mean, running_variance, parts_of, count, channels, size, parts,
    momentum: tl.float64, eps: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    RUNNING: tl.constexpr, WIDE: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / deviation of each channel from the moments of the parts; running statistics follow them.

    Without their annotations Triton would round `momentum` and `eps` to float32.
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    total, spread = tl.zeros((PARTS, CHANNELS), WIDE), tl.zeros((PARTS, CHANNELS), WIDE)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        valid, number = (part < parts)[:, None] & there[None, :], tl.minimum(size, count - part * size).to(WIDE)
        at = part[:, None] * channels + channel[None, :]
        total += tl.load(parts_of + at, mask=valid, other=0) * number[:, None]
    mean = tl.sum(total, 0) / count
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        valid, number = (part < parts)[:, None] & there[None, :], tl.minimum(size, count - part * size).to(WIDE)
        at = part[:, None] * channels + channel[None, :]
        apart = tl.where(valid, tl.load(parts_of + at, mask=valid, other=0) - mean[None, :], 0)
        within = tl.load(parts_of + parts * channels + at, mask=valid, other=0)
        spread += within + number[:, None] * apart * apart
    squares = tl.sum(spread, 0)
    tl.store(mean_out + channel, mean, mask=there)
    tl.store(scale_out + channel, 1 / tl.sqrt(squares / count + eps), mask=there)
    if RUNNING:
        before = tl.load(running_mean + channel, mask=there, other=0).to(WIDE)
        tl.store(running_mean + channel, before + momentum * (mean - before), mask=there)
        before = tl.load(running_variance + channel, mask=there, other=0).to(WIDE)
        tl.store(running_variance + channel, before + momentum * (squares / (count - 1) - before), mask=there)


@triton.jit
def _tile(count, channels, INDEX: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Places of a program's values and which of them there are; its channels and which of those there are."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    valid = (row < count)[:, None] & there[None, :]
    return row.to(INDEX)[:, None] * channels + channel[None, :], valid, channel, there


@triton.jit
def normalise(
    out, rows, mean, scale, weight, bias, count, channels,
    WEIGHTED: tl.constexpr, BIASED: tl.constexpr, WIDE: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out: (rows - mean) * scale * weight + bias."""
    at, valid, channel, there = _tile(count, channels, INDEX, ROWS, CHANNELS)
    stretch = tl.load(scale + channel, mask=there, other=0)
    if WEIGHTED:
        stretch *= tl.load(weight + channel, mask=there, other=0).to(WIDE)
    value = tl.load(rows + at, mask=valid, other=0).to(WIDE) - tl.load(mean + channel, mask=there, other=0)[None, :]
    value *= stretch[None, :]
    if BIASED:
        value += tl.load(bias + channel, mask=there, other=0).to(WIDE)[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), mask=valid)


@triton.jit
def slopes(
    out, grad, rows, mean, scale, count, channels, size,
    ALONG: tl.constexpr, WIDE: tl.constexpr, INDEX: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out (parts, 2, channels): of each part, grad summed, and grad times the normalised rows summed.

    Without `ALONG` only the first, (parts, channels).
    """
    first = tl.program_id(0) * size
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    total, along = tl.zeros((ROWS, CHANNELS), WIDE), tl.zeros((ROWS, CHANNELS), WIDE)
    if ALONG:
        middle, stretch = tl.load(mean + channel, mask=there, other=0), tl.load(scale + channel, mask=there, other=0)
    for start in tl.range(0, size, ROWS, num_stages=4):  # pyright: ignore
        row = first + start + tl.arange(0, ROWS)
        valid = (row < count)[:, None] & there[None, :]
        at = row.to(INDEX)[:, None] * channels + channel[None, :]
        slope = tl.load(grad + at, mask=valid, other=0).to(WIDE)
        total += slope
        if ALONG:
            along += slope * (tl.load(rows + at, mask=valid, other=0).to(WIDE) - middle[None, :])
    at = tl.program_id(0) * (2 if ALONG else 1) * channels + channel
    tl.store(out + at, tl.sum(total, 0), mask=there)
    if ALONG:
        tl.store(out + channels + at, tl.sum(along, 0) * stretch, mask=there)


@triton.jit
def gradient(
    out, grad, rows, mean, scale, weight, sums, count, channels,
    WEIGHTED: tl.constexpr, WIDE: tl.constexpr, INDEX: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out: of the rows, from `sums`, (2, channels), of `slopes`."""
    at, valid, channel, there = _tile(count, channels, INDEX, ROWS, CHANNELS)
    stretch = tl.load(scale + channel, mask=there, other=0)
    shift = tl.load(sums + channel, mask=there, other=0) / count
    along = tl.load(sums + channels + channel, mask=there, other=0) / count * stretch
    if WEIGHTED:
        stretch *= tl.load(weight + channel, mask=there, other=0).to(WIDE)
    value = tl.load(rows + at, mask=valid, other=0).to(WIDE) - tl.load(mean + channel, mask=there, other=0)[None, :]
    slope = tl.load(grad + at, mask=valid, other=0).to(WIDE) - shift[None, :] - value * along[None, :]
    tl.store(out + at, (slope * stretch[None, :]).to(out.dtype.element_ty), mask=valid)


@triton.jit
def layer_norm(
    out, mean_out, scale_out, rows, weight, bias, count, channels,
    eps: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    WEIGHTED: tl.constexpr, BIASED: tl.constexpr, WIDE: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out: each row normalised over its channels, CHANNELS or fewer; its mean and 1 / deviation, (count,)."""
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, CHANNELS)
    valid = (row < count)[:, None] & (channel < channels)[None, :]
    at = row.to(INDEX)[:, None] * channels + channel[None, :]
    value = tl.load(rows + at, mask=valid, other=0).to(WIDE)
    mean = tl.sum(value, 1) / channels
    value = tl.where(valid, value - mean[:, None], 0)
    scale = (1 / tl.sqrt(tl.sum(value * value, 1) / channels + eps)).to(WIDE)
    value *= scale[:, None]
    if WEIGHTED:
        value *= tl.load(weight + channel, mask=channel < channels, other=0).to(WIDE)[None, :]
    if BIASED:
        value += tl.load(bias + channel, mask=channel < channels, other=0).to(WIDE)[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), mask=valid)
    tl.store(mean_out + row, mean, mask=row < count)
    tl.store(scale_out + row, scale, mask=row < count)


@triton.jit
def layer_norm_gradient(
    out, sums, grad, rows, mean, scale, weight, count, channels, size,
    WEIGHTED: tl.constexpr, WIDE: tl.constexpr, INDEX: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out: of the rows; sums (parts, 2, channels): of each part, grad summed, and grad times the normalised rows."""
    first, channel = tl.program_id(0) * size, tl.arange(0, CHANNELS)
    there = channel < channels
    total, along = tl.zeros((ROWS, CHANNELS), WIDE), tl.zeros((ROWS, CHANNELS), WIDE)
    for start in range(0, size, ROWS):
        row = first + start + tl.arange(0, ROWS)
        valid = (row < count)[:, None] & there[None, :]
        at = row.to(INDEX)[:, None] * channels + channel[None, :]
        slope = tl.load(grad + at, mask=valid, other=0).to(WIDE)
        middle = tl.load(mean + row, mask=row < count, other=0)[:, None]
        stretch = tl.load(scale + row, mask=row < count, other=0)[:, None]
        value = tl.where(valid, (tl.load(rows + at, mask=valid, other=0).to(WIDE) - middle) * stretch, 0)
        total += slope
        along += slope * value
        if WEIGHTED:
            slope *= tl.load(weight + channel, mask=there, other=0).to(WIDE)[None, :]
        shift, lean = tl.sum(slope, 1) / channels, tl.sum(slope * value, 1) / channels
        slope = (slope - shift[:, None] - value * lean[:, None]) * stretch
        tl.store(out + at, slope.to(out.dtype.element_ty), mask=valid)
    at = tl.program_id(0) * 2 * channels + channel
    tl.store(sums + at, tl.sum(total, 0), mask=there)
    tl.store(sums + channels + at, tl.sum(along, 0), mask=there)
