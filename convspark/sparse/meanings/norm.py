"""Normalisations: each over the visible positions of what the dense one normalises over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .. import axes as lay
from ..faster import BatchNorm, offered, registered
from ..registry import Refusal, meaning
from ..synchronised import synchronised_batch_norm
from ..tensor import GridTensor, PerImage, VisiblePatches, as_patches, as_same_kind, repeat_per_patch
from .operands import dense_batch, named, require_plain, rows_first, unpadded
from .reduce import apart, image_moments


@meaning(functional.batch_norm)
def batch_norm(
    func,
    input: GridTensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
):
    """Over all visible positions of the batch; of none, training leaves the running statistics alone."""
    x = unpadded(input)
    if isinstance(x, PerImage):
        rows_first(x)
    elif not _has_channels_second(x.axes):
        raise Refusal("its channels are not axis 1")
    positions, group = x.numel() // max(x.shape[1], 1), x.grid.process_group
    if training and group is not None:
        out = synchronised_batch_norm(x.values, running_mean, running_var, weight, bias, momentum, eps, group)
    elif training and positions < 2 and isinstance(x, VisiblePatches):
        out = _batch_norm_of_few(x, positions, running_mean, running_var, weight, bias, momentum, eps)
    else:
        statistics = (running_mean, running_var, weight, bias)
        kernel = _kernel(x) if training else None
        if kernel is None:
            out = functional.batch_norm(x, *statistics, training, momentum, eps)
        else:
            out = kernel(x.values, *statistics, momentum, eps)
    return as_same_kind(out, x, x.axes)


def _kernel(x: GridTensor) -> BatchNorm | None:
    """A faster way to normalise patches."""
    if not isinstance(x, VisiblePatches):
        return None
    return offered(registered().batch_norms, x.values)


@meaning(torch.batch_norm)
def torch_batch_norm(func, input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=True):
    """The same, in another order."""
    return batch_norm(func, input, running_mean, running_var, weight, bias, training, momentum, eps)


def _has_channels_second(layout: lay.Layout) -> bool:
    """Whether axis 1 is channels, and no other is."""
    return lay.is_plain(layout[1]) and not any([axis and lay.is_plain(axis) for axis in (layout[0], *layout[2:])])


def _batch_norm_of_few(
    x: Tensor,
    positions: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """In training, of one position, whose variance is 0, or of none."""
    if positions == 0:
        return _affine(x, weight, bias)  # empty, but with gradients of 0 for scale and shift
    mean = x.mean([dim for dim in range(x.dim()) if dim != 1])
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
        running_var.mul_(1 - momentum)
    view = [1, -1] + [1] * (x.dim() - 2)
    return _affine((x - mean.view(view)) / eps**0.5, weight, bias)


@meaning(functional.layer_norm, torch.layer_norm)
def layer_norm(func, input, normalized_shape, weight=None, bias=None, eps=1e-5, *args, **kwargs):
    """Each position's channels alone."""
    x, shape = unpadded(input), _plain_last(input, normalized_shape)
    kernel = None
    if isinstance(x, VisiblePatches) and shape == x.shape[-1:] and all(_is_of_shape(t, shape) for t in (weight, bias)):
        kernel = offered(registered().layer_norms, x.values, weight, bias)
    if kernel is not None:
        return as_same_kind(kernel(x.values, weight, bias, eps), x, x.axes)
    return as_same_kind(func(x, normalized_shape, weight, bias, eps, *args, **kwargs), x, x.axes)


@meaning(*named("rms_norm", functional, torch))
def rms_norm(func, input, normalized_shape, *args, **kwargs):
    """The same, without a mean."""
    _plain_last(input, normalized_shape)
    x = unpadded(input)
    return as_same_kind(func(x, normalized_shape, *args, **kwargs), x, x.axes)


