"""What the meanings share: finding operands, bringing them to one kind, reading dims and sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import axes as lay
from ..axes import Axis, Layout
from ..grid import PatchGrid
from ..registry import Refusal
from ..tensor import (
    GridTensor,
    Padding,
    PerImage,
    VisiblePatches,
    as_patches,
    as_same_kind,
    become_per_image,
    repeat_per_patch,
    unpadded,
)


def named(names: str, *homes: Any) -> list[Callable[..., Any]]:
    """The functions of these names (separated by blanks) that exist in any of the homes, each once."""
    functions: dict[Callable[..., Any], None] = {}
    for name in names.split():
        hits = [getattr(home, name) for home in homes if hasattr(home, name)]
        if not hits:
            raise AttributeError(f"torch has no function {name}")
        functions.update(dict.fromkeys(hits))
    return list(functions)


def tensors_in(arguments: Iterable[Any]) -> list[Tensor]:
    """Tensors among arguments, lists and tuples of them included."""
    tensors: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            tensors.append(argument)
        elif isinstance(argument, (list, tuple)):
            tensors += [item for item in argument if isinstance(item, Tensor)]
    return tensors


def as_sizes(arguments: Sequence[Any]) -> list[int]:
    """The sizes of `view(2, 3)`, `view((2, 3))` or `view([2, 3])`."""
    return list(arguments[0]) if len(arguments) == 1 and not isinstance(arguments[0], int) else list(arguments)


def dimension(tensor: Tensor, dim: int) -> int:
    return dim + tensor.dim() if dim < 0 else dim


def dimensions(tensor: Tensor, dims: int | Sequence[int] | None) -> tuple[int, ...]:
    """Axes named by a `dim` argument, none negative; all of them for None or ()."""
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        return tuple(range(tensor.dim()))
    dims = (dims,) if isinstance(dims, int) else dims
    return tuple(dimension(tensor, dim) for dim in dims)


def per_axis(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """An int or a sequence of one or `count` ints as `count` ints."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def joined_layout(operands: Sequence[Tensor]) -> tuple[GridTensor, Layout]:
    """Kind and layout of an element-by-element result; refuses operands that do not belong together.

    Returns:
        An operand of the result's kind (VisiblePatches before PerImage), and the layout of the broadcast result.
    """
    marked = [unpadded(o) for o in operands if isinstance(o, GridTensor)]
    leader = next((o for o in marked if isinstance(o, VisiblePatches)), marked[0])
    dims = max([o.dim() for o in operands])
    axes: list[Axis] = [*[()] * (dims - leader.dim()), *leader.axes]
    for operand in marked:
        if operand.grid is not leader.grid:
            raise Refusal("its operands belong to different grids")
        if operand is leader:
            continue
        layout = rowed(operand, leader)
        for at, axis in enumerate(layout, start=dims - len(layout)):
            if axis == axes[at] or not axis or (lay.is_plain(axis) and _is_repeated(operand, at - dims)):
                continue
            if axes[at] and not (lay.is_plain(axis) and lay.is_plain(axes[at])):
                hint = WHOLE_MAP if lay.is_spatial(axis[0][0]) and 1 in (axis[0][1], axes[at][0][1]) else ""
                raise Refusal(f"its operands have different axes at the same place (axis {at}){hint}")
            axes[at] = axis
    for operand in operands:
        if isinstance(operand, GridTensor) or (operand.shape == leader.shape and _is_gradient()):
            continue
        for at, size in enumerate(operand.shape, start=dims - operand.dim()):
            if size != 1 and not lay.is_plain(axes[at]):
                if _is_repeated(operand, at - dims):
                    continue
                raise Refusal(
                    f"a plain tensor of shape {tuple(operand.shape)} has more than one row or a spatial extent, and "
                    "nothing says which patch or position each of its elements belongs to; make it from the patches "
                    "(torch.zeros_like(x), x.new_zeros), or leave it to broadcasting (1, C, 1, 1)"
                )
            if size != 1:
                axes[at] = lay.plain_axis(size)
    roles = [role for axis in axes for role, _ in axis if role != lay.PLAIN]
    if len(roles) != len(set(roles)):
        raise Refusal("it relates positions to each other, within a patch where it should be the whole image")
    return leader, tuple(axes)


def _is_repeated(operand: Tensor, at: int) -> bool:
    """Whether `expand` repeated one value along this axis: whatever its length, broadcasting can do it again."""
    return operand.stride(at) == 0 and operand.shape[at] > 1


def _is_gradient() -> bool:
    """Whether the backward pass runs: a hand-written one gets gradients of patches as plain tensors of their shape."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def rowed(operand: GridTensor, leader: GridTensor) -> Layout:
    """The operand's layout once its rows are those of the leader (images repeated for each patch)."""
    if type(operand) is type(leader):
        return operand.axes
    patch = (lay.PATCH, leader.grid.num_visible)
    return tuple([tuple([patch if factor[0] == lay.IMAGE else factor for factor in axis]) for axis in operand.axes])


def with_rows_of(operand: Any, leader: GridTensor, more: int = 0) -> Any:
    """A PerImage operand repeated for each patch where the leader has patches; it and a plain one without what `expand`
    repeated along patches and positions; anything else as it is.

    Args:
        more: axes of the operand after those of the leader.
    """
    if isinstance(operand, (list, tuple)):
        return type(operand)(with_rows_of(item, leader) for item in operand)
    if not isinstance(operand, Tensor) or isinstance(operand, VisiblePatches):
        return operand
    rows = operand
    if 0 in operand.stride():
        lead = operand.dim() - more - leader.dim()
        for at in range(max(lead, 0), operand.dim() - more):
            if _is_repeated(operand, at) and not lay.is_plain(leader.axes[at - lead]):
                rows = rows.narrow(at, 0, 1)
    if not isinstance(operand, PerImage) or isinstance(leader, PerImage):
        return rows
    return repeat_along(rows, image_axis(operand), leader.grid)


