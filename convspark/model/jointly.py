"""A forward pass of a part of a batch as one of the whole batch would have it: random numbers and batch norms.

A batch may be divided among processes, and among passes one after the other. What a network draws for an image is to
depend on the image's place in the batch alone, and what it normalises over the batch goes over all processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from ..sparse.synchronised import synchronised_batch_norm
from ..sparse.tensor import GridTensor

# By name. They fill their tensor:
_FILL = set("bernoulli_ uniform_ normal_ exponential_ random_ geometric_ cauchy_ log_normal_".split())
# They make one of the sizes that are their arguments:
_MAKE = set("rand randn randint".split())
# They make one like theirs:
_LIKE = set("rand_like randn_like randint_like bernoulli poisson".split())
# They change theirs:
_DROP = set(
    """dropout dropout_ alpha_dropout alpha_dropout_ feature_dropout feature_dropout_ feature_alpha_dropout
    feature_alpha_dropout_ dropout1d dropout2d dropout3d""".split()
)
_DRAWS = _FILL | _MAKE | _LIKE | _DROP


class Jointly(TorchFunctionMode):
    """A mode for a part of a batch: each draw is made for all of the batch, and those of the part's images are taken.

    A tensor is one of images where its first axis is a multiple of their number; what is drawn for anything else is the
    same in all parts, as long as their generators are. Draws from a generator of one's own stay as they are. Of batch
    norms, those of plain tensors take their statistics over the group; those of visible patches do where their grid
    belongs to one.

    Not seen: draws within functions that draw on the way (attention's dropout, `gumbel_softmax`), and those whose
    number depends on values (`rrelu`, `randperm`).

    Args:
        first, count, total: the part's images are those from `first` on, `count` of `total`.
        group: the processes that have the other parts; None where this one has them all, one after the other.

    Attributes:
        place: (first, count, total).
        group: as passed.
        drew: whether something was drawn for images.
    """

    def __init__(self, first: int, count: int, total: int, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.place, self.drew = (first, count, total), False
        self._first, self._count, self._total = first, count, total
        self.group = group

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "batch_norm" and self.group is not None:
            return self._batch_norm(func, args, kwargs)
        if (
            not (name in _FILL or name in _MAKE or name in _LIKE or name in _DROP)
            or kwargs.get("generator") is not None
        ):
            return func(*args, **kwargs)
        if torch._C._is_torch_function_enabled() and any(isinstance(arg, GridTensor) for arg in args):
            with self:  # what it means on visible patches, drawn here again
                return GridTensor.__torch_function__(func, types, args, kwargs)
        if name in _MAKE:
            return self._make(func, args, kwargs)
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor) or not self._is_of_images(x.shape) or (name in _DROP and not _drops(args, kwargs)):
            return func(*args, **kwargs)
        self.drew = True
        if name in _FILL:
            whole = self._around(x.detach())
            func(whole, *args[1:], **kwargs)
            return x.copy_(self._own(whole))
        out = self._own(func(self._around(x), *args[1:], **{k: v for k, v in kwargs.items() if k != "input"}))
        return x.copy_(out) if name[-1:] == "_" or kwargs.get("inplace") else out

    @contextmanager
    def backwards(self) -> Iterator[None]:
        """Within it, modules that a checkpoint runs again draw what they drew: autograd calls them outside of any mode,
        and perhaps in another thread."""
        running = threading.local()

        def enter(module: nn.Module, inputs: Any) -> None:
            running.depth = getattr(running, "depth", 0) + 1
            if running.depth == 1:
                running.mode = Jointly(self._first, self._count, self._total, self.group)
                running.mode.__enter__()

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            running.depth -= 1
            if running.depth == 0:
                running.mode.__exit__(None, None, None)

        hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _is_of_images(self, shape: Any) -> bool:
        return len(shape) > 0 and shape[0] > 0 and shape[0] % self._count == 0

    def _around(self, x: Tensor) -> Tensor:
        """The part's rows within those of the whole batch, 0 elsewhere; in the same memory format."""
        rows = x.shape[0] // self._count
        before = x.new_zeros(self._first * rows, *x.shape[1:])
        after = x.new_zeros((self._total - self._first - self._count) * rows, *x.shape[1:])
        whole = torch.cat([before, x, after])
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            return whole.contiguous(memory_format=torch.channels_last)
        return whole.contiguous()

    def _own(self, whole: Tensor) -> Tensor:
        rows = whole.shape[0] // self._total
        return whole.narrow(0, self._first * rows, self._count * rows)

    def _make(self, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """`rand(2, 3)`, `rand((2, 3))`, `rand(size=(2, 3))`; `randint(high, size)`, `randint(low, high, size)`."""
        lists = [at for at, arg in enumerate(args) if isinstance(arg, (tuple, list))]
        if "size" in kwargs:
            sizes = tuple(kwargs["size"])
        elif lists:
            sizes = tuple(args[lists[0]])
        else:
            sizes = args if func.__name__ != "randint" else ()
        if not sizes or not self._is_of_images(sizes):
            return func(*args, **kwargs)
        self.drew = True
        wide = (sizes[0] // self._count * self._total, *sizes[1:])
        if "size" in kwargs:
            kwargs = {**kwargs, "size": wide}
        else:
            args = (*args[: lists[0]], wide, *args[lists[0] + 1 :]) if lists else wide
        return self._own(func(*args, **kwargs))

    def _batch_norm(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["input"]
        if isinstance(x, GridTensor):
            return func(*args, **kwargs)
        in_order = _as_functional if func is functional.batch_norm else _as_torch
        x, mean, variance, weight, bias, training, momentum, eps = in_order(*args, **kwargs)
        if not training:
            return func(*args, **kwargs)
        assert self.group is not None
        return synchronised_batch_norm(x, mean, variance, weight, bias, momentum, eps, self.group)


def in_force() -> list[Jointly]:
    """The modes in force here."""
    return [mode for mode in _get_current_function_mode_stack() if isinstance(mode, Jointly)]


def _as_functional(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    return input, running_mean, running_var, weight, bias, training, momentum, eps


def _as_torch(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=True):
    return input, running_mean, running_var, weight, bias, training, momentum, eps


def _drops(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a dropout, called as (input, p, training), does anything."""
    p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    return bool(p) and bool(args[2] if len(args) > 2 else kwargs.get("training", True))
