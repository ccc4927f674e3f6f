"""Under `torch.compile`: what Dynamo, which traces the network, does not show to tensors like ours by itself."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .meanings.operands import tensors_in
from .registry import MEANINGS
from .tensor import GridTensor


def all_shown() -> AbstractContextManager[object]:
    """Within it, every function that has a meaning is asked for it; without `torch.compile` that is so anyway."""
    return _Shown() if torch.compiler.is_compiling() and _table_completed() else nullcontext()


class _Shown(TorchFunctionMode):
    """Dynamo looks for tensors like ours among arguments and in lists, not in tuples (`torch.cat((x, y), 1)`)."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._is_torch_function_enabled():
            operands = tensors_in((*args, *kwargs.values()))
            if any([isinstance(operand, GridTensor) for operand in operands]):
                return GridTensor.__torch_function__(func, types, args, kwargs)
        return func(*args, **kwargs)


_OF_FUNCTIONS = ("torch", "torch.nn.functional", "torch._C._nn")  # methods have ways of their own


@torch.compiler.assume_constant_result
def _table_completed() -> bool:
    """Dynamo's table of the functions that it shows lacks some that check for themselves, `F.hardswish` above all."""
    try:
        from torch._dynamo.variables.torch import get_overridable_functions
    except ImportError:  # a part of PyTorch that is not public; without it such a network is refused
        return True
    functions = [f for f in MEANINGS if getattr(f, "__module__", "") in _OF_FUNCTIONS]
    get_overridable_functions().update(functions)
    return True
