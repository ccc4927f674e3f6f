"""Which device to train on, and in which precision."""

import time
import warnings
from typing import Literal

import torch
from torch import nn

from ..errors import UsageError
from .run_folder import available_cores

Precision = Literal["auto", "fp32", "bf16"]


def choose_device(device: str = "auto") -> torch.device:
    """The device asked for, or for "auto" the first there is of CUDA, MPS and CPU.

    Raises:
        UsageError: no such device here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device is {device!r}: expected auto, cpu, cuda, cuda:1 or mps") from None
    if chosen.type == "cuda":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a driver that does not fit: said below
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        chosen = torch.device("cuda", chosen.index or 0)
        if (chosen.index or 0) >= count:
            raise UsageError(f"device is {device!r}, but {count} CUDA devices can be used here; choose --device auto")
    elif chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device is 'mps', but there is none here; choose --device auto")
    elif chosen.type not in ("cpu", "mps"):
        raise UsageError(f"device is {device!r}: expected auto, cpu, cuda, cuda:1 or mps")
    return chosen


def describe_device(device: torch.device) -> str:
    """The device in words, as for a log: `NVIDIA H200`, `CPU, 2 cores`."""
    if device.type == "cuda":
        others = torch.cuda.device_count() - 1
        return f"{torch.cuda.get_device_name(device)} ({device}{f', {others} more left alone' if others else ''})"
    return f"CPU, {available_cores()} cores" if device.type == "cpu" else "Apple GPU (mps)"


def choose_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """ "auto" is bf16 where the device is fast at it: CUDA of compute capability 8 on, a CPU where it was measured.

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
    if device.type == "cpu" and _has_bf16_instructions() and _cpu_speedup_in_bf16() > 1.3:
        return "bf16"
    return "fp32"


def default_workers(device: torch.device) -> int:
    """Processes that decode images: most cores beside a GPU, a quarter of them where the CPU trains as well."""
    cores = available_cores()
    return max(1, min(16, cores - 1)) if device.type != "cpu" else max(1, min(8, cores // 4))


def _has_bf16_instructions() -> bool:
    # Private names: where they are gone, fp32 is the safe answer.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in probes)


def _cpu_speedup_in_bf16() -> float:
    """How many times quicker a typical convolution and its gradients are in bf16 than in fp32, here and now."""
    conv = nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.zeros(8, 128, 28, 28).to(memory_format=torch.channels_last)
    best = {False: float("inf"), True: float("inf")}
    threads = torch.get_num_threads()
    # In turn, the best of several, and on one core, so that what else the machine does decides nothing.
    torch.set_num_threads(1)
    try:
        for bf16 in [False, True] * 6:
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                conv(x).sum().backward()
            best[bf16] = min(best[bf16], time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return best[False] / best[True]
