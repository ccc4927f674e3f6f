"""The oracle: the same semantics by mask-and-multiply on whole maps. Slow, obvious, and used to prove the engine.

A `MaskedMap` is a whole map (B, C, H, W) beside a tensor of the same shape that says which patch each element lies in.
It shares no code with the engine, and follows one rule: what moves the values' axes moves the places' too; what looks
around sees zeros at masked positions; what averages counts visible positions only; all else is left to torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NOWHERE = -1  # the place of an element that belongs to no patch: per-image values, which are always visible


class MaskedMap(Tensor):
    """Whole maps with masked positions.

    Attributes:
        place: int64, same shape: which patch of the flattened (B, *grid) an element lies in, or `NOWHERE`.
        visible: bool (B, *grid), True = visible; more than one patch an image.
        padded: whether F.pad enlarged it, so that its sides are no multiple of the grid's.
    """

    place: Tensor
    visible: Tensor
    padded: bool = False

    @property
    def mask(self) -> Tensor:
        """bool, same shape, True = visible."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.visible.flatten()[self.place.clamp(min=0)] | (self.place < 0)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _run(func, args, kwargs or {})


def masked_map(images: Tensor, visible: Tensor) -> MaskedMap:
    """images (B, C, *sides), visible (B, *grid) bool -> MaskedMap with 0 at masked positions."""
    whole = _wrap(images, _places(visible, images.shape), visible)
    return _wrap(torch.where(whole.mask, images, 0), whole.place, visible)


def visible_part(x: Tensor) -> Tensor:
    """A MaskedMap as a plain tensor with 0 at masked positions."""
    assert isinstance(x, MaskedMap)
    with torch._C.DisableTorchFunctionSubclass():
        return torch.where(x.mask, x, 0)


