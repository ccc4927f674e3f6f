"""Operators, `torch.ops.convspark.NAME`: what a compiled graph keeps whole, and a device may have a kernel for.

Each has a plain version, which runs on any device and says what the operator computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..sparse.convolve import cast_dtype

PLAIN: dict[str, Callable[..., Any]] = {}
"""The plain version of each operator."""

_KERNELS: dict[tuple[str, str], tuple[Collection[torch.dtype], Callable[[], bool]]] = {}


def declare(
    name: str,
    arguments: str,
    returns: str,
    plain: Callable[..., Any],
    like: Callable[..., Any],
    operations: Callable[..., int] | None = None,
) -> None:
    """Make an operator.

    Args:
        arguments, returns: their declarations.
        plain: what it computes, in PyTorch's operations.
        like: what it returns, with any values.
        operations: counts its multiplications and additions from the shapes of its tensors.
    """
    operator = f"convspark::{name}"
    PLAIN[name] = plain
    torch.library.define(operator, f"({arguments}) -> {returns}")
    torch.library.impl(operator, "CompositeExplicitAutograd", plain)
    torch.library.register_fake(operator, like)
    if operations is not None:
        register_flop_formula(getattr(torch.ops.convspark, name))(operations)


def run_on(
    device: str, name: str, kernel: Callable[..., Any], dtypes: Collection[torch.dtype], is_there: Callable[[], bool]
) -> None:
    """Have an operator run by a kernel on one kind of device (`cpu`, `cuda`), for numbers of some dtypes.

    Args:
        is_there: whether the kernel can run on this machine; asked before it is offered.
    """
    torch.library.impl(f"convspark::{name}", device.upper(), kernel)
    _KERNELS[name, device] = dtypes, is_there


def computes(values: Tensor, weight: Tensor, name: str) -> bool:
    """Whether an operator has a kernel for a convolution of these numbers, here and now.

    Numbers of two kinds are left to PyTorch, which says what is wrong.
    """
    dtype = cast_dtype(values)
    return cast_dtype(weight) == dtype and has_kernel(values, name, dtype)


def has_kernel(values: Tensor, name: str, dtype: torch.dtype | None = None) -> bool:
    """Whether an operator has a kernel for numbers of this dtype (by default the values' own) where they are."""
    dtypes, is_there = _KERNELS.get((name, values.device.type), ((), bool))
    return (dtype or values.dtype) in dtypes and is_there()


def is_chosen(name: str) -> bool:
    """Whether kernels that nobody has seen to gain are switched on, by their name in CONVSPARK_KERNELS."""
    return name in os.environ.get("CONVSPARK_KERNELS", "").split(",")


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype in which this tensor's values are summed."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
