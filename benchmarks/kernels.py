"""What each of our kernels gains of a whole encoder step: with all of them, without each, without any, in turn.

    python -m benchmarks.kernels [resnet50 convnext_tiny ...]

Forward and backward passes on the CPU, 16 images of 224 pixels, 60 % masked, a new mask each time, in fp32 and bf16;
medians, as shares of the dense network's. A line of benchmarks/results/kernels.jsonl each. The kernels are those of
convspark/kernels.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from convspark.cli.main import keep_memory

from . import records
from .encoders import encoder_step

NETWORKS = (
    "resnet50",
    "resnext50_32x4d",
    "convnext_tiny",
    "convnextv2_tiny",
    "regnety_016",
    "efficientnet_b0",
    "mobilenetv3_large_100",
)
WITHOUT = ("depthwise", "pairs", "all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    keep_memory()
    import torch

    print(f"| network | precision | dense, s | all | {' | '.join(f'without {kernel}' for kernel in WITHOUT)} |")
    print("|---|---|---|---|" + "---|" * len(WITHOUT), flush=True)
    for name in options.networks:
        for precision in ("fp32", "bf16"):
            seconds = measure(name, precision, options.repeats)
            line = {"network": name, "precision": precision, "repeats": options.repeats}
            line |= {"threads": torch.get_num_threads(), "seconds": seconds}
            records.append(records.RESULTS / "kernels.jsonl", line)
            shares = " | ".join(f"{seconds[way] / seconds['dense']:.2f}" for way in seconds if way != "dense")
            print(f"| {name} | {precision} | {seconds['dense']:.2f} | {shares} |", flush=True)


def measure(name: str, precision: str, repeats: int) -> dict[str, float]:
    """Seconds of a step: dense, with all kernels, and without each."""
    import torch

    from convspark import PatchGrid
    from convspark.measure.timing import compare

    step, images = encoder_step(name), torch.randn(16, 3, 224, 224).to(memory_format=torch.channels_last)

    def run(visible: bool, without: str | None = None) -> Callable[[], None]:
        def once() -> None:
            grid = PatchGrid.random(16, (7, 7)) if visible else None
            with switched_off(without), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                step(images, grid)

        return once

    ways = {"dense": run(False), "with all": run(True)} | {f"without {k}": run(True, k) for k in WITHOUT}
    return {way: timing.seconds for way, timing in compare(ways, repeats, images.device).items()}


@contextmanager
def switched_off(kernel: str | None) -> Iterator[None]:
    """Without a kernel, or all of them."""
    from convspark.kernels import depthwise, pairs
    from convspark.sparse.faster import registered

    faster = registered()
    offers: list[list[Any]] = [faster.convolutions, faster.sums, faster.max_pools, faster.batch_norms]
    before = [list(kind) for kind in offers]
    gone = {
        "depthwise": [depthwise.offer],
        "pairs": [pairs.offer],
        "all": [offer for kind in before for offer in kind],
    }.get(kernel or "", [])
    for kind in offers:
        kind[:] = [offer for offer in kind if offer not in gone]
    try:
        yield
    finally:
        for kind, all_of_it in zip(offers, before, strict=True):
            kind[:] = all_of_it


if __name__ == "__main__":
    main()
