"""The choice of device and precision."""

import pytest
import torch

from convspark.errors import UsageError
from convspark.training import device as devices


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "tpu", "meta"])
def test_refuses_devices_that_are_not_there(name):
    with pytest.raises(UsageError, match=f"device is '{name}'"):
        devices.choose_device(name)


def test_cpu_is_always_there():
    assert devices.choose_device("cpu") == torch.device("cpu")
    assert devices.default_workers(torch.device("cpu")) >= 1


@pytest.mark.parametrize(
    ("has_instructions", "speedup", "expected"),
    [(True, 2.0, "bf16"), (True, 1.0, "fp32"), (False, 2.0, "fp32")],
)
def test_bf16_on_a_cpu_only_where_it_was_measured_quicker(monkeypatch, has_instructions, speedup, expected):
    monkeypatch.setattr(devices, "_has_bf16_instructions", lambda: has_instructions)
    monkeypatch.setattr(devices, "_cpu_speedup_in_bf16", lambda: speedup)
    assert devices.choose_precision("auto", torch.device("cpu")) == expected
    assert devices.choose_precision("fp32", torch.device("cpu")) == "fp32"


def test_measuring_leaves_threads_as_they_were():
    before = torch.get_num_threads()
    assert devices._cpu_speedup_in_bf16() > 0
    assert torch.get_num_threads() == before


def test_refuses_another_precision():
    with pytest.raises(UsageError, match="precision is 'fp16'"):
        devices.choose_precision("fp16", torch.device("cpu"))  # type: ignore[arg-type]
