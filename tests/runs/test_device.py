"""The choice of device and precision."""

import re
import time
import warnings
from pathlib import Path

import pytest
import torch

from convspark.errors import UsageError
from convspark.runs import device as devices


class Gpus:
    """Answers of `torch.cuda` on a machine with so many GPUs."""

    def __init__(self, patched, count, capability=(9, 0), says="", archs=("sm_80", "sm_90", "sm_120")):
        def is_available():
            if says:
                warnings.warn(says, stacklevel=2)
            return count > 0

        patched.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patched.setattr(torch.version, "cuda", "13.0")
        patched.setattr(torch.cuda, "is_available", is_available)
        patched.setattr(torch.cuda, "device_count", lambda: count)
        patched.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H100")
        patched.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        patched.setattr(torch.cuda, "get_arch_list", lambda: list(archs))
        patched.setattr(torch.cuda, "is_bf16_supported", lambda: capability >= (8, 0))


OLD_DRIVER = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
    "driver by downloading and installing a new version"
)
NO_DRIVER = "CUDA initialization: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"


def test_a_gpu_is_taken_where_there_is_one(monkeypatch):
    Gpus(monkeypatch, 2)
    assert devices.choose_device() == torch.device("cuda", 0) == devices.choose_device("cuda")
    assert devices.choose_device("cuda:1") == torch.device("cuda", 1)
    assert devices.choose_precision("auto", torch.device("cuda", 0)) == "bf16"
    assert devices.describe_device(torch.device("cuda", 0)) == "NVIDIA H100 (cuda:0, 1 more unused)"
    words = devices.describe_precision("bf16", torch.device("cuda", 0))
    assert words == "bf16, channels last, what stays fp32 by TF32"


@pytest.mark.parametrize(
    ("asked", "gpus", "variable", "message"),
    [
        ("cuda:1", {"count": 1}, None, r"'cuda:1', but there is cuda:0 \(NVIDIA H100\)"),
        ("cuda:1", {"count": 1}, "5", r"CUDA_VISIBLE_DEVICES is '5': only those are there, numbered from 0"),
        ("cuda", {"count": 0}, "", r"no GPU is left to use \(CUDA_VISIBLE_DEVICES is ''"),
        (
            "cuda",
            {"count": 0, "says": NO_DRIVER},
            None,
            r"no GPU with an NVIDIA driver was found \(the command",
        ),
        (
            "cuda",
            {"count": 0, "says": OLD_DRIVER},
            None,
            r"driver is too old for this PyTorch, .* CUDA 13\.0: .* 11040",
        ),
        ("cuda", {"count": 0, "says": "CUDA error 802"}, None, r"CUDA cannot be used: CUDA error 802"),
        ("cuda", {"count": 1, "capability": (7, 0)}, None, r"compute capability 7\.0, for which this PyTorch .* sm_80"),
        ("auto", {"count": 1, "capability": (7, 0)}, None, r"compute capability 7\.0"),
    ],
)
def test_a_gpu_that_cannot_be_used_says_why(asked, gpus, variable, message, monkeypatch):
    Gpus(monkeypatch, **gpus)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    with pytest.raises(UsageError, match=message):
        devices.choose_device(asked)


def test_a_pytorch_without_cuda_says_so(monkeypatch):
    Gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UsageError, match="built without CUDA"):
        devices.choose_device("cuda")


@pytest.mark.parametrize(("says", "warned"), [(OLD_DRIVER, True), (NO_DRIVER, False), ("", False)])
def test_going_on_without_a_gpu_is_told_where_there_seems_to_be_one(says, warned, monkeypatch, caplog):
    Gpus(monkeypatch, 0, says=says)
    assert devices.choose_device().type in ("cpu", "mps")
    assert ("no GPU is used" in caplog.text) == warned


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_machine_code_runs_on_later_devices_of_its_generation(capability, monkeypatch):
    Gpus(monkeypatch, 1, capability)
    assert devices.choose_device("cuda").type == "cuda"


def test_intermediate_code_runs_on_all_later_devices(monkeypatch):
    Gpus(monkeypatch, 1, (10, 0), archs=("sm_80", "compute_90"))
    assert devices.choose_device("cuda").type == "cuda"


def test_tf32_is_on_within_a_run_on_a_gpu_alone():
    before = torch.get_float32_matmul_precision()
    with devices.quick_products(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == before
    with devices.quick_products(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "tpu", "meta"])
def test_refuses_devices_that_are_not_there(name):
    with pytest.raises(UsageError, match=f"device is '{name}'"):
        devices.choose_device(name)


def test_cpu_is_always_there():
    assert devices.choose_device("cpu") == torch.device("cpu")
    assert devices.default_workers(torch.device("cpu")) >= 1


@pytest.mark.parametrize(
    ("instructions", "library", "expected"),
    [
        ("_is_avx512_bf16_supported", True, "bf16"),
        ("_is_amx_tile_supported", True, "bf16"),
        ("_is_amx_tile_supported", False, "fp32"),
        (None, True, "fp32"),
    ],
)
def test_bf16_on_a_cpu_hangs_on_its_instructions_alone(monkeypatch, instructions, library, expected):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == instructions, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: library)
    for clock in (time.perf_counter, time.monotonic):
        monkeypatch.setattr(time, clock.__name__, lambda: pytest.fail("it was measured"))
    assert devices.choose_precision("auto", torch.device("cpu")) == expected
    assert devices.choose_precision("fp32", torch.device("cpu")) == "fp32"


def test_a_pytorch_that_does_not_tell_gets_fp32(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert devices.choose_precision("auto", torch.device("cpu")) == "fp32"


def test_this_cpu_has_what_its_kernel_says():
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if flags is None:
        pytest.skip("this system does not list its CPU's instructions")
    has = {"avx512_bf16", "amx_tile"} & set(flags[1].split())
    assert devices.choose_precision("auto", torch.device("cpu")) == ("bf16" if has else "fp32")


def test_refuses_another_precision():
    with pytest.raises(UsageError, match="precision is 'fp16'"):
        devices.choose_precision("fp16", torch.device("cpu"))  # type: ignore[arg-type]
