"""Functions that ask about a tensor, hand it on unchanged, or change its type or place in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch.autograd.graph import get_gradient_edge

from ...errors import NotExactError
from ..registry import Refusal, meaning
from ..tensor import GridTensor, VisiblePatches, as_same_kind, as_view, may_be_in_another_order
from .operands import named, unpadded

# What a network may read off visible patches. The shape is that of the packed tensor, the number of elements that of
# the visible ones, so that a sum over it is a mean; nothing else here depends on how many positions are masked.
_ATTRIBUTES = """
    shape dtype device layout requires_grad is_leaf grad_fn grad is_cuda is_cpu is_mps is_meta is_sparse
    is_quantized is_nested _version is_mkldnn is_xla is_xpu is_sparse_csr _base output_nr retains_grad
"""
_QUESTIONS = """
    ndimension stride is_contiguous is_floating_point is_complex element_size get_device
    numel nelement is_same_size is_inference is_signed __hash__ storage_offset _is_view
"""


@meaning(Tensor.size, Tensor.dim)
def ask_shape(func, x, *args, **kwargs):
    """Refused to `torch.vmap`, which no other call shows: it would take a row, which is a patch, for an image."""
    if not torch.compiler.is_compiling():
        caller = sys._getframe(3)  # past the binding of arguments and the dispatcher
        if caller.f_globals.get("__name__") == "torch._functorch.vmap":
            raise Refusal("torch.vmap runs a function on each row, and a row is a patch; call the function itself")
    return func(x, *args, **kwargs)


@meaning(Tensor.untyped_storage)
def memory(func, x):
    """Read by Dynamo, of what comes into the code that it compiles."""
    # Before 2.14, Dynamo read it before it said that it was compiling.
    if torch.compiler.is_compiling() or TracingContext.try_get() is not None:
        raise _FromOutside(
            "A module that torch.compile compiled was given visible patches. Compile the whole step, `gather` included "
            "(`SparK.forward` is one), or leave its parts uncompiled."
        )
    raise Refusal("what it returns would no longer know which patches it holds; see `values`")


class _FromOutside(NotExactError, AssertionError):
    """An error that Dynamo hands on as it is."""


@meaning(
    *(getattr(Tensor, name).__get__ for name in _ATTRIBUTES.split()),
    *named(_QUESTIONS, Tensor),
    torch.numel,
    torch.is_floating_point,
    torch.is_complex,
    torch.is_same_size,
    *(vars(torch._C.TensorBase)[name].__set__ for name in ("requires_grad", "grad", "_backward_hooks")),
    Tensor.retain_grad,
    torch.get_device,
)
def ask(func, *args, **kwargs):
    return func(*args, **kwargs)


@meaning(Tensor.__len__)
def length(func, input: GridTensor) -> int:
    """Without calling it, which old Dynamos cannot."""
    return input.shape[0]


@meaning(
    *named("contiguous float half bfloat16 double bool byte int long to type_as cpu cuda type", Tensor),
    *named("clone detach detach_ requires_grad_", torch, Tensor),
    vars(torch._C.TensorBase)["data"].__get__,
    *named("alias", torch.ops.aten),
)
def hand_on(func, input, *args, **kwargs):
    x = unpadded(input)
    out = func(x, *args, **kwargs)
    if not isinstance(x, GridTensor):  # plain.to(visible): only type and device of the other are used
        return out
    if out is x:
        return as_view(x, x, _may_copy(func, x, args, kwargs))
    if not isinstance(out, Tensor):
        return out
    if out.device != x.device:
        raise Refusal("it moves the patches to another device than their grid's; move the images before `gather`")
    out = as_same_kind(out, x, x.axes)
    return as_view(out, x, _may_copy(func, x, args, kwargs)) if func is Tensor.contiguous else out


def _may_copy(func: Callable[..., Any], x: GridTensor, args: tuple, kwargs: dict) -> bool:
    """Whether a dense network may get a copy where visible patches are in the right order already."""
    order = kwargs.get("memory_format", args[0] if args and func is Tensor.contiguous else torch.preserve_format)
    if order is torch.preserve_format:
        return func is Tensor.contiguous and may_be_in_another_order(x)
    return order is not torch.contiguous_format or may_be_in_another_order(x)


@meaning(Tensor.backward, torch.autograd.backward, torch.autograd.grad)
def differentiate(func, *args, **kwargs):
    """On plain tensors, and with dispatch on: a checkpointed part of the network runs again on the way back."""
    bound = signature(func).bind(*args, **kwargs)
    inputs = bound.arguments.get("inputs", ())
    with torch.enable_grad():
        for name, value in bound.arguments.items():
            bound.arguments[name] = _mapped(get_gradient_edge if name == "inputs" else _values, value)
    with torch._C._EnableTorchFunction():
        gradients = func(*bound.args, **bound.kwargs)
    if gradients is None or bound.arguments.get("is_grads_batched"):
        return gradients
    pairs = zip(gradients, inputs if isinstance(inputs, (list, tuple)) else [inputs], strict=True)
    return tuple(as_same_kind(g, x, x.axes) if isinstance(x, GridTensor) and g is not None else g for g, x in pairs)


def _mapped(change: Callable[[GridTensor], Any], value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_mapped(change, inner) for inner in value]
    return change(value) if isinstance(value, GridTensor) else value


def _values(x: GridTensor) -> Tensor:
    return x.values


@meaning(Tensor.register_hook)
def register_hook(func, x, hook):
    """The hook gets the gradient as patches."""

    def on_patches(gradient: Tensor) -> Tensor | None:
        with torch._C._EnableTorchFunction():
            changed = hook(as_same_kind(gradient.view_as(gradient), x, x.axes))
        return changed.values if isinstance(changed, GridTensor) else changed

    return func(x, on_patches)


@meaning(Tensor.__repr__)
def describe(func, x, *args, **kwargs):
    kind = "padded VisiblePatches" if isinstance(x, VisiblePatches) and x.pending is not None else type(x).__name__
    return f"{kind}(shape={tuple(x.shape)}, dtype={x.dtype}, device={x.device}, grid={x.grid})"


@meaning(Tensor.__format__)
def format_(func, x, *args):
    return describe(func, x)
