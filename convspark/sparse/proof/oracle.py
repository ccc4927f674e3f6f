"""The oracle: the same semantics by mask-and-multiply on whole maps. Slow, obvious, and used to prove the engine.

A network runs densely, on plain tensors of whole images, under a mode that remembers of each element of a map which
patch it lies in: its place. It shares no code with the engine, and follows one rule:

* what moves the values' axes moves the places' too;
* what looks around, or sums products over positions, sees zeros at masked positions;
* what is infinite or infinitely steep at 0 sees ones there;
* what reduces, compares or normalises positions runs, as torch has it, on the visible ones alone;
* all else runs as torch has it, and its result lies where its operands lie.

What it does not know is "all else": it does not fail where the dense network runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import _StopRecomputationError
from torch.utils.weak import WeakTensorKeyDictionary

NOWHERE = -1  # the place of an element that belongs to no patch: per-image values, which are always visible

Function = Callable[..., Any]


class MaskAndMultiply(TorchFunctionMode):
    """The mode: `MaskAndMultiply(visible)(network, images)` is what the network makes of the visible patches.

    Args:
        visible: bool (B, *grid), True = visible.

    Attributes:
        unknown: functions that have a rule which failed with these arguments, so that they ran as all else does.
    """

    def __init__(self, visible: Tensor):
        super().__init__()
        self.visible = visible
        self.unknown: list[str] = []
        self._places = WeakTensorKeyDictionary()  # int64, of the tensor's shape: index into the flattened (B, *grid)
        self._partial = WeakTensorKeyDictionary()  # of what was reduced over some of the positions' axes: name, source

    def __call__(self, forward: Function, images: Tensor) -> Any:
        """Run `forward` on masked images (B, C, *sides); its maps, with 0 at masked positions."""
        masked = self.masked(images)
        with self:
            out = forward(masked)
        return self.zero_filled(out)

    def masked(self, images: Tensor) -> Tensor:
        """Images with 0 at masked positions."""
        return self.put(self.zero_filled(images), self.place(images))

    def zero_filled(self, x: Any) -> Any:
        """A map with 0 at masked positions; of lists, each."""
        return self.filled(x, 0)

    def filled(self, x: Any, value: int) -> Any:
        """The same with another number."""
        if isinstance(x, (list, tuple)):
            return [self.filled(one, value) for one in x]
        return torch.where(self.mask(x), x, value) if isinstance(x, Tensor) and not _nowhere(self.place(x)) else x

    def mask(self, x: Tensor) -> Tensor:
        """bool, of its shape, True = visible."""
        few = _few(self.place(x))
        return (self.visible.flatten()[few.clamp(min=0)] | (few < 0)).expand(x.shape)

    def place(self, x: Tensor) -> Tensor:
        """Which patch each element lies in. Results of functions that torch does not show us have it by their shape."""
        known = self._places.get(x)
        if known is not None and known.shape == x.shape:
            return known
        batched = not isinstance(x, nn.Parameter) and x.shape[:1] == self.visible.shape[:1]
        places = self.map_places(x.shape) if batched else None
        return torch.full((), NOWHERE, device=x.device).expand(x.shape) if places is None else places

    def put(self, x: Tensor, place: Tensor) -> Tensor:
        """Remember where a tensor's elements lie."""
        self._places[x] = place
        return x

    def map_places(self, shape: Sequence[int]) -> Tensor | None:
        """Of a map (B, C, *sides), as groups of channels (1, B * C, …) or beside images (B * G, C / G, …) too."""
        batch, *grid = self.visible.shape
        if len(shape) != len(grid) + 2 or (shape[0] > 1 and shape[0] % batch) or shape[0] * shape[1] % batch:
            return None
        places = torch.arange(self.visible.numel(), device=self.visible.device).view(batch, 1, *grid)
        for axis, (side, h) in enumerate(zip(shape[2:], grid, strict=True), start=2):
            if side == 0 or side % h:
                return None
            places = places.repeat_interleave(side // h, axis)
        places = places.expand(batch, shape[0] * shape[1] // batch, *shape[2:])
        return places if shape[0] == batch else places.reshape(shape)

    def follow(self, out: Any, places: Sequence[Tensor]) -> Any:
        """Let results lie where operands at these places do."""
        for part in _tensors(out):
            where = torch.full((), NOWHERE, device=self.visible.device).expand(part.shape)
            for fitting in [one for place in places if (one := _fitted(place, part.shape)) is not None]:
                where = fitting if _nowhere(where) else torch.where(where < 0, fitting, where)
            if places and all(_nowhere(p) and _grew(p.shape, part.shape) for p in places):
                grown = self.map_places(part.shape)  # values of images, repeated over a map
                where = where if grown is None else grown
            self.put(part, where)
        return out

    def __torch_function__(self, func: Function, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        operands = self._known((args, kwargs))
        if not operands:
            return func(*args, **kwargs)
        custom = isinstance(func, (torch._ops.OpOverloadPacket, torch._ops.OpOverload))
        rule = _around if custom else _RULES.get(_name(func))
        if rule is not None:
            try:
                return rule(self, func, *args, **{str(_SPELLINGS.get(key, key)): kwargs[key] for key in kwargs})
            except _StopRecomputationError:  # how a checkpoint leaves the part that it runs again
                raise
            except Exception:  # not as the rule knows it; an error of the network's own comes again
                self.unknown.append(_name(func))
        return self.beside(func, *args, **kwargs)

    def beside(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        """Run a function as all else is run."""
        places = [self.place(x) for x in self._known((args, kwargs))]
        out = func(*args, **kwargs)
        known = isinstance(out, Tensor) and out in self._places and out.shape == self._places[out].shape
        return out if known else self.follow(out, places)

    def _known(self, arguments: Any) -> list[Tensor]:
        """Operands whose places are known; else the first, if they follow from its shape."""
        operands = list(_tensors(arguments))
        known = [x for x in operands if x in self._places]
        return known or [x for x in operands[:1] if not _nowhere(self.place(x))]


_SPELLINGS = {"axis": "dim", "keepdims": "keepdim", "x": "input", "A": "input"}


def _name(func: Function) -> str:
    """Of a property (`x.mT`), the property's own."""
    name = getattr(func, "__name__", "")
    return func.__self__.__name__ if name == "__get__" else name  # type: ignore[attr-defined]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


def _few(place: Tensor) -> Tensor:
    """One of each axis along which it repeats itself in memory."""
    return place[tuple(slice(0, 1) if step == 0 else slice(None) for step in place.stride())]


def _nowhere(place: Tensor) -> bool:
    return bool((_few(place) < 0).all())


def _grew(before: torch.Size, after: torch.Size) -> bool:
    """Whether there are as many rows and channels, and more positions."""
    return before[:2] == after[:2] and len(before) == len(after) and math.prod(before[2:]) < math.prod(after[2:])


def _same_along(place: Tensor, *axes: int) -> bool:
    few = _few(place)
    return all(bool((few == few.narrow(axis, 0, 1)).all()) for axis in axes if few.shape[axis] > 1)


def _fitted(place: Tensor, shape: torch.Size) -> Tensor | None:
    """Places in a result's shape: by broadcasting, or where an axis was resized or lost along which they are equal."""
    if len(shape) == place.dim() - 1:
        for axis in range(place.dim()):
            if (*place.shape[:axis], *place.shape[axis + 1 :]) == shape and _same_along(place, axis):
                return place.select(axis, 0)
        return None
    for axis, n in enumerate(shape[len(shape) - place.dim() :]) if len(shape) >= place.dim() else ():
        if n != place.shape[axis]:
            if not _same_along(place, axis):
                return None
            place = place.narrow(axis, 0, 1)
    return place.expand(shape) if len(shape) >= place.dim() else None


# --------------------------------------------------------------------------------------------------- the rules


def _move(mode: MaskAndMultiply, func: Function, /, input: Any, *args: Any, **kwargs: Any) -> Any:
    """The places' axes as those of the values."""
    place = mode.place(input)
    out = func(input, *args, **kwargs)
    if isinstance(out, Tensor) and ("view" in func.__name__ or "reshape" in func.__name__):
        return mode.put(out, place.reshape(out.shape))  # the places' memory may not allow a view
    places = func(place.expand(place.shape), *args, **kwargs)  # a view of its own, for what changes axes in place
    for part, where in zip(_tensors(out), _tensors(places), strict=True):
        mode.follow(part, [place]) if _nowhere(where) else mode.put(part, where)
    return out


def _join(mode: MaskAndMultiply, func: Function, /, tensors: Sequence[Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Also with plain tensors, whose positions are those of the map that they meet."""
    like = next((x for x in tensors if not _nowhere(mode.place(x))), tensors[0])
    fitted = [_fitted(mode.place(like), x.shape) if _nowhere(mode.place(x)) else None for x in tensors]
    places = [mode.place(x) if beside is None else beside for x, beside in zip(tensors, fitted, strict=True)]
    return mode.put(func(tensors, *args, **kwargs), func(places, *args, **kwargs))


def _write(mode: MaskAndMultiply, func: Function, /, input: Tensor, index: Any, value: Any) -> None:
    func(input, index, value)
    place = mode.place(input).clone()
    if isinstance(value, Tensor):  # values of images lie where they are written
        place[index] = torch.where(mode.place(value) < 0, place[index], mode.place(value))
    mode.put(input, place)


def _count(mode: MaskAndMultiply, func: Function, /, input: Tensor) -> int:
    """Of visible elements, so that a sum over it is their mean."""
    return int(mode.mask(input).sum())


def _pad(
    mode: MaskAndMultiply, func: Function, /, input: Tensor, pad: Any, how: str = "constant", value: Any = None, **g
):
    """Cells around the map are visible where they are a number, and lie where what they repeat lies."""
    how, value = g.get("mode", how), g.get("value", value)
    where = func(mode.place(input).double(), pad, how, NOWHERE if how == "constant" else None).long()
    return mode.put(func(mode.zero_filled(input), pad, how, value), where)


def _around(mode: MaskAndMultiply, func: Function, /, *args: Any, **kwargs: Any) -> Any:
    """Convolutions, poolings, resizing: the result is a map again. So are custom operators, unknown to us."""
    operands = list(_tensors((args, kwargs)))
    places = [mode.place(x) for x in operands if x in mode._places or x is operands[0]]
    out = func(*map(mode.zero_filled, args), **{key: mode.zero_filled(value) for key, value in kwargs.items()})
    several = [axis for axis, h in enumerate(mode.visible.shape[1:], start=2) if h > 1 and axis < places[0].dim()]
    no_map = _nowhere(places[0]) or any(_same_along(places[0], axis) for axis in several)  # groups of flat positions
    for part in _tensors(out):
        place = None if no_map else mode.map_places(part.shape)
        mode.follow(part, places) if place is None else mode.put(part, place)
    return out


def _zeroed(mode: MaskAndMultiply, func: Function, /, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Sums of powers over positions see zeros; each result lies where its operand does."""
    return mode.put(func(mode.zero_filled(input), *args, **kwargs), mode.place(input))


def _steep(mode: MaskAndMultiply, func: Function, /, *args: Any, **kwargs: Any) -> Any:
    """What has no finite value or slope at 0 sees ones at masked positions: an infinity there, which is of no account,
    would make the gradients NaN.
    """
    places = [mode.place(x) for x in mode._known((args, kwargs))]
    keywords = {key: mode.filled(value, 1) for key, value in kwargs.items()}
    return mode.follow(func(*(mode.filled(value, 1) for value in args), **keywords), places)


def _unfold(
    mode: MaskAndMultiply, func: Function, /, input: Tensor, kernel_size: Any, dilation=1, padding=0, stride: Any = 1
) -> Tensor:
    assert func is torch.nn.functional.unfold
    out = func(mode.zero_filled(input), kernel_size, dilation, padding, stride)
    of_axes = [(n, n) if isinstance(n, int) else n for n in (kernel_size, dilation, padding, stride)]
    axes = zip(input.shape[2:], *of_axes, strict=True)
    sides = [(side + 2 * pad - apart * (taps - 1) - 1) // step + 1 for side, taps, apart, pad, step in axes]
    places = mode.map_places((*out.shape[:2], *sides))
    assert places is not None
    return mode.put(out, places.flatten(2))


def _pool(mode: MaskAndMultiply, func: Function, /, input: Tensor, kernel_size: Any, *args: Any, **kwargs: Any) -> Any:
    """Over the whole map where the kernel is `x.shape[2:]`, as networks write that."""
    if isinstance(kernel_size, torch.Size) and kernel_size == input.shape[2:]:
        return _adaptive(mode, func, input, 1)
    out = _around(mode, func, input, kernel_size, *args, **kwargs)
    if isinstance(out, Tensor) and out.dim() == input.dim() and _nowhere(mode.place(out)):
        place = mode.place(input)[tuple(map(slice, out.shape))]
        mode.put(out, place if place.shape == out.shape else mode.place(out))  # the map has lost its end
    return out


def _adaptive(
    mode: MaskAndMultiply, func: Function, /, input: Tensor, output_size: Any, return_indices: bool = False
) -> Tensor:
    """To a map if its size was read off one; to so many bins of the whole map if it is a number: of visible ones."""
    assert not return_indices
    dims, place = int(func.__name__[-2]), mode.place(input)
    sides, sizes = input.shape[-dims:], output_size if isinstance(output_size, Sequence) else [output_size] * dims
    sizes = [side if n is None else n for side, n in zip(sides, sizes, strict=True)]
    read_off = isinstance(output_size, torch.Size) or sizes == list(sides) != [output_size] * dims
    smaller = mode.map_places((*input.shape[:-dims], *sizes))
    if read_off and smaller is not None and not any(side % n for side, n in zip(sides, sizes, strict=True)):
        return mode.put(func(mode.zero_filled(input), output_size), smaller)
    reduce = torch.mean if "avg" in func.__name__ else torch.amax
    out = input.new_zeros(*input.shape[:-dims], *sizes)
    for bin in itertools.product(*map(range, sizes)):
        of = (..., *[slice(i * n // k, -(-(i + 1) * n // k)) for i, n, k in zip(bin, sides, sizes, strict=True)])
        part = mode.put(input[of], place[of])
        out[(..., *bin)] = mode.zero_filled(_reduce(mode, reduce, part, tuple(range(-dims, 0))))
    return mode.put(out, torch.full_like(out, NOWHERE, dtype=torch.int64))


_ARGUMENTS = {
    "norm": ("p", "dim", "keepdim"),
    **dict.fromkeys(("linalg_norm", "linalg_vector_norm"), ("ord", "dim", "keepdim")),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), ("dim", "unbiased", "keepdim")),
}


def _reduce(mode: MaskAndMultiply, func: Function, /, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Over positions: of those that are visible, 0 where none is. One axis of them after the other is both at once."""
    name, place = func.__name__, mode.place(input)
    if any(True for _ in _tensors((args, kwargs))):  # the larger of two, say
        return mode.beside(func, input, *args, **kwargs)
    out = func(input, *args, **kwargs)  # of all: has the right shape, and is right along channels
    kwargs = dict(zip(_ARGUMENTS.get(name, ("dim", "keepdim")), args, strict=False)) | kwargs
    dim, keeps_axes = kwargs.pop("dim", None), kwargs.pop("keepdim", False)
    if isinstance(dim, bool):
        dim, kwargs["unbiased"] = None, dim
    if dim is None and name in ("max", "min"):
        func = torch.amax if name == "max" else torch.amin
    named = range(input.dim()) if dim is None or dim == () else [dim] if isinstance(dim, int) else dim
    dims = {d % input.dim() for d in named}
    source, before = input, mode._partial.get(input)
    if before is not None and before[0] == name:
        _, source, reduced, remaining = before
        place, dims = mode.place(source), reduced | {remaining[d] for d in dims}
    lowest, highest = place.amin(tuple(dims)), place.amax(tuple(dims))
    where = torch.where(lowest == highest, lowest, NOWHERE)
    if _same_along(place, *dims):
        for one in _tensors(out):
            mode.put(one, where.view(one.shape))
        return out
    rest = [axis for axis in range(source.dim()) if axis not in dims]
    rows = source.permute(*rest, *dims).reshape(math.prod(source.shape[axis] for axis in rest), -1)
    buffers = [part.new_zeros(len(rows)) for part in _tensors(out)]
    for which, columns in _kinds(mode, source, rest, dims):
        some = rows[which][:, columns]
        more = {"correction": 0} if name[:3] in ("var", "std") and some.shape[1] == 1 else kwargs
        for whole, part in zip(buffers, _tensors(func(some, dim=1, **more)), strict=True):
            whole[which] = part
    results = [part.view(one.shape) for part, one in zip(buffers, _tensors(out), strict=True)]
    for one in results:
        mode.put(one, where.view(one.shape))
        if sum(not _same_along(place, axis) for axis in rest) > 1:  # positions are left, not images alone
            mode._partial[one] = (name, source, dims, list(range(source.dim())) if keeps_axes else rest)
    return results[0] if isinstance(out, Tensor) else type(out)(results)


def _kinds(mode: MaskAndMultiply, x: Tensor, rest: Sequence[int], dims: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of x over the axes `dims` that show the same: which they are, and which of their columns are visible."""
    visible = mode.mask(x).permute(*rest, *dims).reshape(math.prod(x.shape[axis] for axis in rest), -1)
    patterns, kind = visible.unique(dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        if pattern.any():
            yield (kind == number).nonzero().flatten(), pattern.nonzero().flatten()


def _softmax(mode: MaskAndMultiply, func: Function, /, input: Tensor, dim: int, *args: Any, **kwargs: Any) -> Tensor:
    out, dim = func(input, dim, *args, **kwargs), dim % input.dim()
    if not _same_along(mode.place(input), dim):
        rows, shares = input.movedim(dim, -1).flatten(0, -2), torch.zeros_like(out.movedim(dim, -1).flatten(0, -2))
        for which, columns in _kinds(mode, input, [axis for axis in range(input.dim()) if axis != dim], [dim]):
            shares[which[:, None], columns] = func(rows[which][:, columns], 1, *args, **kwargs)
        out = shares.view(out.movedim(dim, -1).shape).movedim(-1, dim)
    return mode.put(out, mode.place(input))


def _matmul(mode: MaskAndMultiply, func: Function, /, input: Tensor, other: Tensor) -> Tensor:
    """A row of the one by a column of the other."""
    out = func(mode.zero_filled(input), mode.zero_filled(other))
    rows, columns = mode.place(input), mode.place(other)
    over_channels = _same_along(rows, -1) and _same_along(columns, -2)
    return mode.follow(out, [rows[..., :1], columns[..., :1, :]] if over_channels else [])


def _einsum(mode: MaskAndMultiply, func: Function, /, equation: str, *operands: Any) -> Tensor:
    out = func(equation, *map(mode.zero_filled, operands))
    sides, arrow, result = equation.replace(" ", "").partition("->")
    tensors = list(_tensors(operands))
    more = [x.dim() - len(names) + 3 for names, x in zip(sides.split(","), tensors, strict=True) if "..." in names]
    if not arrow:
        result = "..." * bool(more) + "".join(sorted(n for n in sides if n.isalpha() and sides.count(n) == 1))
    result = result.replace("...", "987654321"[9 - max(more, default=0) :])
    places = []
    for names, x in zip(sides.split(","), tensors, strict=True):
        names = names.replace("...", "987654321"[9 - (x.dim() - len(names) + 3) :])
        place, gone = mode.place(x), [axis for axis, name in enumerate(names) if name not in result]
        if _same_along(place, *gone):
            place = place.permute(*[names.index(name) for name in result if name in names], *gone)
            place = place[(..., *[0] * len(gone))]
            places.append(place[tuple(slice(None) if name in names else None for name in result)])
    return mode.follow(out, places)


def _normalise(mode: MaskAndMultiply, x: Tensor, norm: Callable[[Tensor], Tensor], by_image: bool) -> Tensor:
    """Run a norm on (1, C, n), the visible positions of the batch, or of each image."""
    assert _same_along(mode.place(x), 1)
    rows, visible = x.movedim(1, -1), mode.mask(x)[:, 0]
    image = torch.arange(len(x), device=x.device).view(-1, *[1] * (x.dim() - 2))
    normalised = None
    for positions in [visible & (image == number) for number in range(len(x))] if by_image else [visible]:
        if positions.any():
            out = norm(rows[positions].T[None])[0].T
            normalised = torch.zeros_like(x, dtype=out.dtype) if normalised is None else normalised  # in x's order
            normalised.movedim(1, -1)[positions] = out
    return mode.put(torch.zeros_like(x) if normalised is None else normalised, mode.place(x))


def _batch_norm(mode: MaskAndMultiply, func: Function, /, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _normalise(mode, input, lambda x: func(x, *args, **kwargs), by_image=False)


def _group_norm(mode: MaskAndMultiply, func: Function, /, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _normalise(mode, input, lambda x: torch.group_norm(x, *args, **kwargs), by_image=True)


def _instance_norm(mode: MaskAndMultiply, func: Function, /, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Batch norm of each image alone; running statistics take the mean of what the images' would be."""
    names = ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    order = (*names[2:4], *names[:2], *names[4:]) if func is torch.instance_norm else names
    kwargs = {"use_input_stats": True, "momentum": 0.1, "eps": 1e-5} | dict(zip(order, args, strict=False)) | kwargs
    mean, variance, weight, bias, by_image, momentum, eps = (kwargs.get(name) for name in names)
    updated = []

    def norm(x: Tensor) -> Tensor:
        own = [None if statistic is None else statistic.clone() for statistic in (mean, variance)]
        updated.append(own)
        return torch.batch_norm(x, weight, bias, *own, by_image, momentum, eps, False)  # type: ignore[arg-type]

    out = _normalise(mode, input, norm, by_image)  # type: ignore[arg-type]
    if by_image and mean is not None and variance is not None:
        for statistic, of_images in zip((mean, variance), zip(*updated, strict=True), strict=True):
            statistic.copy_(torch.stack(of_images).mean(0))
    return out


_RULES: dict[str, Function] = {
    name: rule
    for rule, names in {
        _move: """view reshape permute transpose flatten unflatten unsqueeze squeeze movedim chunk split unbind narrow
            __getitem__ select expand expand_as pixel_shuffle pixel_unshuffle repeat_interleave tensor_split swapaxes
            view_as reshape_as repeat tile moveaxis swapdims native_channel_shuffle channel_shuffle unsafe_chunk
            unsafe_split split_with_sizes broadcast_to flip roll unsqueeze_ squeeze_ transpose_ t T mT""",
        _join: "cat concat concatenate stack",
        _write: "__setitem__",
        _pad: "pad",
        _count: "numel nelement",
        _pool: """avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool1d_with_indices
            max_pool2d_with_indices max_pool3d_with_indices""",
        _around: """conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d interpolate upsample
            lp_pool2d fold""",
        _unfold: "unfold",
        _zeroed: "normalize",
        _steep: """div divide true_divide __truediv__ __rtruediv__ __div__ __rdiv__ reciprocal pow __pow__ __rpow__
            float_power sqrt rsqrt log log2 log10 log1p""",
        _adaptive: " ".join(f"adaptive_{kind}_pool{dims}d" for kind in ("avg", "max") for dims in (1, 2, 3)),
        _reduce: """sum mean amax amin max min var std norm linalg_norm linalg_vector_norm var_mean std_mean any all
            prod logsumexp median""",
        _softmax: "softmax log_softmax",
        _matmul: "matmul bmm mm __matmul__",
        _einsum: "einsum",
        _batch_norm: "batch_norm",
        _group_norm: "group_norm",
        _instance_norm: "instance_norm",
    }.items()
    for name in names.split()
}
