"""Kernels in Triton for depthwise convolutions of visible patches, a line of each patch at a time.

Rows and `around` are as in `kernels.py`. A program makes, of some patches, the results that lie in one line along the
last axis, for some channels. Along that axis it is known when the kernel is compiled which position each tap sees: a
position is loaded once and multiplied for all results that see it, where `kernels.sums` looks it up for each of them.
Along the other axes `lead`, (results, taps), says which line of which patch of the block a tap sees, as entries do.

`STEPS`, (a, b, c, d), says what is seen along the last axis: result x sees, by its tap k, the position s, counted from
the patch's first on, with a x + b k = c s + d.
"""
# ruff: noqa: N803, RUF005  (what a kernel is compiled for is in capitals, as is usual in Triton, which joins tuples by +)
# pyright: basic, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl


@triton.constexpr_function
def tap_of(steps, result, at, taps):
    """The tap by which a result sees a position; -1: none."""
    tap, rest = divmod(steps[2] * at + steps[3] - steps[0] * result, steps[1])
    return tap if rest == 0 and 0 <= tap < taps else -1


@triton.constexpr_function
def is_seen(steps, at, results, taps):
    """Whether any result sees a position."""
    return any(tap_of(steps, result, at, taps) >= 0 for result in range(results))


@triton.jit
def look_up(rows, around, both, centre, valid, beside, channel, channels, patches, positions, block,
    SIDE: tl.constexpr, REACH: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Where the line of the patch `beside` begins that an entry of `lead` means, (BLOCKS, CHANNELS); what is there."""
    patch, place = both.to(tl.int32), (both >> 32).to(INDEX) * SIDE
    at = around + centre * block + patch * (2 * REACH + 1) + beside
    slot = tl.load(at, mask=valid & (patch >= 0), other=patches)
    row = slot.to(INDEX) * positions + place
    return rows + row[:, None] * channels + channel[None, :], (slot < patches)[:, None] & (channel < channels)[None, :]


@triton.jit
def sums(
    out, rows, around, lead, weight, bias, count, channels, patches, positions, block, results, taps,
    STEPS: tl.constexpr, SIDE: tl.constexpr, REACH: tl.constexpr, RESULTS: tl.constexpr, TAPS: tl.constexpr,
    BIASED: tl.constexpr, WIDE: tl.constexpr, INDEX: tl.constexpr, BLOCKS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out (count * results * RESULTS, channels): of what each sees times weight (taps * TAPS, channels), plus bias.

    Patches have SIDE positions along the last axis, and their blocks REACH patches on either side.
    """
    which = tl.program_id(0) % results
    centre = (tl.program_id(0) // results) * BLOCKS + tl.arange(0, BLOCKS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid, wide_enough, centre = centre < count, channel < channels, centre.to(INDEX)
    start = tl.zeros((BLOCKS, CHANNELS), WIDE)
    if BIASED:
        start += tl.load(bias + channel, mask=wide_enough, other=0).to(WIDE)[None, :]
    totals = ()
    for _ in tl.static_range(RESULTS):
        totals = totals + (start,)
    for tap in range(taps):
        both = tl.load(lead + which * taps + tap)
        factors = ()
        for number in tl.static_range(TAPS):
            factor = tl.load(weight + (tap * TAPS + number) * channels + channel, mask=wide_enough, other=0)
            factors = factors + (factor.to(WIDE)[None, :],)
        for beside in tl.static_range(2 * REACH + 1):
            seen, there = look_up(
                rows, around, both, centre, valid, beside, channel, channels, patches, positions, block,
                SIDE, REACH, INDEX,
            )  # fmt: skip
            for position in tl.static_range(SIDE):
                if is_seen(STEPS, (beside - REACH) * SIDE + position, RESULTS, TAPS):
                    value = tl.load(seen + position * channels, mask=there, other=0).to(WIDE)
                    more = ()
                    for x in tl.static_range(RESULTS):
                        if tap_of(STEPS, x, (beside - REACH) * SIDE + position, TAPS) >= 0:
                            factor = factors[tap_of(STEPS, x, (beside - REACH) * SIDE + position, TAPS)]
                            more = more + (totals[x] + value * factor,)
                        else:
                            more = more + (totals[x],)
                    totals = more
    for x in tl.static_range(RESULTS):
        row = (centre * results + which) * RESULTS + x
        at = out + row[:, None] * channels + channel[None, :]
        tl.store(at, totals[x].to(out.dtype.element_ty), mask=valid[:, None] & wide_enough[None, :])


@triton.jit
def products(
    out, grad, rows, around, lead, count, channels, patches, positions, block, results, taps, size,
    STEPS: tl.constexpr, SIDE: tl.constexpr, REACH: tl.constexpr, RESULTS: tl.constexpr, TAPS: tl.constexpr,
    WIDE: tl.constexpr, INDEX: tl.constexpr, BLOCKS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out (programs, taps * TAPS, channels): over `size` * BLOCKS patches a program, grad times what each tap sees."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    wide_enough, tap = channel < channels, tl.program_id(2)
    totals = ()
    for _ in tl.static_range(TAPS):
        totals = totals + (tl.zeros((BLOCKS, CHANNELS), WIDE),)
    for step in range(size * results):
        which = step % results
        centre = (tl.program_id(0) * size + step // results) * BLOCKS + tl.arange(0, BLOCKS)
        valid, centre = centre < count, centre.to(INDEX)
        both = tl.load(lead + which * taps + tap)
        slopes = ()
        for x in tl.static_range(RESULTS):
            row = (centre * results + which) * RESULTS + x
            at = grad + row[:, None] * channels + channel[None, :]
            slopes = slopes + (tl.load(at, mask=valid[:, None] & wide_enough[None, :], other=0).to(WIDE),)
        for beside in tl.static_range(2 * REACH + 1):
            seen, there = look_up(
                rows, around, both, centre, valid, beside, channel, channels, patches, positions, block,
                SIDE, REACH, INDEX,
            )  # fmt: skip
            for position in tl.static_range(SIDE):
                if is_seen(STEPS, (beside - REACH) * SIDE + position, RESULTS, TAPS):
                    value = tl.load(seen + position * channels, mask=there, other=0).to(WIDE)
                    for x in tl.static_range(RESULTS):
                        if tap_of(STEPS, x, (beside - REACH) * SIDE + position, TAPS) >= 0:
                            more = ()
                            for number in tl.static_range(TAPS):
                                if tap_of(STEPS, x, (beside - REACH) * SIDE + position, TAPS) == number:
                                    more = more + (totals[number] + value * slopes[x],)
                                else:
                                    more = more + (totals[number],)
                            totals = more
    for number in tl.static_range(TAPS):
        at = ((tl.program_id(0) * taps + tap) * TAPS + number).to(tl.int64) * channels + channel
        tl.store(out + at, tl.sum(totals[number], 0), mask=wide_enough)
