"""What each axis of a packed tensor means, carried through view, permute, flatten and the like.

Real networks permute, split and merge the axes of their tensors (NHWC blocks, channel shuffle, space-to-depth).
A layout lists, for each axis of the tensor, the factors it is made of, outermost first:

* `PATCH`: the visible patches of the batch, N;
* `IMAGE`: the images of the batch, B (per-image values have this one instead of `PATCH`);
* `PLAIN`: anything that a dense tensor would have as well, channels above all;
* 0, 1, 2: the positions of a patch along that spatial axis;
* one of `BLOCKS`: along a spatial axis, the positions of a block of the map as large as a patch, or of the patch: which
  of the two is not known. Plain as soon as it is merged with channels.

A spatial factor that is followed by a plain one within an axis is a finer spatial factor (depth-to-space); split, its
inner part is plain (space-to-depth).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

PATCH, IMAGE, PLAIN = "patch", "image", "plain"
BLOCKS = ("block along 0", "block along 1", "block along 2")
Factor = tuple["str | int", int]  # role, size
Axis = tuple[Factor, ...]
Layout = tuple[Axis, ...]


class LostAxes(Exception):
    """An operation after which patches and positions could not be distinguished from other axes; says why."""


def is_spatial(role: str | int) -> bool:
    return isinstance(role, int)


def canonical(shape: Sequence[int]) -> Layout:
    """Layout of (N, C, *positions)."""
    spatial: list[Axis] = [((axis, size),) for axis, size in enumerate(shape[2:])]
    return (((PATCH, shape[0]),), plain_axis(shape[1]), *spatial)


def per_image(shape: Sequence[int]) -> Layout:
    """Layout of (B, ...)."""
    return (((IMAGE, shape[0]),), *[plain_axis(size) for size in shape[1:]])


def plain_axis(size: int) -> Axis:
    return ((PLAIN, size),) if size != 1 else ()


def is_plain(axis: Axis) -> bool:
    if len(axis) < 2:  # most of them, at every function of every step
        return not axis or axis[0][0] == PLAIN
    return all(role == PLAIN for role, _ in axis)


def is_canonical(layout: Layout) -> bool:
    """Whether the axes are (patches, channels, *positions), each axis whole."""
    if len(layout) < 3:
        return False
    patches, channels, *positions = layout  # axis by axis: it is asked at most functions of every step
    if len(patches) != 1 or patches[0][0] != PATCH or len(channels) > 1 or not is_plain(channels):
        return False
    return all([len(axis) == 1 and axis[0][0] == number for number, axis in enumerate(positions)])


def spatial_roles(layout: Layout) -> set[int]:
    return {role for axis in layout for role, _ in axis if isinstance(role, int)}


def size_of(axis: Axis) -> int:
    return math.prod([size for _, size in axis])


def merged(factors: Sequence[Factor]) -> Axis:
    """One axis from factors, outermost first, with neighbours of one kind joined and plain ones of size 1 dropped."""
    axis: list[Factor] = []
    for role, size in factors:
        if role == PLAIN and size == 1:
            continue
        while role == PLAIN and axis and axis[-1][0] in BLOCKS:
            size *= axis.pop()[1]
        last = axis[-1][0] if axis else None
        inner = role in BLOCKS and last in (PLAIN, BLOCKS.index(role))
        if inner or (role == PLAIN and (last == PLAIN or isinstance(last, int))):
            axis[-1] = (last, axis[-1][1] * size)  # type: ignore[assignment]
        else:
            axis.append((role, size))
    return tuple(axis)


def reshaped(layout: Layout, sizes: Sequence[int]) -> Layout:
    """Layout after view(*sizes); the sizes must fit. Raises `LostAxes` where the patches would be split."""
    layout = _blocks_apart(layout, sizes)
    # An axis of size 1 takes part, so that (N, 1, 1, 1) -> (N, 1, 1) leaves the channel where it is.
    rest = [factor for axis in layout for factor in (axis or ((PLAIN, 1),))]
    result: list[Axis] = []
    grows = False
    for at, size in enumerate(sizes):
        factors: list[Factor] = []
        if size == 1:
            # Positions of a 1×1 patch go to axes of size 1, one each; the last such axis takes what is left over.
            ones_here = _leading_ones(sizes[at:])
            ones_left = _leading_ones([factor[1] for factor in rest])
            if at == 1 and ones_left < ones_here == len(sizes) - 1:  # of (N, 1, h, w): no channel is left
                result.append(())
                continue
            if at >= 2 and ones_left > ones_here and rest[0][0] == PLAIN:
                rest, ones_left = rest[1:], ones_left - 1  # patches and channels are placed: it was squeezed
            take = ones_left if ones_here == 1 else min(ones_left, 1)
            factors, rest = rest[:take], rest[take:]
            result.append(merged(factors))
            continue
        needed = size
        while needed > 1:
            if not rest:
                raise LostAxes(f"a shape of {tuple(sizes)} does not fit the tensor")
            (role, extent), rest = rest[0], rest[1:]
            if needed % extent == 0:
                factors.append((role, extent))
                needed //= extent
            elif extent % needed == 0 and role != PATCH and role != IMAGE:
                factors.append((role, needed))
                rest = [(role if role in BLOCKS else PLAIN, extent // needed), *rest]
                needed = 1
            else:
                raise LostAxes(f"a shape of {tuple(sizes)} cuts through the {_name(role)} axis of size {extent}")
        grows = grows or _grows(rest, sizes[at + 1 :])
        if not grows and (at + 1 == len(sizes) or sizes[at + 1] != 1):
            ones_left = _leading_ones([factor[1] for factor in rest])  # 1×1 patches merged into this axis
            if 0 < ones_left < len(rest) and rest[ones_left][0] in BLOCKS:
                ones_left -= BLOCKS.index(rest[ones_left][0]) == rest[ones_left - 1][0]  # its own block's position
            factors, rest = [*factors, *rest[:ones_left]], rest[ones_left:]
        result.append(merged(factors))
    if any(factor[1] != 1 for factor in rest):
        raise LostAxes(f"a shape of {tuple(sizes)} does not fit the tensor")
    return tuple(result)


def _grows(rest: Sequence[Factor], sizes: Sequence[int]) -> bool:
    """Whether each position of a 1×1 patch is followed by channels that become positions (depth to space)."""
    fits = len(sizes) > 1 and [n for _, n in rest] == [n for size in sizes for n in (1, size)]
    return fits and all(is_spatial(role) for role, _ in rest[::2]) and all(role == PLAIN for role, _ in rest[1::2])


def _blocks_apart(layout: Layout, sizes: Sequence[int]) -> Layout:
    """The layout with each axis of positions as one position and one of `BLOCKS`, if these sizes cut it so.

    (N, C, p, p) -> (N, C, 1, p, 1, p), written as (B, C, H // p, p, W // p, p), cuts the map into blocks; in larger
    patches they show. Here axes of size 1 may have been put in as well: what treats the two alike may follow.
    """
    spatial = [size for axis in layout for role, size in axis if is_spatial(role) and size > 1]
    pairs = [size for before, size in itertools.pairwise(sizes[1:]) if before == 1 and size > 1]
    if len(spatial) < 2 or pairs != spatial:
        return layout
    return tuple(
        tuple(
            part
            for role, n in axis
            for part in ([(role, 1), (BLOCKS[role], n)] if isinstance(role, int) else [(role, n)])
        )
        for axis in layout
    )


def flattened(layout: Layout, start: int, end: int) -> Layout:
    """Layout after flatten(start, end); both inclusive and not negative."""
    joined = merged([factor for axis in layout[start : end + 1] for factor in axis])
    return (*layout[:start], joined, *layout[end + 1 :])


def _leading_ones(sizes: Sequence[int]) -> int:
    count = 0
    for size in sizes:
        if size != 1:
            break
        count += 1
    return count


def described(layout: Layout) -> str:
    """For people: `(patches, channels, positions·channels)`."""
    names = {PATCH: "patches", IMAGE: "images", PLAIN: "channels"}
    return f"({', '.join('·'.join(names.get(role, 'positions') for role, _ in axis) or '1' for axis in layout)})"  # type: ignore[arg-type]


def _name(role: str | int) -> str:
    return {PATCH: "patch", IMAGE: "image", PLAIN: "channel"}.get(role, "position")  # type: ignore[arg-type]
