"""Peak memory against what can be worked out by hand; every way is called equally often."""

import time
from collections import Counter

import pytest
import torch

from convspark.measure.timing import _timed, compare, peak_memory

CPU = torch.device("cpu")
MEGABYTE = 4 * 250_000


def test_peak_memory_counts_what_is_held_at_once():
    def way():
        first, second = torch.empty(250_000), torch.empty(500_000)
        del first
        third = torch.empty(250_000)
        return second, third

    assert peak_memory(way, CPU) == 3 * MEGABYTE
    held = torch.empty(250_000)
    assert peak_memory(lambda: held.add(1).sum(), CPU) - MEGABYTE < 1000


def test_peak_memory_of_a_backward_pass():
    x = torch.randn(250_000, requires_grad=True)
    peak = peak_memory(lambda: torch.autograd.grad(x.exp().exp().sum(), x), CPU)
    assert 3 * MEGABYTE <= peak <= 4 * MEGABYTE + 1000  # two saved results, a gradient or two


def test_ways_are_called_in_turn(capfd):
    calls = []
    ways = {"one": lambda: calls.append("one") or time.sleep(0.02), "two": lambda: calls.append("two")}
    measured = compare(ways, 3, CPU)
    assert Counter(calls) == {"one": 5, "two": 5} and calls[-6:] == ["one", "two"] * 3
    assert measured["one"].seconds >= 0.02 > measured["two"].seconds and measured["two"].peak_bytes == 0
    assert not capfd.readouterr().err


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_gpu_is_waited_for(kind, monkeypatch):
    waits = []
    monkeypatch.setattr(getattr(torch, kind), "synchronize", lambda *_: waits.append(kind))
    _timed(lambda: waits.append("call"), torch.device(kind))
    assert waits == [kind, "call", kind]
