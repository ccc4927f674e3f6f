"""How fast pictures become tensors, beside torchvision's `ImageFolder`; and what many paths cost before a run starts.

    python -m benchmarks.feeding PICTURES                       # a folder; about two minutes
    python -m benchmarks.feeding PICTURES --size 64 --enlarged  # the pictures as they are, and nothing else of them
    python -m benchmarks.feeding PICTURES --count 0 --paths 1000000   # two minutes; makes a million names on the disk

Both sides read the same files with Pillow, crop and mirror them at random (RandomResizedCrop of 67 to 100 % of the
area, bicubic), and make normalised float tensors, in one process on one core, taking turns. Photographs are made of the
pictures by enlarging them and adding grain, so that their files have the size of a camera's. Times are the process's
own on its core, with the files in the disk's cache. The figures go to `results/feeding.jsonl`, a line of JSON a row.
"""

import argparse
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, features
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from convspark.cli.main import keep_memory
from convspark.data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PretrainImages,
    PretrainTransform,
    list_pictures,
)
from convspark.runs.images import find_images, train_dataset
from convspark.runs.loading import TrainLoader

from . import records

SCALE = (0.67, 1.0)
GRAIN = 5.0  # standard deviation of the noise, of 255
QUALITY = 90
PATHS_A_FOLDER = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="folder of pictures, flat or nested")
    parser.add_argument("--size", type=int, default=224, help="side of the tensors, in pixels")
    parser.add_argument("--count", type=int, default=400, help="pictures that are read as they are, 0 for none")
    parser.add_argument("--enlarged", type=int, nargs="*", default=[1280, 2000, 4000], help="longer side, in pixels")
    parser.add_argument("--photographs", type=int, default=24, help="pictures that are enlarged")
    parser.add_argument("--paths", type=int, nargs="*", default=[1_000, 10_000, 100_000], help="numbers of files")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side, of which the median counts")
    parser.add_argument("--out", type=Path, default=records.RESULTS / "feeding.jsonl")
    options = parser.parse_args()
    keep_memory()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    lines = []
    for name, folder in _collections(options.pictures, options.count, options.enlarged, options.photographs):
        measured = decoding(folder, options.size, options.rounds)
        lines.append(records.append(options.out, _machine() | {"what": "decode", "pictures": name} | measured))
        print(f"{name}: done", flush=True)
    if lines:
        print("\n" + decode_table(lines), end="\n\n", flush=True)
    starts = []
    for count in options.paths:
        starts.append(records.append(options.out, _machine() | {"what": "start"} | starting(count)))
        print(f"{count} paths: done", flush=True)
    if starts:
        print("\n" + start_table(starts))


