"""`convspark check`."""

import json
import math
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from .arguments import Command


def check(
    network: str | None = None,
    *,
    size: int | str | None = None,
    channels: int | None = None,
    patch_size: int | list[int] | None = None,
    stages: list[str] | None = None,
) -> None:
    """Prove that a network runs exactly on visible patches; show what its modules do there, and what a step costs.

    Args:
        network: timm name (resnet50), torchvision:NAME, or package.module:factory for your own; the factory is called
            without arguments.
        size: side of the images to measure with, or HxW; by default seven patches a side.
        channels: channels of the images.
        patch_size: side of a patch in pixels, or one for each dimension, as 32,16; by default the network's total
            stride.
        stages: names of the network's modules to decode, finest first; by default they are found automatically.
    """


def command() -> Command:
    command = Command("check", check, types={"network": str | None}, positional=("network",))
    command.add_switch("--no-measure", help="do not measure time and memory")
    command.add_switch("--json", help="print the report as JSON")
    return command


def run(arguments: Sequence[str]) -> int:
    """0 if the network is exact, 1 if not."""
    parser = command()
    options = parser.parse(arguments)
    values = parser.values(options)
    network = values.pop("network")
    if network is None:
        raise UsageError("network is missing: give a timm name, torchvision:NAME or package.module:factory")
    values["size"] = sides_from(values["size"])

    from ..measure.check import check as examine

    report = examine(network, measure=not options.no_measure, **values)
    print(json.dumps(_finite(report.as_dict()), indent=2) if options.json else report)
    return 0 if report.exact else 1


def sides_from(size: int | str | None) -> int | tuple[int, ...] | None:
    """`224`, `192x256`, `64x128x128`."""
    if size is None or isinstance(size, int):
        return size
    sides = size.split("x")
    if not all(side.isdecimal() for side in sides):
        raise UsageError(f"--size {size!r}: expected a side in pixels or one a dimension, as 224 or 192x256")
    return int(size) if len(sides) == 1 else tuple(map(int, sides))


def _finite(value: Any) -> Any:
    """Nested values without NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
