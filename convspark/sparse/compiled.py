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
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("depthwise.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they are switched off or could not be compiled."""
    if os.environ.get("CONVSPARK_COMPILE", "1") == "0":
        return None
    compiler = _compiler()
    if compiler is None:
        _log.warning("no C++ compiler was found: depthwise convolutions run on PyTorch's operations, more slowly")
        return None
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        _log.warning("depthwise convolutions run on PyTorch's operations, more slowly: %s failed (%s)", compiler, said)
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


def _compiler() -> str | None:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def _built(compiler: str) -> Path:
    """The library's file, compiled unless it is there."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    what = (_SOURCE.read_text(), *_FLAGS, version, platform.machine(), _processor())
    name = f"depthwise-{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.so"
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
