"""What is not arithmetic in an encoder's step: index tables, and Python.

    python benchmarks/overhead.py [resnet50 efficientnet_b0 ...]

Forward and backward passes on the CPU, 16 images of 224 pixels, 60 % masked. **Tables**: the step with a new mask less
the step with one whose tables are there, in turn. **Python**: the same network on two images of a single patch, all
visible, where there is next to nothing to compute, less the dense network on them, one thread, in turn; below 0 where
our ways to compute so little are the quicker ones. Medians; a line of benchmarks/results/overhead.jsonl each.
"""

import argparse
from collections.abc import Callable

import records
from encoders import encoder_step

from convspark.cli.main import keep_memory

NETWORKS = ("resnet50", "convnext_tiny", "efficientnet_b0", "regnety_016", "mobilenetv3_large_100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--repeats", type=int, default=15)
    asked = parser.parse_args()
    keep_memory()
    print("| network | step, ms | tables, % | Python, % |\n|---|---|---|---|")
    for name in asked.networks:
        line = records.append(records.RESULTS / "overhead.jsonl", measure(name, asked.repeats))
        step, tables, python = (line[key] for key in ("step", "tables", "python"))
        print(f"| {name} | {1000 * step:.0f} | {100 * tables / step:.1f} | {100 * python / step:.1f} |", flush=True)


def measure(name: str, repeats: int) -> dict:
    """Seconds of a step, and of what of it are tables and Python."""
    import torch

    from convspark import PatchGrid
    from convspark.trial.timing import compare

    images, few = (torch.randn(n, 3, side, side) for n, side in ((16, 224), (2, 32)))
    step = encoder_step(name)

    def seconds(**ways: Callable[[], None]) -> dict[str, float]:
        return {way: found.seconds for way, found in compare(ways, repeats, images.device).items()}

    known, whole = PatchGrid.random(16, (7, 7)), PatchGrid.random(2, (1, 1), mask_ratio=0)
    large = seconds(new=lambda: step(images, PatchGrid.random(16, (7, 7))), known=lambda: step(images, known))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small = seconds(sparse=lambda: step(few, whole), dense=lambda: step(few, None))
    torch.set_num_threads(threads)
    found = {"step": large["new"], "tables": large["new"] - large["known"], "python": small["sparse"] - small["dense"]}
    return {"network": name, "threads": threads, **found}


if __name__ == "__main__":
    main()
