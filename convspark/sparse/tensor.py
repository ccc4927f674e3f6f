"""VisiblePatches and PerImage, the tensors that know their grid; gather and scatter between them and images."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import UsageError
from . import axes as lay
from .axes import Layout, LostAxes
from .grid import PatchGrid
from .refuse import refuse
from .registry import Refusal, meaning_of
from .rows import Copy, copied, filled

T = TypeVar("T")
G = TypeVar("G", bound="GridTensor")


class GridTensor(Tensor):
    """A tensor that knows the patches its rows belong to; `__torch_function__` looks each function up in the registry.

    Attributes:
        grid: its `PatchGrid`.
        axes: what each of its axes means (`axes.py`).
    """

    grid: PatchGrid
    axes: Layout

    # Why functions must not read it; None where they may.
    unreadable: str | None

    @property
    def values(self) -> Tensor:  # type: ignore[override]  # hides Tensor.values(), which is for sparse layouts
        """The same values as a plain tensor, gradient kept."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.view(self.shape)

    @property
    def ndim(self) -> int:  # type: ignore[override]
        """From the axes, without a call of PyTorch: networks ask for it at every norm."""
        return len(self.axes)

    # Methods of `Tensor` that are written in Python: Dynamo loses its way through them to `__torch_function__`.

    def norm(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return self._called(Tensor.norm, *args, **kwargs)

    def split(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return self._called(Tensor.split, *args, **kwargs)

    def unflatten(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return self._called(Tensor.unflatten, *args, **kwargs)

    def as_subclass(self, cls: Any) -> Any:  # type: ignore[override]
        if torch._C._is_torch_function_enabled() and not issubclass(cls, GridTensor):
            raise refuse(Tensor.as_subclass, "what it makes would no longer know which patches it holds; see `values`")
        return super().as_subclass(cls)

    def _called(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return method(self, *args, **kwargs)
        if torch._C._is_torch_function_enabled():
            return self.__torch_function__(method, (), (self, *args), kwargs)
        return method(self.values, *args, **kwargs)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        known = meaning_of(func)
        if known is None:
            if _computes_gradients(func):
                with torch._C.DisableTorchFunctionSubclass():
                    return func(*args, **kwargs or {})
            if isinstance(func, torch.ScriptMethod):
                raise refuse(func, "TorchScript does not know visible patches; use the module that it was made from")
            raise refuse(func, "it has no known meaning on visible patches")
        if kwargs and "out" in kwargs:
            kwargs = dict(kwargs)
            if kwargs.pop("out") is not None:
                raise refuse(func, "it writes into a tensor of the network's own (out=)")
        try:
            with _dispatch_off(func):
                return known(func, args, kwargs or {})
        except (Refusal, LostAxes) as refusal:
            reason = refusal.args[0]  # not str() of it, nor `raise ... from`: old Dynamos know neither
        raise refuse(func, reason)


def _dispatch_off(func: Callable[..., Any]) -> Any:
    """Of modes as well for attributes under `torch.compile`: Dynamo has not left them, and would come back for ever."""
    if torch.compiler.is_compiling() and getattr(func, "__name__", "") == "__get__":
        return torch._C.DisableTorchFunction()
    return torch._C.DisableTorchFunctionSubclass()


def _computes_gradients(func: Callable[..., Any]) -> bool:
    """Whether autograd runs an operator on what it saved: a dispatch mode (a FLOP counter, say) shows it to us."""
    return isinstance(func, torch._ops.OpOverload) and torch._C._current_graph_task_id() != -1


class VisiblePatches(GridTensor):
    """The values at the visible patches of a batch: `(N, C, *positions)`, one row a patch.

    A backbone is called on it as on any tensor. Per-position operations run as they are; what looks at a neighbourhood
    or at a whole image gets its exact meaning from the registry; anything else is refused. Made by `gather`.
    """

    # Cells that F.pad announced but did not write; only the next conv, pool or pad may look at such a tensor.
    pending: Padding | None
    # "mean", say, of what has been reduced over some axes of positions: only the same of the others may follow.
    partial: str | None
    # What F.pad made of this tensor and is still in use: it shows the values before a change. Not while compiling.
    padded: list[weakref.ref[VisiblePatches]] | None = None


class PerImage(GridTensor):
    """One row for each image, (B, ...): what a reduction over an image's visible positions returns.

    Repeated for each patch of the image as soon as it meets visible patches again.
    """

    # Axes and sizes of the patches it was reduced from, where it kept them as axes of size 1: what `expand` grows to.
    origin: tuple[Layout, torch.Size] | None


class PaddingStep(NamedTuple):
    """What one F.pad announced: for each spatial axis (before, after), and what is there."""

    pads: tuple[tuple[int, int], ...]
    mode: str
    value: float


class Padding:
    """Padding announced by F.pad, once or several times.

    Attributes:
        core: the patches without it.
        steps: in order.
    """

    def __init__(self, core: VisiblePatches, steps: list[PaddingStep], view: bool = False):
        """`view`: a part of the core, as a slice takes it, which has no values of before a change of the core."""
        copied = torch.compiler.is_compiling() or (core.is_inference() and not view)
        self.core = as_patches(core.clone(), core.grid, core.axes) if copied else core
        self._version = None if copied or core.is_inference() else core._version  # nobody counts their changes
        self._view = view
        self.steps = steps

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """Of all steps together, for each spatial axis."""
        of_axes = zip(*(step.pads for step in self.steps), strict=True)
        return tuple((sum(lo for lo, _ in pairs), sum(hi for _, hi in pairs)) for pairs in of_axes)

    def followed_by(self, step: PaddingStep) -> Padding:
        return Padding(self.unchanged(), [*self.steps, step])

    def announced(self) -> VisiblePatches:
        """The core with this padding, which the next convolution, pooling or pad reads."""
        core = self.core
        sizes = [p + lo + hi for p, (lo, hi) in zip(core.shape[2:], self.pads, strict=True)]
        # Cells that nobody wrote: a number that shows if anybody reads it.
        unwritten = core.new_full((1,), float("nan")).expand(*core.shape[:2], *sizes)
        padded = as_patches(unwritten, core.grid, (*core.axes[:2], *(((i, n),) for i, n in enumerate(sizes))))
        padded.pending = self
        padded.unreadable = (
            "the tensor is padded, or a pooling made it smaller, and only a convolution, a pooling or another pad can "
            "follow"
        )
        if self._version is not None and not self._view:  # the core is copied before a change, while this is in use
            core.padded = [*(ref for ref in core.padded or () if ref() is not None), weakref.ref(padded)]
        return padded

    def unchanged(self) -> VisiblePatches:
        """The core as it was when the padding was announced."""
        if self._version is not None and self.core._version != self._version:
            raise Refusal(
                "what F.pad padded, or a slice cut, was changed in place afterwards, through a view of it; take a clone"
            )
        return self.core

    def keep_core(self) -> None:
        self.core = as_patches(self.core.clone(), self.core.grid, self.core.axes)
        self._version = None


def as_patches(values: Tensor, grid: PatchGrid, layout: Layout | None = None) -> VisiblePatches:
    """Plain values, one row a visible patch, to VisiblePatches.

    Args:
        values: `(N, C, *positions)`, in the order of `grid.cells`; other axes need a `layout` (`axes.py`).
    """
    return _know(values.as_subclass(VisiblePatches), grid, layout or lay.canonical(values.shape))


def as_per_image(
    values: Tensor, grid: PatchGrid, layout: Layout | None = None, origin: tuple[Layout, torch.Size] | None = None
) -> PerImage:
    """Plain values, one row an image, (B, ...), to PerImage."""
    return _know_per_image(values.as_subclass(PerImage), grid, layout or lay.per_image(values.shape), origin)


def become_patches(values: Tensor, grid: PatchGrid, layout: Layout | None = None) -> VisiblePatches:
    """`as_patches` for a tensor that nobody else holds: the very object changes its class.

    `as_subclass` makes a view, and an operation in place on a view (`relu_` above all) copies the whole gradient
    several times on its way back.
    """
    layout = layout or lay.canonical(values.shape)
    return _know(_become(values, VisiblePatches), grid, layout)


def become_per_image(
    values: Tensor, grid: PatchGrid, layout: Layout | None = None, origin: tuple[Layout, torch.Size] | None = None
) -> PerImage:
    """`as_per_image`, likewise."""
    layout = layout or lay.per_image(values.shape)
    return _know_per_image(_become(values, PerImage), grid, layout, origin)


def _become(values: Tensor, kind: type[G]) -> G:
    if type(values) is not Tensor or torch.compiler.is_compiling():
        return values.as_subclass(kind)
    values.__class__ = kind
    return values  # type: ignore[return-value]


def _know(patches: VisiblePatches, grid: PatchGrid, layout: Layout) -> VisiblePatches:
    patches.grid = grid
    patches.axes = layout
    patches.pending = patches.partial = patches.unreadable = None  # Dynamo does not see a class's
    return patches


def _know_per_image(
    rows: PerImage, grid: PatchGrid, layout: Layout, origin: tuple[Layout, torch.Size] | None
) -> PerImage:
    rows.grid = grid
    rows.axes = layout
    rows.unreadable = None
    rows.origin = origin if origin is not None and len(origin[1]) == len(layout) else None
    return rows


def as_same_kind(values: Tensor, like: GridTensor, layout: Layout) -> GridTensor:
    """The fresh result of an operation on `like`, as what `like` is."""
    if isinstance(like, VisiblePatches):
        return become_patches(values, like.grid, layout)
    assert isinstance(like, PerImage)
    return become_per_image(values, like.grid, layout, like.origin if layout == like.axes else None)


# -------------------------------------------------------------------------------- images and patches


def check_operands(images: object, grid: object) -> None:
    """Raise UsageError unless these are a tensor and a grid, or None for a grid yet to be drawn."""
    if not isinstance(images, Tensor):
        raise UsageError(
            f"images are a {type(images).__name__}: expected a tensor (B, C, H, W) of numbers as the network takes them"
        )
    if grid is not None and not isinstance(grid, PatchGrid):
        raise UsageError(
            f"grid is a {type(grid).__name__}: expected a PatchGrid, which PatchGrid(mask) makes of a bool tensor "
            "(B, h, w), True = visible"
        )


def gather(images: Tensor, grid: PatchGrid) -> VisiblePatches:
    """Cut the visible patches out of images. Inverse of `scatter`.

    A network that is called on the result by itself is not proved: what has no known meaning is refused, but a
    function may act by the size of its input. And PyTorch does not show to tensor subclasses what these do:
    TorchScript functions (`@torch.jit.script`, `torch.jit.trace` of a function), `torch.func.grad` and `vjp`, and
    constructors (`torch.autograd.Variable(x)`, `torch.Tensor(x)`, `torch.tensor(x)`). They return a plain tensor with a
    row a patch. As soon as it meets visible patches or `scatter` it is refused, but a convolution that gets nothing
    else takes patches for images. So are the gradients that a `torch.autograd.Function` of the network's own and the
    backward hooks of modules get (those of tensors get patches): a mean over positions there is one of each patch.
    `SparK` and `convspark.check` prove a network, gradients included, and name the module that returned a plain tensor.

    Args:
        images: (B, C, H, W), or one more axis for volumes; each side a multiple of the grid's.
        grid: which patches are visible, on the images' device.

    Returns:
        (N, C, H/h, W/w), channels last in memory, in the order of `grid.cells`.

    Raises:
        UsageError: the images do not fit the grid.
    """
    check_operands(images, grid)
    if grid is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise UsageError("grid is None: expected a PatchGrid, such as PatchGrid.random draws")
    dims = len(grid.shape)
    if images.dim() != dims + 2 or images.shape[0] != grid.batch_size:
        raise UsageError(
            f"images have the shape {tuple(images.shape)}, but the grid is one of {grid.batch_size} images with "
            f"{dims} spatial axes; expected ({grid.batch_size}, C{', side' * dims})."
        )
    if any(side % h for side, h in zip(images.shape[2:], grid.shape, strict=True)):
        raise UsageError(
            f"images of {tuple(images.shape[2:])} cannot be cut into a grid of {grid.shape} patches: each side must "
            "be a multiple of the number of patches along it."
        )
    batch, channels = images.shape[:2]
    patch = tuple(side // h for side, h in zip(images.shape[2:], grid.shape, strict=True))
    # (B, C, H, W) -> (B, C, h, p, w, p) -> (B, h, w, p, p, C) -> (B*h*w, p*p*C)
    split = images.view(batch, channels, *(n for pair in zip(grid.shape, patch, strict=True) for n in pair))
    order = (0, *range(2, 2 + 2 * dims, 2), *range(3, 3 + 2 * dims, 2), 1)
    rows = split.permute(order).reshape(batch * math.prod(grid.shape), math.prod(patch) * channels)
    visible = rows.index_select(0, grid.cells).view(-1, *patch, channels).movedim(-1, 1)
    return as_patches(visible, grid, lay.canonical(visible.shape))


def scatter(patches: VisiblePatches, fill: float | Tensor = 0.0) -> Tensor:
    """Put visible patches back into images. Inverse of `gather`.

    Args:
        patches: `(N, C, *positions)`, or with its axes in another order (NHWC).
        fill: what masked positions get: a number, or a tensor broadcastable to (1, C, 1, 1).

    Returns:
        (B, C, H, W), a plain tensor.
    """
    check_patches(patches, "scatter was given")
    with torch._C.DisableTorchFunctionSubclass():
        try:
            values, grid = canonical_values(patches), patches.grid
        except Refusal as refusal:
            reason = refusal.args[0]
            raise UsageError(f"patches cannot be put back into images: {reason}") from None
        patch = values.shape[2:]
        rows, images = flat_rows(values), grid.into_images(tuple(patch))
        if isinstance(fill, (int, float)) and fill == 0:
            rows = copied(rows, images)
        else:
            rows = filled(rows, _of_channels(fill, rows, len(patch)), images)
        sides = [h * p for h, p in zip(grid.shape, patch, strict=True)]
        return rows.view(grid.batch_size, *sides, values.shape[1]).movedim(-1, 1)


def _of_channels(fill: float | Tensor, rows: Tensor, dims: int) -> Tensor:
    """(1, C), like rows (R, C)."""
    try:
        if not isinstance(fill, Tensor):
            return rows.new_full((1, rows.shape[1]), fill)  # the host waits for no copy
        return fill.to(rows).broadcast_to(1, rows.shape[1], *[1] * dims).flatten(1)
    except (TypeError, ValueError, RuntimeError):
        told = f"of shape {tuple(fill.shape)}" if isinstance(fill, Tensor) else repr(fill)
        raise UsageError(f"fill is {told}: expected a number, or a tensor of one a channel, (C, 1, 1)") from None


def check_patches(patches: object, what: str) -> None:
    """Raise UsageError unless these are visible patches, `what` being how they were come by."""
    if not isinstance(patches, VisiblePatches):
        raise UsageError(
            f"{what} a {type(patches).__name__}, not visible patches. Values of whole images (a pooled map) "
            "cannot be put back. A plain tensor comes from functions that PyTorch hides from tensor subclasses: "
            "TorchScript functions, torch.func, torch.autograd.Variable(x), torch.Tensor(x); under torch.compile also "
            "abs(x), pow(x, 2) and x[...] = y (x.abs() and x**2 work). Write the network without them."
        )


def visible_positions(grid: PatchGrid, patch: tuple[int, ...] | torch.Size) -> Tensor:
    """bool (B, 1, H, W): the grid's visible patches, each `patch` positions a side."""
    visible = grid.visible[:, None]
    for axis, p in enumerate(patch):
        visible = visible.repeat_interleave(p, dim=2 + axis)
    return visible


def before_change(tensor: object) -> None:
    """To be called before a tensor is changed in place.

    What would share its values in a dense network becomes unreadable; what F.pad made of it keeps the old values.
    """
    if torch.compiler.is_compiling() or not isinstance(tensor, GridTensor):
        return
    for twin in _twins_of(_memory(tensor)):
        twin.stale = True  # type: ignore[attr-defined]
    if isinstance(tensor, VisiblePatches) and tensor.padded:
        for padded in (ref() for ref in tensor.padded):
            if padded is not None and padded.pending is not None:
                padded.pending.keep_core()
        tensor.padded = None


def as_view(result: G, of: GridTensor, perhaps: bool = False) -> G:
    """The result of a function that makes a view of a dense tensor; if it is a copy here, the two are twins.

    Args:
        perhaps: whether the dense network may have a copy instead, which depends on the order in memory; then it is
            one here.
    """
    if torch.compiler.is_compiling() or not result.numel():
        return result
    if result is of or result.data_ptr() == of.data_ptr():
        if not perhaps:
            return result
        result = as_same_kind(result.clone(), of, result.axes)  # type: ignore[assignment]
    one, other = _memory(result), _memory(of)
    for twin in (other, *_twins_of(other)):
        _become_twins(one, twin)
    return result


def _memory(tensor: Tensor) -> Tensor:
    """The tensor that this one is a view of, as all its other views are, or itself.

    Where a dense network has one memory and visible patches have two, the other's `twins` has weak references to it:
    after one was changed in place, the other is `stale`, with all its views. Not while compiling: Dynamo does not see
    such attributes.
    """
    return tensor if tensor._base is None else tensor._base


def _twins_of(memory: Tensor) -> list[Tensor]:
    return [twin for ref in getattr(memory, "twins", ()) if (twin := ref()) is not None]


def _become_twins(one: Tensor, other: Tensor) -> None:
    for memory, twin in ((one, other), (other, one)):
        memory.twins = [*map(weakref.ref, _twins_of(memory)), weakref.ref(twin)]  # type: ignore[attr-defined]


def _is_stale(tensor: Tensor) -> bool:
    return not torch.compiler.is_compiling() and getattr(_memory(tensor), "stale", False)


def may_be_in_another_order(tensor: GridTensor) -> bool:
    """Whether nobody knows in which order a dense network has it in memory, as long as its axes are in their own."""
    return isinstance(tensor, VisiblePatches) and not lay.is_canonical(tensor.axes)


def unpadded(tensor: T, partially: bool = False) -> T:
    """The tensor, refused if it is padded, partly reduced or otherwise not to be read.

    Args:
        partially: whether it may be reduced over some of its positions' axes.
    """
    if not isinstance(tensor, GridTensor):
        return tensor
    if tensor.unreadable is None:
        if _is_stale(tensor):
            raise Refusal(
                "the tensor, or a flatten, reshape or contiguous of it, was changed in place, and whether they share "
                "their values depends on the order in memory, which is another in a dense network; change it out of "
                "place (relu instead of relu_)"
            )
        return tensor
    if partially and isinstance(tensor, VisiblePatches) and tensor.partial is not None:
        return tensor
    raise Refusal(tensor.unreadable)


def canonical_values(patches: VisiblePatches) -> Tensor:
    """Values as (N, C, *positions), plain, whatever order the axes are in. Runs with dispatch switched off."""
    order = canonical_order(unpadded(patches).axes)
    if order is None:
        raise Refusal("its patch, channel and position axes have been merged or split")
    return patches.permute(order)


def canonical_order(layout: Layout) -> tuple[int, ...] | None:
    """Permutation that brings the layout's axes to (patches, channels, *positions), if there is one."""
    roles = [tuple(role for role, _ in axis) for axis in layout]
    dims = len(roles) - 2
    expected = [(lay.PATCH,), None, *((axis,) for axis in range(dims))]
    plain = [at for at, role in enumerate(roles) if role in ((lay.PLAIN,), ())]
    if (
        dims < 1
        or len(plain) != 1
        or sorted(map(str, roles)) != sorted(map(str, [roles[plain[0]], *(w for w in expected if w is not None)]))
    ):
        return None
    return tuple(plain[0] if w is None else roles.index(w) for w in expected)


# -------------------------------------------------------------------------------- rows, per-image sums


def flat_rows(values: Tensor) -> Tensor:
    """(N, C, *positions) -> (N * prod(positions), C); no copy where channels are last in memory."""
    return values.movedim(1, -1).reshape(-1, values.shape[1])


def from_rows(rows: Tensor, table_size: tuple[int, ...]) -> Tensor:
    """(N * prod(size), C) -> (N, C, *size), channels last in memory."""
    if math.prod(table_size) == 1:
        # The strides that results of PyTorch's operations have: where those of a value and its gradient differ, though
        # in axes of size 1 alone, batch norm's backward pass takes up to 25 times as long.
        return rows.view(-1, rows.shape[1], *table_size)
    return rows.view(-1, *table_size, rows.shape[1]).movedim(-1, 1)


def copied_patches(values: Tensor, copy: Copy, size: tuple[int, ...]) -> Tensor:
    """(N, C, *positions) -> (M, C, *size)"""
    return from_rows(copied(flat_rows(values), copy), size)


def sum_per_image(values: Tensor, grid: PatchGrid) -> Tensor:
    """(N, ...) -> (B, ...): sum over the patches of each image."""
    if grid.visible_per_image is not None:
        return values.reshape(grid.batch_size, grid.visible_per_image, *values.shape[1:]).sum(1)
    return values.new_zeros(grid.batch_size, *values.shape[1:]).index_add(0, grid.image, values)


def repeat_per_patch(rows: Tensor, grid: PatchGrid) -> Tensor:
    """(B, ...) -> (N, ...): the row of each patch's image."""
    if grid.visible_per_image is not None:
        return rows.repeat_interleave(grid.visible_per_image, 0)
    return rows.index_select(0, grid.image)
