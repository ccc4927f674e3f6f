"""Time and memory of several ways to do the same, measured side by side."""

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Measured(NamedTuple):
    """What one way costs."""

    seconds: float
    """Median of a call."""
    peak_bytes: int
    """Most memory held at a time beyond what was held before the call."""


def compare(ways: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, Measured]:
    """Call each way in turn, `repeats` times over, so that a slow moment of the machine hits all alike.

    Two calls of each come first: one to warm up, one to measure its memory.
    """
    peaks = {}
    for name, way in ways.items():
        way()
        peaks[name] = peak_memory(way, device)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(_timed(way, device))
    return {name: Measured(statistics.median(seconds[name]), peaks[name]) for name in ways}


def _timed(way: Callable[[], object], device: torch.device) -> float:
    _wait_for(device)
    start = time.perf_counter()
    way()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(way: Callable[[], object], device: torch.device) -> int:
    """Most bytes held at a time during a call, beyond what was held before; what it returns counts as well."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        return torch.cuda.max_memory_allocated(device) - before
    # `torch.profiler.profile` would sort all operations into a tree, which takes far longer than the call.
    with _quiet(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        way()
    recorded = profile.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted(
        (e.start_ns(), e.nbytes())  # pyright: ignore[reportAttributeAccessIssue]
        for e in recorded
        if e.name() == "[memory]"
    )
    current = peak = 0
    for _, change in changes:
        current += change
        peak = max(peak, current)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that the profiler's library writes to the process's standard error."""
    sys.stderr.flush()
    stderr_copy, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)
        os.close(nothing)
