"""`convspark bench`."""

import json
from collections.abc import Sequence
from typing import Literal

from ..errors import UsageError
from .arguments import Command
from .check import sides_from


def bench(
    network: str | None = None,
    *,
    size: int | str = 224,
    channels: int | None = None,
    batch_size: int = 16,
    mask_ratio: float = 0.6,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: str = "auto",
    repeats: int = 5,
    patch_size: int | list[int] | None = None,
    stages: list[str] | None = None,
    decoder: Literal["paper", "lean"] = "lean",
    decoder_width: int | None = None,
) -> None:
    """Time a network dense, by mask-and-multiply and on visible patches only, on this machine.

    Args:
        network: timm name (resnet50), torchvision:NAME, or package.module:factory for your own.
        size: side of the images in pixels, or HxW.
        channels: channels of the images.
        batch_size: images of a step.
        mask_ratio: share of the patches that is masked.
        precision: auto is bf16 if the device has instructions for it, else fp32.
        device: auto, cpu, cuda, cuda:1 or mps.
        repeats: steps of each kind; the result is their median.
        patch_size: side of a patch in pixels, or one for each dimension; by default the network's total stride.
        stages: names of the network's modules to decode, finest first; by default they are found automatically.
        decoder: decoder of the whole step: lean, as in pretrain, or the paper's.
        decoder_width: channels of the decoder's first block; by default the deepest stage's, at most 768.
    """


def command() -> Command:
    command = Command("bench", bench, types={"network": str | None}, positional=("network",))
    command.add_switch("--compile", help="run the dense and the visible-only steps through torch.compile")
    command.add_switch("--json", help="print the report as JSON")
    return command


def run(arguments: Sequence[str]) -> int:
    """0: measured."""
    parser = command()
    options = parser.parse(arguments)
    values = parser.values(options)
    network = values.pop("network")
    if network is None:
        raise UsageError("network is missing: give a timm name, torchvision:NAME or package.module:factory")
    values["size"] = sides_from(values["size"])

    from ..measure.bench import bench as measure

    report = measure(network, compile=options.compile, **values)
    print(json.dumps(report.as_dict(), indent=2) if options.json else report)
    return 0
