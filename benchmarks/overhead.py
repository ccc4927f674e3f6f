"""What is not arithmetic in an encoder's step: index tables, and Python.

    python -m benchmarks.overhead [resnet50 efficientnet_b0 ...]

Forward and backward passes on the CPU, 16 images of 224 pixels, 60 % masked. **Tables**: what drawing a mask and making
its tables takes within the step, by the clock; the difference between steps with a new mask and with a known one is
smaller than what steps differ by. **Python**: the same network on two images of a single patch, all visible, where
there is next to nothing to compute, less the dense network on them, one thread, in turn; what our kernels take longer
there than the library's is in it, and it is below 0 where they are the quicker ones. Medians; a line of
benchmarks/results/overhead.jsonl each.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from convspark.cli.main import keep_memory

from . import records
from .encoders import encoder_step

NETWORKS = ("resnet50", "convnext_tiny", "efficientnet_b0", "regnety_016", "mobilenetv3_large_100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    keep_memory()
    print("| network | step, ms | tables, % | Python, % |\n|---|---|---|---|")
    for name in options.networks:
        line = records.append(records.RESULTS / "overhead.jsonl", measure(name, options.repeats))
        step, tables, python = (line[key] for key in ("step", "tables", "python"))
        print(f"| {name} | {1000 * step:.0f} | {100 * tables / step:.1f} | {100 * python / step:.1f} |", flush=True)


def measure(name: str, repeats: int) -> dict:
    """Seconds of a step, and of what of it are tables and Python."""
    import torch

    from convspark import PatchGrid
    from convspark.measure.timing import compare

    images, few = (torch.randn(n, 3, side, side) for n, side in ((16, 224), (2, 32)))
    step = encoder_step(name)

    def seconds(**ways: Callable[[], None]) -> dict[str, float]:
        return {way: timing.seconds for way, timing in compare(ways, repeats, images.device).items()}

    tables = []

    def new_mask() -> None:
        with clock_on_tables() as spent:
            step(images, PatchGrid.random(16, (7, 7)))
        tables.append(sum(spent))

    large, whole = seconds(new=new_mask), PatchGrid.random(2, (1, 1), mask_ratio=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small = seconds(sparse=lambda: step(few, whole), dense=lambda: step(few, None))
    torch.set_num_threads(threads)
    python = small["sparse"] - small["dense"]
    return {
        "network": name,
        "threads": threads,
        "step": large["new"],
        "tables": statistics.median(tables[-repeats:]),
        "python": python,
    }


@contextmanager
def clock_on_tables() -> Iterator[list[float]]:
    """Seconds of each call that makes masks and tables, or looks them up, without calls within such calls."""
    from convspark import PatchGrid
    from convspark.sparse import rows
    from convspark.sparse.rows import Around

    spent: list[float] = []
    inside = False

    def timed(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args, **kwargs):
            nonlocal inside
            if inside:
                return function(*args, **kwargs)
            inside, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside = False
                spent.append(time.perf_counter() - start)

        return run

    places = [
        *((PatchGrid, name) for name in ("random", "cached")),
        *((Around, name) for name in ("index", "weights", "outside")),
        (rows, "columns"),
    ]
    kinds = {classmethod: lambda method: method.__func__, property: lambda attribute: attribute.fget}
    before = [vars(owner)[name] for owner, name in places]
    for (owner, name), original in zip(places, before, strict=True):
        kind = type(original)
        setattr(owner, name, kind(timed(kinds[kind](original))) if kind in kinds else timed(original))
    try:
        yield spent
    finally:
        for (owner, name), original in zip(places, before, strict=True):
            setattr(owner, name, original)


if __name__ == "__main__":
    main()
