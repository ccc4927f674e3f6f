"""What of a machine decides how much it can do in a night. No torch here but within `machine_of`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .folder import available_cores

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Machine:
    """The facts, which are the same today and tomorrow: nothing is timed.

    Attributes:
        kind: of the device that trains.
        cores: of the CPU, as many as this process may use.
        processors: of the GPU, as CUDA counts them (`multi_processor_count`): 40 of a T4, 132 of an H100.
        memory: of the GPU, in bytes.
        is_bf16: whether it computes in bf16, which takes half of the time of fp32 or less.
    """

    kind: Literal["cpu", "cuda", "mps"]
    cores: int
    processors: int = 0
    memory: int = 0
    is_bf16: bool = False


def machine_of(device: "torch.device", precision: str) -> Machine:
    """The machine that a device is part of, which computes in fp32 or bf16."""
    import torch

    is_bf16 = precision == "bf16"
    if device.type != "cuda":
        return Machine("mps" if device.type == "mps" else "cpu", available_cores(), is_bf16=is_bf16)
    facts = torch.cuda.get_device_properties(device)
    return Machine("cuda", available_cores(), facts.multi_processor_count, facts.total_memory, is_bf16)
