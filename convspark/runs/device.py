"""Which device to train on, and in which precision."""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch

from ..errors import UsageError
from ..names import many
from .folder import available_cores
from .processes import Processes, gpu_of

logger = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16"]


def choose_device(device: str = "auto") -> torch.device:
    """The device asked for, or for "auto" the first there is of CUDA, MPS and CPU.

    Raises:
        UsageError: no such device here, or one that this PyTorch was not built for; the message says why.
    """
    here = Processes.here()
    if device == "auto":
        reason = _why_no_cuda()
        if reason is None:
            return _supported(torch.device("cuda", gpu_of(here) if here.are_several else 0))
        if reason.is_a_fault:
            logger.warning("no GPU is used: %s", reason.text)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device is {device!r}: expected auto, cpu, cuda, cuda:1 or mps") from None
    if chosen.type == "cuda":
        reason = _why_no_cuda()
        if reason is not None:
            raise UsageError(f"device is {device!r}, but {reason.text}; --device cpu runs without")
        count, index = torch.cuda.device_count(), chosen.index or (gpu_of(here) if here.are_several else 0)
        if index >= count:
            there = ", ".join(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count))
            raise UsageError(f"device is {device!r}, but there {'is' if count == 1 else 'are'} {there}{_visible()}")
        return _supported(torch.device("cuda", index))
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device is 'mps', but there is none here; choose --device auto")
    if chosen.type not in ("cpu", "mps"):
        raise UsageError(f"device is {device!r}: expected auto, cpu, cuda, cuda:1 or mps")
    return chosen


class _NoCuda(NamedTuple):
    text: str
    is_a_fault: bool
    """There seems to be a GPU, which ought to be usable."""


def _why_no_cuda() -> _NoCuda | None:
    """Why no CUDA device can be used here; None if one can."""
    if torch.version.cuda is None and torch.version.hip is None:
        return _NoCuda(f"this PyTorch ({torch.__version__}) was built without CUDA: install one that has it", False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available() and torch.cuda.device_count():
            return None
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return _NoCuda(f"no GPU is left to use{_visible()}", False)
    reasons = [" ".join(str(one.message).split()) for one in said]
    old = next((reason for reason in reasons if "driver" in reason and "too old" in reason), None)
    if old is not None:
        return _NoCuda(
            f"the GPU's driver is too old for this PyTorch, built with CUDA {torch.version.cuda}: {old}", True
        )
    if reasons and "no NVIDIA driver" not in reasons[0].replace("Found no", "no"):
        return _NoCuda(f"CUDA cannot be used: {reasons[0]}", True)
    return _NoCuda("no GPU with an NVIDIA driver was found (the command nvidia-smi should list one)", False)


def _visible() -> str:
    """What the environment leaves of the GPUs, for a message."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if gpus is None else f" (CUDA_VISIBLE_DEVICES is {gpus!r}: only those are there, numbered from 0)"


def _supported(device: torch.device) -> torch.device:
    """The device, refused unless this PyTorch has code for it."""
    major, minor = torch.cuda.get_device_capability(device)
    built_for = torch.cuda.get_arch_list()
    matches = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name) for name in built_for]
    for kind, its_major, its_minor in (match.groups() for match in matches if match):
        version = int(its_major), int(its_minor)
        # Machine code runs on later devices of the same generation, intermediate code on all later ones.
        if (version <= (major, minor)) and (kind == "compute" or version[0] == major):
            return device
    if not any(matches):  # another vendor's names
        return device
    raise UsageError(
        f"device is {str(device)!r}, a {torch.cuda.get_device_name(device)} of compute capability {major}.{minor}, "
        f"for which this PyTorch ({torch.__version__}) has no code (it has {', '.join(built_for)}): install one that "
        "has, or choose --device cpu"
    )


def describe_device(device: torch.device) -> str:
    """The device in words, as for a log: `NVIDIA H200 (cuda:0)`, `CPU, 2 cores`."""
    if device.type == "cuda":
        others = torch.cuda.device_count() - 1
        return f"{torch.cuda.get_device_name(device)} ({device}{f', {others} more unused' if others else ''})"
    return f"CPU, {many(available_cores(), 'core')}" if device.type == "cpu" else "Apple GPU (mps)"


def describe_precision(precision: str, device: torch.device) -> str:
    """How numbers are computed, in words, as for a log."""
    layout = "channels last" if device.type != "mps" else "channels first"
    if device.type != "cuda":
        return f"{precision}, {layout}"
    return f"{precision}, {layout}, {'what stays fp32' if precision == 'bf16' else 'its products'} by TF32"


@contextmanager
def quick_products(device: torch.device) -> Iterator[None]:
    """Within this context, fp32 products on a GPU are by TF32: a 10-bit mantissa, at several times the rate."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """ "auto" is bf16 where the device has instructions for it: CUDA of compute capability 8 on, CPUs with AVX512-BF16
    or AMX. The same machine always answers the same.

    Raises:
        UsageError: bf16 on a device that cannot.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"precision is {precision!r}: expected auto, fp32 or bf16")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError("precision is 'bf16', which this GPU cannot compute in; choose --precision fp32")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    if device.type == "cpu" and _has_bf16_products():
        return "bf16"
    return "fp32"


def default_workers(device: torch.device, processes: int = 1) -> int:
    """Loaders of images for each of so many processes on this machine: most cores beside a GPU, a quarter of them where
    the CPU trains as well."""
    cores = available_cores() // processes
    return max(1, min(16, cores - 1)) if device.type != "cpu" else max(1, min(8, cores // 4))


def _has_bf16_products() -> bool:
    """Whether this CPU multiplies bf16 by instructions of its own, and PyTorch's library for it knows them.

    Measured speed would answer differently on another day, and a run's numbers must not hang on what else is running.
    """
    # Private names: where they are gone, fp32 is the safe answer.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    has = any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in probes)
    return has and torch.backends.mkldnn.is_available()
