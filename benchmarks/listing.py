"""How long a million files take until a run could begin, and how much memory.

python -m benchmarks.listing --make FOLDER --count 1000000    # hard links to a few JPEGs, a thousand a folder
python -m benchmarks.listing FOLDER                           # the first time
python -m benchmarks.listing FOLDER                           # the second time
python -m benchmarks.listing --remove FOLDER
"""

import argparse
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

_DIFFERENT, _A_FOLDER = 200, 1000


def make(root: Path, count: int) -> None:
    """A tree of hard links to a few pictures of noise."""
    seed = root / "seed"
    seed.mkdir(parents=True)
    for number in range(_DIFFERENT):
        noise = np.random.default_rng(number).integers(0, 256, (40, 54, 3), np.uint8)
        Image.fromarray(noise).resize((216, 160)).save(seed / f"{number}.jpg", quality=85)
    for number in range(count):
        folder = root / f"{number // _A_FOLDER:04}"
        if number % _A_FOLDER == 0:
            folder.mkdir()
        os.link(seed / f"{number % _DIFFERENT}.jpg", folder / f"photograph_{number:07}.jpg")


def measure(root: Path) -> None:
    from convspark.runs.images import find_images

    before, cpu = time.perf_counter(), time.process_time()
    images = find_images(str(root))
    seconds, used = time.perf_counter() - before, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    count = len(images.train) + len(images.held_out)
    print(f"{count} images ready in {seconds:.1f} s ({used:.1f} s of CPU time), at most {peak:.2f} GiB resident")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--make", action="store_true", help="make the folder")
    parser.add_argument("--remove", action="store_true", help="remove it")
    parser.add_argument("--count", type=int, default=1_000_000)
    options = parser.parse_args()
    if options.make:
        make(options.folder, options.count)
    elif options.remove:
        if not (options.folder / "seed").is_dir():
            sys.exit(f"{options.folder} was not made by this command")
        shutil.rmtree(options.folder)
    else:
        measure(options.folder)


if __name__ == "__main__":
    main()
