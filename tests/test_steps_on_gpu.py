"""On a GPU: the same numbers as on a CPU, the same bits each time, and a host that never waits within a step."""

import pytest
import torch

from benchmarks.gpu import SMALL, host_waits, step_beside_float64

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("name", SMALL)
def test_as_on_a_cpu_and_the_same_bits_each_time(name):
    assert step_beside_float64(name, torch.device("cuda"), "float64")["worst_error"] < 1e-7
    assert step_beside_float64(name, torch.device("cuda"), "float32")["same_bits"]


@pytest.mark.parametrize("name", SMALL)
def test_the_host_does_not_wait_within_a_step(name):
    assert host_waits(name, torch.device("cuda")) == ""