def _places(visible: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """(B, *grid) -> (B, C, *sides): the patch of each position."""
    places = torch.arange(visible.numel(), device=visible.device).view(visible.shape)[:, None]
    for axis, side in enumerate(shape[2:], start=2):
        if side % places.shape[axis]:
            raise NotImplementedError(f"a side of {side} is not a multiple of the grid's {places.shape[axis]}")
        places = places.repeat_interleave(side // places.shape[axis], axis)
    return places.expand(shape)


def _wrap(values: Tensor, place: Tensor, visible: Tensor) -> MaskedMap:
    result = values.as_subclass(MaskedMap)
    result.place, result.visible = place, visible
    return result


def _nowhere(values: Tensor) -> Tensor:
    return torch.full_like(values, NOWHERE, dtype=torch.int64)


def _grown(x: MaskedMap, values: Tensor) -> Tensor:
    """The places of what became of per-image values: a map's, where one value an image and channel grew to a map."""
    sides = values.shape[2:]
    grid = x.visible.shape[1:]
    images_first = values.dim() == x.dim() == x.visible.dim() + 1 and len(values) == len(x.visible)
    grew = set(x.shape[2:]) == {1} != set(sides)
    if images_first and grew and not any(side % h for side, h in zip(sides, grid, strict=True)):
        return _places(x.visible, values.shape)
    return _nowhere(values)


def _first(operands: Any) -> MaskedMap:
    for operand in operands:
        for item in operand if isinstance(operand, (list, tuple)) else [operand]:
            if isinstance(item, MaskedMap):
                return item
    raise NotImplementedError("no masked map among the arguments")


_QUESTIONS = {
    "__get__",
    "__set__",
    "size",
    "dim",
    "stride",
    "is_contiguous",
    "is_floating_point",
    "__len__",
    "__hash__",
}
_MOVES = set(
    """view reshape permute transpose flatten unflatten unsqueeze squeeze movedim chunk split unbind __getitem__ narrow
    select expand expand_as pixel_shuffle pixel_unshuffle contiguous repeat_interleave tensor_split swapaxes view_as
    reshape_as repeat tile moveaxis swapdims native_channel_shuffle channel_shuffle""".split()
)
_AROUND = set(
    """conv1d conv2d conv3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d conv_transpose2d
    interpolate""".split()
)
_REDUCTIONS = set("sum mean amax amin var std norm vector_norm var_mean std_mean".split())


def _run(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    name = func.__name__
    if name in _QUESTIONS:
        if getattr(getattr(func, "__self__", None), "__name__", "") == "data":
            return _wrap(func(*args), args[0].place, args[0].visible)
        return func(*args, **kwargs)
    x = _first((*args, *kwargs.values()))
    if name in ("new_empty", "new_zeros", "new_ones", "new_full"):
        return func(*args, **kwargs)
    if name in _MOVES:
        return _move(func, x, args, kwargs)
    if name in ("cat", "concat", "concatenate", "stack"):
        given = dict(kwargs)
        tensors = given.pop("tensors") if "tensors" in given else args[0]
        rest = args[1:] if args else ()
        places = [_place_of(t, x) for t in tensors]
        return _wrap(func(tensors, *rest, **given), func(places, *rest, **given), x.visible)
    if name in _ALONG:
        return _along(func, x, args, kwargs)
    if name == "pad":
        # Padded cells keep their values; a convolution or pooling that follows makes a map of the grid again.
        out = func(torch.where(x.mask, x, 0), *args[1:], **kwargs)
        padded = _wrap(out, _nowhere(out), x.visible)
        padded.padded = bool((x.place >= 0).any())
        return padded
    if name in _AROUND or isinstance(func, (torch._ops.OpOverloadPacket, torch._ops.OpOverload)):
        # Custom operators, unknown to us, are taken to look around as well.
        zeroed = (torch.where(a.mask, a, 0) if isinstance(a, MaskedMap) else a for a in args)
        out = func(*zeroed, **kwargs)
        on_grid = x.padded or bool((x.place >= 0).any())
        if not on_grid:
            return _wrap(out, _grown(x, out), x.visible)
        # Conditional convolutions lay the images out as groups of channels, (1, B * C, H, W).
        batch = len(x.visible)
        whole = (batch, out.shape[0] * out.shape[1] // batch, *out.shape[2:])
        return _wrap(out, _places(x.visible, whole).reshape(out.shape), x.visible)
    if name.startswith("adaptive_") and name.rstrip("123d").endswith("pool"):
        dims = tuple(range(2, x.dim()))
        kind = "mean" if "avg" in name else "amax"
        return _reduce(x, kind, dims, True, {})
    if name in _REDUCTIONS or func is torch.linalg.norm:
        return _reduction("vector_norm" if "linalg" in name else name, args, kwargs)
    if func in (torch.batch_norm, torch.instance_norm):
        # Affine arguments first, where torch.nn.functional has the statistics first.
        flag = "training" if name == "batch_norm" else "use_input_stats"
        names = ("weight", "bias", "running_mean", "running_var", flag, "momentum", "eps")
        args, kwargs = (x,), dict(zip(names, args[1:], strict=False)) | kwargs
        kwargs.pop("cudnn_enabled", None)
    if name == "batch_norm":
        return _batch_norm(x, *args[1:], **kwargs)
    if name in ("group_norm", "instance_norm"):
        return _group_norm(name, x, args, kwargs)
    return _elementwise(func, x, args, kwargs)


_ALONG = {  # functions along one axis, whose results there are one value, several or none, and the axis they take
    **dict.fromkeys(("max", "min", "argmax", "argmin", "median", "prod", "logsumexp", "glu", "cumsum", "cumprod"), 1),
    **dict.fromkeys(("sort", "argsort", "index_select", "all", "any"), 1),
    **dict.fromkeys(("topk", "flip", "roll"), 2),
}


def _place_of(operand: Tensor, x: MaskedMap) -> Tensor:
    """Of a plain tensor as well: a whole map's positions are those of the map that it meets."""
    if isinstance(operand, MaskedMap):
        return operand.place
    if operand.dim() == x.dim() and operand.shape[0] == x.shape[0] and operand.shape[2:] == x.shape[2:]:
        return x.place[:, :1].expand(operand.shape)
    return _nowhere(operand)


def _along(func: Callable[..., Any], x: MaskedMap, args: tuple, kwargs: dict) -> Any:
    """Along channels each position keeps its place; over all elements, or over positions, visible ones alone."""
    name = func.__name__
    at = _ALONG[name]
    if name in ("roll", "flip"):
        dim = kwargs.get("dims", args[-1] if len(args) > 1 else None)
    else:
        dim = kwargs.get("dim", kwargs.get("axis", args[at] if len(args) > at else None))
    if isinstance(dim, Tensor):
        return _elementwise(func, x, args, kwargs)
    dims = [dim] if isinstance(dim, int) else list(dim) if dim is not None else list(range(x.dim()))
    if name in ("sort", "topk", "glu") and dim is None:
        dims = [-1]
    if any((x.place != x.place.narrow(d, 0, 1)).any() for d in dims):
        kind = {"max": "amax", "min": "amin", "any": "amax"}.get(name)
        if kind is None:
            raise NotImplementedError(f"{name} over positions")
        reduced = x if name != "any" else _wrap((x != 0).double(), x.place, x.visible)
        if dim is not None:
            raise NotImplementedError(f"{name} over positions, with where it was")
        found = _reduce(reduced, kind, tuple(range(x.dim())), False, {})
        return found if name != "any" else found != 0
    out = func(*args, **kwargs)
    parts = out if isinstance(out, tuple) else (out,)
    found = []
    for part in parts:
        place = x.place
        for d in dims:
            kept = part.dim() == x.dim()
            place = place.narrow(d, 0, 1) if kept else place.select(d, 0)
        found.append(_wrap(part, place.expand(part.shape), x.visible))
    return type(out)(found) if isinstance(out, tuple) else found[0]


def _move(func: Callable[..., Any], x: MaskedMap, args: tuple, kwargs: dict) -> Any:
    """Move the axes of the places as those of the values."""
    others = tuple(a.place if isinstance(a, MaskedMap) else a for a in args[1:])
    values = func(*args, **kwargs)
    if func.__name__ in ("view", "view_as"):  # the places' memory may not allow a view where the values' does
        return _wrap(values, x.place.reshape(values.shape), x.visible)
    places = func(x.place, *others, **kwargs)
    if isinstance(values, Tensor):
        return _wrap(values, _grown(x, values) if (places < 0).all() else places, x.visible)
    return tuple(_wrap(value, place, x.visible) for value, place in zip(values, places, strict=True))


def _elementwise(func: Callable[..., Any], x: MaskedMap, args: tuple, kwargs: dict) -> Any:
    """Anything else is taken to act position by position: the engine's refusals are tested elsewhere."""
    if func.__name__ in ("matmul", "bmm", "__matmul__") and isinstance(args[1], MaskedMap):
        return _matmul(*args)
    if func.__name__ == "softmax":
        return _softmax(x, args, kwargs)
    out = func(*args, **kwargs)
    if not isinstance(out, Tensor) or (args and out is args[0]):
        return out
    if func.__name__ in ("linear", "matmul"):  # channels, the last axis, changed; positions did not
        return _wrap(out, x.place[..., :1].expand(out.shape), x.visible)
    place = x.place
    for other in (*args, *kwargs.values()):
        if isinstance(other, MaskedMap):
            place = torch.where(place < 0, other.place, place)
    return _wrap(out, place.expand(out.shape), x.visible)


def _matmul(a: MaskedMap, b: MaskedMap) -> MaskedMap:
    """Sums over positions count visible ones; otherwise each position keeps its place."""
    out = torch.where(a.mask, a, 0) @ torch.where(b.mask, b, 0)
    if (a.place != a.place[..., :1]).any():
        return _wrap(out, _nowhere(out), a.visible)
    rows, columns = a.place[..., :1], b.place[..., :1, :]
    return _wrap(out, torch.where(rows < 0, columns, rows).expand(out.shape), a.visible)


def _softmax(x: MaskedMap, args: tuple, kwargs: dict) -> MaskedMap:
    """Over channels as torch has it; over positions, over the visible ones."""
    dim = int(kwargs.get("dim", args[-1]))
    if not (x.place != x.place.narrow(dim, 0, 1)).any():
        return _wrap(torch.softmax(x, dim), x.place, x.visible)
    weights = torch.where(x.mask, (x - x.amax(dim, keepdim=True)).exp(), 0)
    total = weights.sum(dim, keepdim=True)
    return _wrap(weights / torch.where(total > 0, total, 1), x.place, x.visible)


def _reduction(name: str, args: tuple, kwargs: dict) -> Any:
    kwargs = dict(kwargs)
    args = args if args else (kwargs.pop("input"),)
    x = args[0]
    kwargs = {{"axis": "dim", "keepdims": "keepdim"}.get(key, key): value for key, value in kwargs.items()}
    names = {
        "norm": ("p", "dim", "keepdim"),
        "vector_norm": ("ord", "dim", "keepdim"),
        **dict.fromkeys(("var", "std", "var_mean", "std_mean"), ("dim", "unbiased", "keepdim")),
    }.get(name, ("dim", "keepdim"))
    given = dict(zip(names, args[1:], strict=False)) | kwargs
    wanted = given.get("dim")
    dims = list(range(x.dim())) if wanted is None else [wanted] if isinstance(wanted, int) else wanted
    return _reduce(x, name, tuple(d % x.dim() for d in dims), given.get("keepdim", False), given)


def _reduce(x: MaskedMap, name: str, dims: tuple[int, ...], keepdim: bool, given: dict) -> Any:
    """Reduce visible elements; 0 where there is none. The result is visible everywhere positions are gone."""
    seen = x.mask
    values = torch.where(seen, x, 0)
    count = seen.sum(dims, keepdim=True)
    total = values.sum(dims, keepdim=True)
    mean = total / count.clamp(min=1)
    correction = given.get("correction")
    if correction is None:
        correction = 1 if given.get("unbiased", True) else 0
    squares = torch.where(seen, (x - mean).square(), 0).sum(dims, keepdim=True)
    variance = squares / (count - correction).clamp(min=1)
    if name in ("norm", "vector_norm"):
        order = given.get("p", given.get("ord", 2))
        order = 2 if order in ("fro", None) else order
        powers = values.abs().pow(order).sum(dims, keepdim=True)
        results = [torch.where(powers > 0, torch.where(powers > 0, powers, 1).pow(1 / order), 0)]
    elif name in ("amax", "amin"):
        empty = -math.inf if name == "amax" else math.inf
        extreme = getattr(torch.where(seen, x, empty), name)(dims, keepdim=True)
        results = [torch.where(count > 0, extreme, 0)]
    else:
        results = {
            "sum": [total],
            "mean": [mean],
            "var": [variance],
            "std": [variance.sqrt()],
            "var_mean": [variance, mean],
            "std_mean": [variance.sqrt(), mean],
        }[name]
    first, last = x.place.amin(dims, keepdim=True), x.place.amax(dims, keepdim=True)
    place = torch.where(first == last, first, NOWHERE)  # channels reduced, or positions
    if not keepdim:
        results, place = [r.squeeze(dims) for r in results], place.squeeze(dims)
    wrapped = [_wrap(r, place, x.visible) for r in results]
    return tuple(wrapped) if len(wrapped) > 1 else wrapped[0]


def _batch_norm(
    x: MaskedMap,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> MaskedMap:
    """Statistics over the visible positions of the batch; running ones with the unbiased variance."""
    dims = [d for d in range(x.dim()) if d != 1]
    view = [1, -1] + [1] * (x.dim() - 2)
    if training:
        count = x.mask.sum(dims)
        mean = torch.where(x.mask, x, 0).sum(dims) / count.clamp(min=1)
        squares = torch.where(x.mask, (x - mean.view(view)).square(), 0).sum(dims)
        variance = squares / count.clamp(min=1)
        if running_mean is not None and running_var is not None and count.max() > 0:
            running_mean.copy_((1 - momentum) * running_mean + momentum * mean.detach())
            unbiased = squares.detach() / (count - 1).clamp(min=1)
            running_var.copy_((1 - momentum) * running_var + momentum * unbiased)
    else:
        assert running_mean is not None and running_var is not None
        mean, variance = running_mean, running_var
    out = (x - mean.view(view)) / (variance.view(view) + eps).sqrt()
    out = out if weight is None else out * weight.view(view)
    return _wrap(out if bias is None else out + bias.view(view), x.place, x.visible)


def _group_norm(name: str, x: MaskedMap, args: tuple, kwargs: dict) -> MaskedMap:
    if name == "group_norm":
        names = ("num_groups", "weight", "bias", "eps")
        given = dict(zip(names, args[1:], strict=False)) | kwargs
        groups = given["num_groups"]
    else:
        names = ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
        given = dict(zip(names, args[1:], strict=False)) | kwargs
        groups = x.shape[1]
    values, seen = x.reshape(x.shape[0], groups, -1), x.mask.reshape(x.shape[0], groups, -1)
    count = seen.sum(2, keepdim=True).clamp(min=1)
    mean = torch.where(seen, values, 0).sum(2, keepdim=True) / count
    variance = torch.where(seen, (values - mean).square(), 0).sum(2, keepdim=True) / count
    if name == "instance_norm" and given.get("running_mean") is not None:
        if not given.get("use_input_stats", True):
            statistics, affine = (given["running_mean"], given["running_var"]), (given.get("weight"), given.get("bias"))
            return _batch_norm(x, *statistics, *affine, False, eps=given.get("eps", 1e-5))
        shown = (seen.sum(2) > 0).all(1)[:, None]  # images that show anything
        unbiased = variance * count / (count - 1).clamp(min=1)
        for key, rows in (("running_mean", mean), ("running_var", unbiased)):
            over = torch.where(shown, rows.squeeze(2), 0).sum(0) / shown.sum().clamp(min=1)
            statistic, step = given[key], given.get("momentum", 0.1) * bool(shown.any())
            statistic.copy_((1 - step) * statistic + step * over.detach())
    out = ((values - mean) / (variance + given.get("eps", 1e-5)).sqrt()).reshape(x.shape)
    view = [1, -1] + [1] * (x.dim() - 2)
    if given.get("weight") is not None:
        out = out * given["weight"].view(view)
    return _wrap(out if given.get("bias") is None else out + given["bias"].view(view), x.place, x.visible)


__all__ = ["MaskedMap", "masked_map", "visible_part"]
