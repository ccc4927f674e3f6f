"""Who reads what in an epoch of many processes, simulated: `python -m benchmarks.order [--images N] [--batch-size N]`.

For each number of processes, every one's own order of an epoch is made as a run makes it. Together they must read every
picture once (beside those that fill up the last batch). The table shows how evenly the pictures are shared, how many
tar files a process reads from in its next thousand pictures, and how long a process takes to find its place in the
middle of an epoch, which is what resuming costs before the first picture is read.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np

from convspark.data import EpochSampler

_NEXT = 1000


def simulate(images: int, per_shard: int, batch_size: int, processes: int, shuffle: str) -> dict[str, float]:
    """One epoch, from all processes."""
    blocks = np.arange(images) // per_shard if shuffle == "windows" else None
    reads = np.zeros(images, dtype=np.int32)
    counts, shards, seconds = [], [], []
    for rank in range(processes):
        options = {"seed": 1, "epoch": 3, "rank": rank, "world_size": processes, "blocks": blocks}
        keys = np.fromiter((index for _, index in EpochSampler(images, batch_size, **options)), dtype=np.int64)
        pictures = keys % images
        np.add.at(reads, pictures, 1)
        counts.append(len(np.unique(pictures)))
        shards.append(len(np.unique(pictures[:_NEXT] // per_shard)))
        if rank < 3:
            middle = EpochSampler(images, batch_size, start_batch=(images // batch_size) // 2, **options)
            started = time.perf_counter()
            next(iter(middle))
            seconds.append(time.perf_counter() - started)
    extra = -images % batch_size
    assert reads.min() == 1 and reads.sum() == images + extra and (reads > 1).sum() == extra, "left out, or twice"
    return {
        "fewest": min(counts),
        "most": max(counts),
        "shards": float(np.median(shards)),
        "seconds": float(np.median(seconds)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_281_167, help="as many as ImageNet-1k has")
    parser.add_argument("--per-shard", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--processes", type=int, nargs="+", default=[8, 64, 256, 1024])
    options = parser.parse_args(arguments)
    print(f"{options.images} pictures, {options.per_shard} in a tar file, batches of {options.batch_size}")
    print(f"| order | processes | pictures each | tar files in the next {_NEXT} | seconds to its place |")
    print("|---|---|---|---|---|")
    for shuffle in ("full", "windows"):
        for processes in options.processes:
            epoch = simulate(options.images, options.per_shard, options.batch_size, processes, shuffle)
            shares = f"{epoch['fewest']:,} to {epoch['most']:,}"
            row = f"| {shuffle} | {processes} | {shares} | {epoch['shards']:.0f} | {epoch['seconds']:.2f} |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