def repeat_along(rows: Tensor, at: int, grid: PatchGrid) -> Tensor:
    """Values with one row (or so many) an image along axis `at`, repeated there for each patch."""
    if at:
        return repeat_along(rows.movedim(at, 0), 0, grid).movedim(0, at)
    if len(rows) == grid.batch_size:
        return repeat_per_patch(rows, grid)
    return repeat_per_patch(rows.unflatten(0, (grid.batch_size, -1)), grid).flatten(0, 1)


def spread_over_positions(rows: PerImage, positions: Sequence[int]) -> VisiblePatches:
    """One value an image and channel, (B, C, 1, 1), at each position of each visible patch: (N, C, *positions).

    Args:
        positions: what the network read off a patch where it meant the whole map.
    """
    repeated = repeat_along(rows_first(rows), 0, rows.grid)
    return as_patches(repeated.expand(*repeated.shape[:2], *positions), rows.grid)


def patch_axis(x: VisiblePatches) -> int:
    """The axis that begins with the patches."""
    return next(at for at, axis in enumerate(x.axes) if axis and axis[0][0] == lay.PATCH)


def image_axis(operand: PerImage) -> int:
    """The axis that begins with the images."""
    return next(at for at, axis in enumerate(operand.axes) if axis and axis[0][0] == lay.IMAGE)


def require_plain(tensor: GridTensor, dims: Iterable[int], what: str) -> None:
    """Refuse unless the axes are ones that a dense tensor has as well (channels)."""
    for dim in dims:
        if not lay.is_plain(tensor.axes[dim]):
            pooled = all(size == 1 for role, size in tensor.axes[dim] if lay.is_spatial(role))
            hint = WHOLE_MAP if pooled and lay.spatial_roles((tensor.axes[dim],)) else row_hint(tensor.axes[dim])
            raise Refusal(f"{what} would mix patches or positions (axis {dim}){hint}")


WHOLE_MAP = (
    "; patches of one position each are left, and if the whole map was to be pooled, write x.mean((2, 3)) or "
    "F.adaptive_avg_pool2d(x, 1)"
)


def row_hint(axis: Axis) -> str:
    """What to add to a refusal along this axis, if it is that of patches."""
    is_rows = [role for role, _ in axis] == [lay.PATCH]
    return "; a row is a patch, not an image: write no loop over images, but treat the whole batch at once" * is_rows


def of_patches(tensor: Tensor) -> GridTensor:
    """The tensor, refused if it is padded or the like, or a plain one beside patches in another argument."""
    if not isinstance(tensor, GridTensor):
        raise Refusal("it is called on a plain tensor, and visible patches say what to take of it")
    return unpadded(tensor)


def along(input: GridTensor, dim: int, function: Callable[[Tensor, int], Any]) -> Any:
    """A function along one axis of channels: of one result or several, in which that axis is gone or has any size."""
    x = of_patches(input)
    at = dimension(x, dim)
    require_plain(x, [at], "acting along this axis")
    out = function(x, at)

    def known(part: Tensor) -> GridTensor:
        axis = [lay.plain_axis(part.shape[at])] if part.dim() == x.dim() else []
        return as_same_kind(part, x, (*x.axes[:at], *axis, *x.axes[at + 1 :]))

    if not isinstance(out, (tuple, list)):
        return known(out)
    parts = [known(part) for part in out]
    # Dynamo hands `torch.cat` and the like over to `__torch_function__` where they get a list, not a tuple.
    return parts if type(out) is tuple and torch.compiler.is_compiling() else type(out)(parts)


def parts_along(input: GridTensor, dim: int, function: Callable[[Tensor, int], Any]) -> Any:
    """A function that divides channels; parts of padded patches are padded alike."""
    padding = input.pending if isinstance(input, VisiblePatches) else None
    if padding is None:
        return along(input, dim, function)
    parts = along(padding.unchanged(), dim, function)
    return type(parts)(Padding(part, padding.steps).announced() for part in parts)


def rows_first(tensor: PerImage) -> PerImage:
    """The tensor, refused unless its first axis is the images and all others are plain: then it is a dense batch."""
    if len(tensor.axes[0]) != 1 or image_axis(tensor) != 0:
        raise Refusal("the images are not its first axis, alone")
    return tensor


def dense_batch(func: Callable[..., Any], input: PerImage, *args: Any, **kwargs: Any) -> PerImage:
    """Run a function that treats the first axis as a batch on per-image rows, as it is."""
    return become_per_image(func(rows_first(input).values, *args, **kwargs), input.grid)  # Dynamo wants a plain tensor


def sizes_for(tensor: GridTensor, sizes: Sequence[int]) -> list[int]:
    """Sizes that a network computed from the shape of visible patches: a PerImage has B rows where it said N."""
    fitting = list(sizes)
    if isinstance(tensor, PerImage) and fitting:
        patches, images = tensor.grid.num_visible, tensor.grid.batch_size
        at = next((at for at, axis in enumerate(tensor.axes) if axis and axis[0][0] == lay.IMAGE), 0)
        at = at if fitting[:at] == list(tensor.shape[:at]) else 0  # after axes that stay, as of what was stacked
        unfit = -1 not in fitting and math.prod(fitting) != tensor.numel()
        merged = len(tensor.axes[at]) > 1  # images and channels
        if fitting[at : at + 1] == [patches]:
            fitting[at] = images
        elif (unfit or merged) and patches and fitting[at:] and fitting[at] % patches == 0:  # N * channels
            fitting[at] = fitting[at] // patches * images
    return fitting