def _plain_last(x: GridTensor, normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """The sizes of the last axes that are normalised over, which have to be channels."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    require_plain(x, range(x.dim() - len(shape), x.dim()), "normalising over this axis")
    return shape


def _is_of_shape(parameter: Tensor | None, shape: tuple[int, ...]) -> bool:
    return parameter is None or (not isinstance(parameter, GridTensor) and parameter.shape == shape)


@meaning(functional.group_norm, torch.group_norm)
def group_norm(func, input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    """Each image's groups of channels, over its visible positions."""
    x = unpadded(input)
    if isinstance(x, PerImage):
        return dense_batch(functional.group_norm, x, num_groups, weight, bias, eps)
    _require_channels_second(x)
    split = x.reshape(x.shape[0], num_groups, x.shape[1] // num_groups, *x.shape[2:])
    layout = (x.axes[0], lay.plain_axis(num_groups), lay.plain_axis(x.shape[1] // num_groups), *x.axes[2:])
    out = _normalised(as_patches(split, x.grid, layout), tuple(range(2, split.dim())), eps)
    out = _affine(out.reshape(x.shape), weight, bias)
    return as_same_kind(out.to(_dtype_of_dense(x, num_groups, weight, bias)), x, x.axes)


def _dtype_of_dense(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None) -> torch.dtype:
    """Of a group norm's result: autocast has opinions of its own, which differ from device to device."""
    if not torch.is_autocast_enabled(x.device.type):
        return x.dtype
    return functional.group_norm(x.new_zeros(1, x.shape[1], 2), groups, weight, bias).dtype


@meaning(functional.instance_norm)
def instance_norm(
    func,
    input: GridTensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
):
    """Each image's channels, over its visible positions."""
    x = unpadded(input)
    if isinstance(x, PerImage):
        arguments = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
        return dense_batch(functional.instance_norm, x, *arguments)
    assert isinstance(x, VisiblePatches)
    _require_channels_second(x)
    if not use_input_stats:
        # Which is the same, but PyTorch 2.14 has a wrong gradient of its instance norm for one row with channels last.
        out = functional.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        return as_same_kind(out, x, x.axes)
    dims = tuple(range(2, x.dim()))
    if running_mean is not None and running_var is not None:
        if len(x.axes[0]) > 1:
            raise Refusal("it takes running statistics of groups of channels beside the patches")
        _update_instance_statistics(x, dims, running_mean, running_var, momentum)
    return as_same_kind(_affine(_normalised(x, dims, eps), weight, bias).to(x.dtype), x, x.axes)


@meaning(torch.instance_norm)
def torch_instance_norm(
    func, input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled=True
):
    """The same, in another order."""
    return instance_norm(func, input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _require_channels_second(x: VisiblePatches) -> None:
    if (
        not lay.is_plain(x.axes[1])
        or x.axes[0][:1] != ((lay.PATCH, x.grid.num_visible),)
        or not lay.is_plain(x.axes[0][1:])
    ):
        raise Refusal("its axes are not (patches, channels, *positions)")
    if any(lay.is_plain(axis) for axis in x.axes[2:]):
        raise Refusal("its axes are not (patches, channels, *positions)")


def _normalised(x: VisiblePatches, dims: tuple[int, ...], eps: float) -> Tensor:
    """In float32 at least; the patches are, or begin, the first axis."""
    alone, dims = apart(x, dims)
    mean, variance = image_moments(alone, dims)
    scale = (variance + eps).rsqrt()
    return ((alone - repeat_per_patch(mean, x.grid)) * repeat_per_patch(scale, x.grid)).reshape(x.shape)


def _affine(values: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    view = [1, -1] + [1] * (values.dim() - 2)
    if weight is not None:
        values = values * weight.view(view)
    return values if bias is None else values + bias.view(view)


def _update_instance_statistics(
    x: VisiblePatches, dims: tuple[int, ...], running_mean: Tensor, running_var: Tensor, momentum: float
) -> None:
    """The mean over those images that show anything."""
    with torch.no_grad():
        mean, variance = image_moments(x, dims, correction=1)
        showing = x.grid.counts() > 0
        share = showing.to(mean.dtype) / showing.sum().clamp(min=1)
        step = momentum * showing.any().to(running_mean.dtype)
        for statistic, rows in ((running_mean, mean), (running_var, variance)):
            statistic.lerp_((rows.flatten(1) * share[:, None]).sum(0).to(statistic.dtype), step)


@meaning(functional.local_response_norm)
def local_response_norm(func, input, size, alpha=1e-4, beta=0.75, k=1.0):
    """Along channels, never along positions."""
    x = unpadded(input)
    if isinstance(x, VisiblePatches):
        _require_channels_second(x)
    return as_same_kind(func(x, size, alpha, beta, k), x, x.axes)
