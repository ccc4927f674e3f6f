"""Normalisations: each over the visible positions of what the dense one normalises over."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .. import axes as lay
from ..registry import Refusal, meaning
from ..synchronised import synchronised_batch_norm
from ..tensor import PerImage, VisiblePatches, as_patches, as_same_kind, repeat_per_patch
from .operands import arguments, dense_batch, named, require_plain, rows_first, unpadded
from .reduce import image_moments


@meaning(functional.batch_norm, torch.batch_norm)
def batch_norm(func, args, kwargs):
    x = unpadded(args[0])
    if isinstance(x, PerImage):
        rows_first(x)
    elif not _has_channels_second(x.axes):
        raise Refusal("its channels are not axis 1")
    positions = x.numel() // max(x.shape[1], 1)
    rare = positions < 2 or x.grid.process_group is not None
    out = _batch_norm_of_some(func, args, kwargs, positions) if rare else func(*args, **kwargs)
    return as_same_kind(out, x, x.axes)


def _batch_norm_of_some(func, args: tuple, kwargs: dict, positions: int) -> Tensor:
    """Batch norm of a single position, of none, or of one process's part of a batch."""
    x, given = args[0], _statistics_and_affine(func, args, kwargs, "training")
    group = x.grid.process_group
    if given.get("training", False) and group is not None:
        mean, variance, weight, bias = map(given.get, ("running_mean", "running_var", "weight", "bias"))
        momentum, eps = given.get("momentum", 0.1), given.get("eps", 1e-5)
        return synchronised_batch_norm(x.values, mean, variance, weight, bias, momentum, eps, group)
    if given.get("training", False) and positions < 2 and isinstance(x, VisiblePatches):
        return _batch_norm_of_few(x, positions, given)
    return func(*args, **kwargs)


def _statistics_and_affine(func, args: tuple, kwargs: dict, flag: str) -> dict:
    """Arguments of a batch or instance norm by name: `torch` and `torch.nn.functional` order them differently."""
    statistics, affine = ("running_mean", "running_var"), ("weight", "bias")
    of_torch = func in (torch.batch_norm, torch.instance_norm)
    order = (*affine, *statistics) if of_torch else (*statistics, *affine)
    return arguments(args, kwargs, *order, flag, "momentum", "eps")


def _has_channels_second(layout: lay.Layout) -> bool:
    """Whether axis 1 is channels, and no other is."""
    return lay.is_plain(layout[1]) and not any([axis and lay.is_plain(axis) for axis in (layout[0], *layout[2:])])


def _batch_norm_of_few(x: Tensor, positions: int, given: dict) -> Tensor:
    """Batch norm in training of one position, whose variance is 0, or of none, which leaves the statistics alone."""
    if positions == 0:
        return _affine(x, given)  # empty, but with gradients of 0 for scale and shift
    mean = x.mean([dim for dim in range(x.dim()) if dim != 1])
    if given.get("running_mean") is not None:
        momentum = given.get("momentum", 0.1)
        given["running_mean"].lerp_(mean.detach().to(given["running_mean"].dtype), momentum)
        given["running_var"].mul_(1 - momentum)
    view = [1, -1] + [1] * (x.dim() - 2)
    return _affine((x - mean.view(view)) / given.get("eps", 1e-5) ** 0.5, given)


@meaning(*named("layer_norm rms_norm", functional, torch))
def layer_norm(func, args, kwargs):
    x = unpadded(args[0])
    shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else None)
    count = 1 if isinstance(shape, int) else len(shape)
    require_plain(x, range(x.dim() - count, x.dim()), "normalising over this axis")
    return as_same_kind(func(*args, **kwargs), x, x.axes)


@meaning(functional.group_norm, torch.group_norm)
def group_norm(func, args, kwargs):
    x = unpadded(args[0])
    if isinstance(x, PerImage):
        return dense_batch(func, x, args, kwargs)
    given = arguments(args, kwargs, "num_groups", "weight", "bias", "eps")
    _require_channels_second(x)
    groups = given["num_groups"]
    split = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    layout = (x.axes[0], lay.plain_axis(groups), lay.plain_axis(x.shape[1] // groups), *x.axes[2:])
    out = _normalised(as_patches(split, x.grid, layout), tuple(range(2, split.dim())), given.get("eps", 1e-5))
    return as_same_kind(_affine(out.reshape(x.shape), given), x, x.axes)


@meaning(functional.instance_norm, torch.instance_norm)
def instance_norm(func, args, kwargs):
    x = unpadded(args[0])
    if isinstance(x, PerImage):
        return dense_batch(func, x, args, kwargs)
    given = _statistics_and_affine(func, args, kwargs, "use_input_stats")
    _require_channels_second(x)
    if not given.get("use_input_stats", True):
        return as_same_kind(func(*args, **kwargs), x, x.axes)
    dims = tuple(range(2, x.dim()))
    if given.get("running_mean") is not None:
        _update_instance_statistics(x, dims, given)
    return as_same_kind(_affine(_normalised(x, dims, given.get("eps", 1e-5)), given), x, x.axes)


def _require_channels_second(x: VisiblePatches) -> None:
    if not lay.is_plain(x.axes[1]) or [r for r, _ in x.axes[0]] != [lay.PATCH]:
        raise Refusal("its axes are not (patches, channels, *positions)")
    if any(lay.is_plain(axis) for axis in x.axes[2:]):
        raise Refusal("its axes are not (patches, channels, *positions)")


def _normalised(x: VisiblePatches, dims: tuple[int, ...], eps: float) -> Tensor:
    mean, variance = image_moments(x, dims)
    scale = (variance + eps).rsqrt()
    return (x - repeat_per_patch(mean, x.grid)) * repeat_per_patch(scale, x.grid)


def _affine(values: Tensor, given: dict) -> Tensor:
    view = [1, -1] + [1] * (values.dim() - 2)
    if given.get("weight") is not None:
        values = values * given["weight"].view(view)
    return values if given.get("bias") is None else values + given["bias"].view(view)


def _update_instance_statistics(x: VisiblePatches, dims: tuple[int, ...], given: dict) -> None:
    """Running statistics: the mean over those images that show anything."""
    with torch.no_grad():
        mean, variance = image_moments(x, dims, correction=1)
        seen = x.grid.counts() > 0
        share = seen.to(mean.dtype) / seen.sum().clamp(min=1)
        momentum = given.get("momentum", 0.1) * bool(seen.any())
        for name, rows in (("running_mean", mean), ("running_var", variance)):
            statistic = given[name]
            statistic.lerp_((rows.flatten(1) * share[:, None]).sum(0).to(statistic.dtype), momentum)


@meaning(functional.local_response_norm)
def local_response_norm(func, args, kwargs):
    x = unpadded(args[0])
    if isinstance(x, VisiblePatches):
        _require_channels_second(x)
    return as_same_kind(func(*args, **kwargs), x, x.axes)  # it looks along channels, never along positions