def decoding(folder: str, size: int, rounds: int) -> dict[str, Any]:
    """Images a second of both sides on a folder of class folders, and how many times as fast ours is.

    The ratio is the median of the rounds' ratios: both sides of a round see the same state of the machine.
    """
    theirs = ImageFolder(
        folder,
        v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=SCALE, interpolation=v2.InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        ),
    )
    paths = [path for path, _ in theirs.samples]
    ours = PretrainImages(paths, PretrainTransform(size=size, scale=SCALE))
    torch.manual_seed(0)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(-1, rounds):  # the first is for the disk's cache
        for name, load in (("ours", lambda i, turn=turn: ours[(turn + 1, i)]), ("theirs", lambda i: theirs[i][0])):
            started = time.process_time()
            for index in range(len(paths)):
                assert load(index).shape == (3, size, size)
            if turn >= 0:
                seconds[name].append(time.process_time() - started)
    ratios = sorted(b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True))
    return {
        "size": size,
        "count": len(paths),
        "rounds": rounds,
        **_properties(paths),
        **{f"{name}_images_per_second": round(len(paths) / statistics.median(s), 1) for name, s in seconds.items()},
        "times_as_fast": round(statistics.median(ratios), 3),
        "times_as_fast_range": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


def starting(count: int) -> dict[str, Any]:
    """Seconds from a folder of `count` tiny files to the first key of an epoch, by part; and ImageFolder's."""
    with tempfile.TemporaryDirectory() as root:
        _write_tiny(Path(root), count)
        list_pictures(root)  # for the disk's cache
        listing, paths = _timed(lambda: list_pictures(root))
        assert len(paths) == count
        finding, images = _timed(lambda: find_images(root))

        def ours() -> Any:
            dataset = train_dataset(
                images, (64, 64), IMAGENET_MEAN, IMAGENET_STD, crop_scale=SCALE, flip=True, crops_per_image=1, seed=0
            )
            return next(iter(TrainLoader(dataset, 64, 1, 0, 0, False).order))

        making, _ = _timed(ours)
        image_folder, _ = _timed(lambda: next(iter(DataLoader(ImageFolder(root), 64, shuffle=True).sampler)))
    return {
        "paths": count,
        "list_seconds": round(listing, 3),
        "list_look_split_seconds": round(finding, 3),
        "dataset_and_order_seconds": round(making, 3),
        "image_folder_seconds": round(image_folder, 3),
    }


def decode_table(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as Markdown."""
    rows = [
        "| pictures | pixels | KB a file | tensors | ours, images/s | ImageFolder, images/s | times as fast (range) |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        low, high = line["times_as_fast_range"]
        rows.append(
            f"| {line['pictures']} | {line['pixels'][0]}x{line['pixels'][1]} | {line['kilobytes']:.0f} | "
            f"{line['size']} px | {line['ours_images_per_second']:.0f} | {line['theirs_images_per_second']:.0f} | "
            f"{line['times_as_fast']:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(rows)


def start_table(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as Markdown."""
    rows = [
        "| paths | list, s | list, look at each header, split, s | dataset, loader, an epoch's order, s | "
        "ImageFolder and order (does not look), s |",
        "|---|---|---|---|---|",
    ]
    names = ("list", "list_look_split", "dataset_and_order", "image_folder")
    for line in lines:
        rows.append(f"| {line['paths']} | " + " | ".join(f"{line[f'{name}_seconds']:.2f}" for name in names) + " |")
    return "\n".join(rows)


def _collections(pictures: str, count: int, sides: Sequence[int], photographs: int) -> Iterator[tuple[str, str]]:
    """(name, folder with one class folder) of the pictures as they are, then enlarged."""
    paths = list_pictures(pictures)
    rng = np.random.default_rng(0)
    chosen = [paths[i] for i in sorted(rng.permutation(len(paths))[:count])]
    name = "/".join(Path(pictures).resolve().parts[-2:])
    if not chosen:
        return
    with tempfile.TemporaryDirectory() as root:
        for folder, path in _class_folder(root, chosen):
            os.symlink(os.path.abspath(path), folder / f"{len(os.listdir(folder)):06}{Path(path).suffix}")
        yield f"{name}, as they are", root
    for side in sides:
        with tempfile.TemporaryDirectory() as root:
            for folder, path in _class_folder(root, chosen[:: max(1, len(chosen) // photographs)][:photographs]):
                _enlarge(path, side, rng).save(folder / f"{len(os.listdir(folder)):06}.jpg", quality=QUALITY)
            yield f"{name}, enlarged", root


def _class_folder(root: str, paths: Sequence[str]) -> Iterator[tuple[Path, str]]:
    folder = Path(root) / "all"
    folder.mkdir()
    yield from ((folder, path) for path in paths)


def _enlarge(path: str, side: int, rng: np.random.Generator) -> Image.Image:
    """A picture whose longer side has `side` pixels, with grain: enlarged alone, it would be too easy to decode."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    scale = side / max(picture.size)
    large = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    grain = rng.normal(0, GRAIN, (large.height, large.width, 1))
    return Image.fromarray((np.asarray(large) + grain).clip(0, 255).astype(np.uint8))


def _properties(paths: Sequence[str]) -> dict[str, Any]:
    """Median sides and size of the files."""
    sizes = []
    for path in paths:
        with Image.open(path) as picture:
            sizes.append(picture.size)
    return {
        "pixels": [int(statistics.median(side)) for side in zip(*sizes, strict=True)],
        "kilobytes": round(statistics.median(os.path.getsize(path) for path in paths) / 1000, 1),
    }


def _write_tiny(root: Path, count: int) -> None:
    """`count` paths of pictures of 8 x 8 pixels, in class folders; those of a folder are one file of many names."""
    for start in range(0, count, PATHS_A_FOLDER):
        folder = root / f"class{start // PATHS_A_FOLDER:05}"
        folder.mkdir()
        first = folder / "picture_000000.jpg"
        Image.new("RGB", (8, 8)).save(first)
        for index in range(1, min(PATHS_A_FOLDER, count - start)):
            os.link(first, folder / f"picture_{index:06}.jpg")


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def _machine() -> dict[str, Any]:
    """What a record says of the machine and the versions, besides date, processor and torch."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        "libjpeg": features.version("libjpeg_turbo") or features.version("jpg"),
        "torchvision": torchvision.__version__,
    }


if __name__ == "__main__":
    main()
