"""The one table from a torch function to its meaning on visible patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Meaning = Callable[[Callable[..., Any], tuple, dict], Any]

MEANINGS: dict[Callable[..., Any], Meaning] = {}


class Refusal(Exception):
    """Raised inside a meaning, tersely; the dispatcher adds the function and the module path."""


def meaning_of(function: Callable[..., Any]) -> Meaning | None:
    """The meaning of a function, or None; an operator's overloads (`torch.ops.mine.op.default`) share one."""
    if torch.compiler.is_compiling():
        function = _as_an_attribute(function)
    return MEANINGS.get(function) or MEANINGS.get(_operator(function))


def _operator(function: Callable[..., Any]) -> Callable[..., Any]:
    return getattr(function, "overloadpacket", function)


def _as_an_attribute(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, read off `Tensor` if it is a method: the one that Dynamo has for `1 - x` is in no table."""
    found = getattr(Tensor, getattr(function, "__name__", ""), None)
    return found if found is not None and found is function else function


def meaning(*functions: Callable[..., Any]) -> Callable[[Meaning], Meaning]:
    """Decorator: what `functions` mean on visible patches.

    The decorated function gets (function, args, kwargs) as the network called it and returns what the network gets
    back. It runs with the dispatch to `VisiblePatches` switched off: calling torch on its arguments treats them as
    plain tensors.
    """

    def register(function: Meaning) -> Meaning:
        for known in map(_operator, functions):
            if known in MEANINGS:
                raise ValueError(f"{known} has a meaning already")
            MEANINGS[known] = function
        return function

    return register
