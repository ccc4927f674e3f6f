"""The one table from a torch function to its meaning on visible patches."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor

Meaning = Callable[..., Any]

MEANINGS: dict[Callable[..., Any], Callable[[Callable[..., Any], tuple, dict], Any]] = {}

_SPELLINGS = {
    "input": ("self", "x", "a", "x1"),
    "other": ("x2",),
    "dim": ("axis",),
    "dims": ("axis", "axes", "dim"),
    "keepdim": ("keepdims",),
}
"""Other names, NumPy's above all, that PyTorch takes arguments by."""


class Refusal(Exception):
    """Raised inside a meaning, tersely; the dispatcher adds the function and the module path."""


def meaning_of(function: Callable[..., Any]) -> Callable[[Callable[..., Any], tuple, dict], Any] | None:
    """The meaning of a function, or None; an operator's overloads (`torch.ops.mine.op.default`) share one."""
    if torch.compiler.is_compiling():
        function = _as_an_attribute(function)
    return MEANINGS.get(function) or MEANINGS.get(_operator(function))


def _operator(function: Callable[..., Any]) -> Callable[..., Any]:
    return getattr(function, "overloadpacket", function)


def _as_an_attribute(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, read off `Tensor` if it is a method: the one that Dynamo has for `1 - x` is in no table."""
    name = name_of(function)
    for method in (getattr(Tensor, name, None), getattr(Tensor, f"__{name}__", None)):  # `__pow__` is named pow
        if method is not None and method is function:
            return method
    return function


def name_of(function: Callable[..., Any]) -> str:
    """Also of a wrapped method, whose own name Dynamo does not show."""
    name = getattr(function, "__name__", "")
    return function.__wrapped__.__name__ if name == "wrapped" else name  # type: ignore[attr-defined]


def meaning(*functions: Callable[..., Any]) -> Callable[[Meaning], Meaning]:
    """Decorator: what `functions` mean on visible patches.

    The decorated function is called with the torch function and its arguments, and returns what the network gets back.
    Its parameters have the names, order and defaults that the torch function's have, so that Python binds them: by
    place, by keyword, or by NumPy's spellings (`axis`, `keepdims`). It runs with the dispatch to `VisiblePatches`
    switched off: calling torch on its arguments treats them as plain tensors.
    """

    def register(function: Meaning) -> Meaning:
        call = _binding(function)
        for known in map(_operator, functions):
            if known in MEANINGS:
                raise ValueError(f"{known} has a meaning already")
            MEANINGS[known] = call
        return function

    return register


def _binding(function: Meaning) -> Callable[[Callable[..., Any], tuple, dict], Any]:
    """The meaning as the dispatcher calls it: with the arguments as the network gave them."""
    own = set(signature(function).parameters)
    spelt = {other: name for name, others in _SPELLINGS.items() if name in own for other in others if other not in own}

    @wraps(function)
    def call(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        if kwargs and spelt.keys() & kwargs.keys():
            kwargs = {spelt.get(name, name): value for name, value in kwargs.items()}
        if torch.compiler.is_compiling():
            return function(func, *args, **kwargs)
        try:
            return function(func, *args, **kwargs)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:  # raised by this very call
                raise Refusal(f"its meaning does not know it with these arguments ({error})") from None
            raise

    return call
