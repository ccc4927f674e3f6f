"""Compiles the C++ beside this file on first use, and calls it; without a compiler the engine does its work.

That needs a compiler (`c++`, `g++` or `clang++`, or the one that the variable CXX names) and a few seconds, once: the
library is kept in the user's cache folder. `CONVSPARK_COMPILE=0` switches it off.

By the compiler itself rather than by `torch.utils.cpp_extension`: PyTorch's headers alone take 1.8 times as long to
compile as all kernels here (measured side by side, 2026-11-26), need Python's own headers and ninja, and tie a library
to one version of PyTorch. What is taken of PyTorch are its threads (`parallel`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import math
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

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


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they are switched off or could not be compiled."""
    if os.environ.get("CONVSPARK_COMPILE", "1") == "0":
        return None
    slower = "what looks at neighbours runs on PyTorch's operations, more slowly"
    compiler = _compiler()
    if compiler is None:
        _log.warning("no C++ compiler was found: %s", slower)
        return None
    try:
        name = _file_name(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("%s: %s does not run (%s)", slower, shlex.join(compiler), _message_of(error))
        return None
    failures = []
    for folder in _folders():
        try:
            return _loaded(folder / name, compiler)
        except (OSError, subprocess.SubprocessError) as error:  # a full, read-only or noexec folder; another may do
            failures.append(f"in {folder}: {_message_of(error)}")
    _log.warning("%s: they could not be compiled by %s %s", slower, shlex.join(compiler), "; ".join(failures))
    return None


def _message_of(error: Exception) -> str:
    return str(getattr(error, "stderr", None) or error).strip()


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
    kernels = library()
    assert kernels is not None, "`library_is_there` was not asked"
    getattr(kernels, entry)(ctypes.byref(call), *map(_as_c, arguments))


def _as_c(argument: Tensor | int | None) -> ctypes.c_int64 | ctypes.c_void_p:
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    assert argument is None or argument.is_contiguous(), "kernels know of no strides"
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())


def _compiler() -> list[str] | None:
    """The command of the first compiler that is there; CXX may hold arguments as well (`ccache g++`)."""
    named = shlex.split(os.environ.get("CXX", ""))
    commands = [named] if named else [["c++"], ["g++"], ["clang++"]]
    return next(([path, *rest] for name, *rest in commands if (path := shutil.which(name))), None)


def _file_name(compiler: list[str]) -> str:
    """Of the library; changes with its source, the compiler and the processor."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    what = (_SOURCE.read_text(encoding="utf-8"), *_FLAGS, version, platform.machine(), _processor())
    return f"kernels-{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.so"


def _folders() -> Iterator[Path]:
    """Where the library may lie: the user's cache, or else the folder for temporary files."""
    cache = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # no HOME, and a user whom the system does not know
        yield (Path(cache) if cache else Path.home() / ".cache") / "convspark"
    with contextlib.suppress(OSError):  # nowhere
        yield Path(tempfile.gettempdir()) / f"convspark-{os.getuid()}"


def _loaded(path: Path, compiler: list[str]) -> ctypes.CDLL:
    """The library at this path, compiled unless it is there and whole."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.parent.stat().st_uid != os.getuid():
        raise PermissionError("the folder belongs to somebody else, who could put another library there")
    if not _is_whole(path):
        _compile(compiler, path)
    return ctypes.CDLL(str(path))


def _compile(compiler: list[str], target: Path) -> None:
    """Compile under another name first, so that processes that do it at once do not see each other's halves."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        command = [*compiler, *_FLAGS, "-o", str(built), str(_SOURCE)]
        subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        with built.open("ab") as file:  # the loader does not mind what stands after the library
            file.write(hashlib.sha256(built.read_bytes()).digest())
        built.replace(target)


def _is_whole(path: Path) -> bool:
    """Whether the library ends in its own digest: one that was cut off could end the process when it is loaded."""
    with contextlib.suppress(FileNotFoundError):
        content = path.read_bytes()
        return hashlib.sha256(content[:-32]).digest() == content[-32:]
    return False


def _processor() -> str:
    """What a processor can do: a home folder may be shared by different ones."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
