"""Kernels of our own for CPUs, compiled on first use; without a compiler, PyTorch's operations do their work.

The C++ beside this file needs a compiler (`c++`, `g++` or `clang++`, or the one that the variable CXX names) and a few
seconds, once: the library is kept in the user's cache folder, under a name that changes with its source, the compiler
and the processor. `CONVSPARK_COMPILE=0` switches it off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC")
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float64: "float64"}


class _Call(ctypes.Structure):
    """`Call` of kernels.cpp."""

    _fields_ = [
        ("around", ctypes.c_void_p),
        ("plan", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in "blocks patches cells positions others taps channels threads".split()),
        ("parallel", ctypes.c_void_p),
    ]


class _Pairs(ctypes.Structure):
    """`Pairs` of kernels.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("source", "target", "ends")),
        *((name, ctypes.c_int64) for name in "taps groups width others count count_of_others threads".split()),
        ("parallel", ctypes.c_void_p),
    ]


def computes(dtype: torch.dtype) -> bool:
    """Whether there are kernels, and for numbers of this kind."""
    return dtype in _NAMES and library_is_there()


def runs_on(device: torch.device) -> bool:
    """Whether kernels can be called here and now: on real tensors, outside of a graph that is being traced."""
    return (
        device.type == "cpu"
        and not torch.compiler.is_compiling()
        and _get_current_dispatch_mode() is None
        and library_is_there()
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they are switched off or could not be compiled."""
    if os.environ.get("CONVSPARK_COMPILE", "1") == "0":
        return None
    compiler = _compiler()
    if compiler is None:
        _log.warning("no C++ compiler was found: what looks at neighbours runs on PyTorch's operations, more slowly")
        return None
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        _log.warning(
            "what looks at neighbours runs on PyTorch's operations, more slowly: %s failed (%s)", compiler, said
        )
        return None


@torch.compiler.assume_constant_result
def library_is_there() -> bool:
    """Whether there are compiled kernels."""
    return library() is not None


@functools.cache
def parallel() -> int:
    """Address of GOMP_parallel in the OpenMP library that PyTorch runs on, so that both share its threads; 0: none."""
    try:
        own = ctypes.CDLL(torch._C.__file__)  # looks among all that it depends on
        return ctypes.cast(own.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


def run(
    entry: str,
    around: Tensor,
    plan: Tensor,
    *arguments: Tensor | int | None,
    patches: int,
    others: int,
    channels: int = 0,
    dtype: torch.dtype | None = None,
) -> None:
    """Call an entry of the library.

    Args:
        entry: its name, without the dtype where it has one.
        around: int32 (blocks, ...) the patches around each block.
        plan: int32 (positions, taps, 2), of what is computed.
        arguments: the entry's own; tensors are contiguous.
        patches, others, channels: of what is read, and its positions of each patch.
        dtype: of an entry that exists for several.
    """
    positions, taps, _ = plan.shape
    around = around.contiguous()
    numbers = around.shape[0], patches, math.prod(around.shape[1:]), positions, others, taps, channels
    call = _Call(around.data_ptr(), plan.data_ptr(), *numbers, torch.get_num_threads(), parallel())
    _enter(entry if dtype is None else f"{entry}_{_NAMES[dtype]}", call, arguments)


def run_pairs(
    entry: str,
    source: Tensor,
    target: Tensor,
    ends: Tensor,
    *arguments: Tensor | int,
    groups: int,
    numbered: tuple[Tensor, Tensor],
) -> None:
    """Call an entry of the library that works on pairs of rows.

    Args:
        entry: its name, without the dtype.
        source, target: int32, at least (M,), numbers of rows, of each pair.
        ends: int64 (taps + 1,) where each tap's pairs begin, and the last one's end, M.
        arguments: the entry's own; tensors are contiguous.
        groups: of channels.
        numbered: the rows, (count, channels), that source and target number.
    """
    counts, widths = zip(*(rows.shape for rows in numbered), strict=True)
    numbers = len(ends) - 1, groups, *(width // groups for width in widths), *counts, torch.get_num_threads()
    pairs = _Pairs(source.data_ptr(), target.data_ptr(), ends.data_ptr(), *numbers, parallel())
    _enter(f"{entry}_{_NAMES[numbered[0].dtype]}", pairs, arguments)


def _enter(entry: str, call: ctypes.Structure, arguments: tuple[Tensor | int | None, ...]) -> None:
    found = library()
    assert found is not None, "`computes` was not asked"
    getattr(found, entry)(ctypes.byref(call), *map(_as_c, arguments))


def _as_c(argument: Tensor | int | None) -> ctypes.c_int64 | ctypes.c_void_p:
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    assert argument is None or argument.is_contiguous(), "kernels know of no strides"
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())


def declare(
    name: str,
    arguments: str,
    returns: str,
    run: Callable[..., Any],
    like: Callable[..., Any],
    operations: Callable[..., int] | None = None,
) -> None:
    """Make an operator of it, `torch.ops.convspark.NAME`, so that a compiled graph has it as it is.

    Args:
        arguments, returns: their declarations.
        run: what it does.
        like: what it returns, with any values.
        operations: counts its multiplications and additions from the shapes of its tensors.
    """
    operator = f"convspark::{name}"
    torch.library.define(operator, f"({arguments}) -> {returns}")
    torch.library.impl(operator, "CPU", run)
    torch.library.register_fake(operator, like)
    if operations is not None:
        register_flop_formula(getattr(torch.ops.convspark, name))(operations)


def _compiler() -> str | None:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def _built(compiler: str) -> Path:
    """The library's file, compiled unless it is there."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    what = (_SOURCE.read_text(), *_FLAGS, version, platform.machine(), _processor())
    name = f"kernels-{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.so"
    for folder in (_cache(), Path(tempfile.gettempdir()) / f"convspark-{os.getuid()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_uid != os.getuid():
                raise PermissionError(f"{folder} belongs to somebody else, who could put another library there")
            if not (folder / name).is_file():
                _compile(compiler, folder / name)
            return folder / name
        except OSError as error:
            failed = error
    raise failed


def _compile(compiler: str, target: Path) -> None:
    """Compile under another name first, so that processes that do it at once do not see each other's halves."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        command = [compiler, *_FLAGS, "-o", str(built), str(_SOURCE)]
        subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        built.replace(target)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convspark"


def _processor() -> str:
    """What a processor can do: a home folder may be shared by different ones."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
