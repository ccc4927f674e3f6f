"""Turning a refusal into an error that says which function, where in the network, and what to do."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import NotExactError


def refuse(func: Callable[..., Any], reason: str) -> NotExactError:
    """The error for a function that cannot run exactly on visible patches."""
    if torch.compiler.is_compiling():
        place = "compiled; call the network without torch.compile to learn in which module"
    else:
        where = module_path()
        place = f"in {where}" if where else "outside any module"
    return NotExactError(
        f"{function_name(func)} ({place}) cannot run on visible patches: {reason}. "
        "Either take the features before this point (name earlier stages), or give the function a meaning with "
        "convspark.sparse.meaning if you know how it acts on visible patches."
    )


def function_name(func: Callable[..., Any]) -> str:
    """`torch.nn.functional.unfold`, `Tensor.roll`: a name that a reader can look up."""
    if type(func).__name__ in ("OpOverloadPacket", "OpOverload"):
        return f"torch.ops.{func}"
    if isinstance(func, torch.ScriptMethod):
        return f"TorchScript's {func.name}"
    owner = getattr(func, "__objclass__", None)
    name = getattr(func, "__name__", repr(func))
    if name in ("__get__", "__set__"):
        return f"Tensor.{getattr(func, '__self__', func).__name__}{' = …' if name == '__set__' else ''}"
    if owner is not None:
        return f"Tensor.{name}"
    module = getattr(func, "__module__", None) or "torch"
    # Where users call a function, not where it is defined: torch._C._special.special_expit, torch._C._nn.gelu.
    public = re.sub(r"^torch\._C\._(special|linalg|fft)\.\1_", r"torch.\1.", f"{module}.{name}")
    return public.replace("torch._C._nn.", "torch.nn.functional.")


def module_path() -> str:
    """Path and class of the module that is running, as `layer1.0.conv2 (Conv2d)`; empty outside any module."""
    running: list[nn.Module] = []
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and (not running or running[-1] is not owner):
            running.append(owner)
        frame = frame.f_back
    if not running:
        return ""
    innermost = running[0]
    for outer in reversed(running):
        for name, module in outer.named_modules():
            if module is innermost:
                return f"{name or 'the network itself'} ({type(innermost).__name__})"
    return type(innermost).__name__
