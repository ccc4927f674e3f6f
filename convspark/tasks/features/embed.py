"""`embed`: the features of pictures, in a file that numpy reads."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from ...arguments import checked_arguments
from ...errors import UsageError
from ...files import check_local
from ...names import many
from ...runs.folder import check_processes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedResult:
    """What was written: `numpy.load(file)` holds features (N, C) float32, paths (N,), which are the addresses of the
    pictures, and weights, as a text.
    """

    file: str
    pictures: int
    channels: int
    unreadable: int
    seconds: float

    def __str__(self) -> str:
        left_out = f", {self.unreadable} unreadable left out" if self.unreadable else ""
        return f"{many(self.pictures, 'picture')}, {many(self.channels, 'number')} each{left_out}: {self.file}"


@checked_arguments
def embed(
    weights: str | None = None,
    images: str | list[str] | None = None,
    *,
    out: str = "features.npz",
    model: str | None = None,
    partial: bool = False,
    size: int | str | None = None,
    device: str = "auto",
    devices: int | str | None = None,
    nodes: int | None = None,
    workers: int | None = None,
) -> EmbedResult:
    """Write one feature vector for each picture into a .npz file, for search, clustering or classifiers of your own.

    Args:
        weights: run folder, export folder, timm name, .safetensors, .pth or .ckpt file, or random:MODEL.
        images: the same as for pretrain (docs/data.md): folder, list, tar or parquet files, and so on; or one picture.
            Pictures that cannot be read are left out.
        out: .npz file to write; an existing one is replaced.
        model: the network's name, if the weights do not name it.
        partial: go on even if the weights leave most of the network, or all tensors of one kind, random.
        size: side of the images in pixels, or height x width; by default that of pre-training, else 224.
        device: auto, cpu, cuda, cuda:1 or mps.
        devices: number of processes on this machine, each with a device of its own; all starts one for each GPU.
        nodes: machines that share the work; see docs/scaling.md.
        workers: processes that load pictures; by default chosen by the number of cores.
    """
    started = time.monotonic()
    target = Path(out)
    check_local(target)
    if target.suffix != ".npz":
        raise UsageError(f"out is {out!r}: expected the name of a .npz file")
    if not target.parent.is_dir():
        raise UsageError(f"out is {out!r}: there is no folder {str(target.parent)!r}")
    check_processes(workers=workers)
    if images is None:
        raise UsageError("images are missing: give a folder of pictures, or a text file with one path a line")
    import numpy as np

    from ...checkpoints.origin import find_weights
    from ...data import ScanResult, check_no_input, list_pictures, scan
    from ...files import check_writable, written_whole
    from ...runs.device import choose_device, default_workers
    from ...runs.logs import run_log
    from ...runs.numbers import format_seconds
    from ...runs.processes import Processes, check_count, joined
    from .frozen import frozen_features, picture_loader

    here = Processes.here()
    check_count(here, devices, nodes)
    with run_log(logging.INFO if here.is_first else logging.ERROR), joined(device):

        def prepare() -> ScanResult:
            check_writable(target)
            origin = find_weights(weights, model, partial)
            paths = list_pictures(images, bands=not origin.pixels.is_plain)
            check_no_input("out", out, [*([images] if isinstance(images, str) else images), *paths])
            return scan(paths, pixels=origin.pixels)

        scanned = here.led(prepare)
        origin = find_weights(weights, model, partial)
        torch_device = choose_device(device)
        processes = default_workers(torch_device, here.local_count) if workers is None else workers
        backbone, sides = origin.build(), origin.sides(size)
        origin.check_size(backbone, sides)
        loader = picture_loader(scanned.good, sides, origin.mean, origin.std, processes, here, origin.pixels)
        spoke = begun = time.monotonic()

        def tick(done: int) -> None:
            nonlocal spoke
            if time.monotonic() - spoke > 10:
                spoke = time.monotonic()
                share = min(1.0, done * here.count / len(scanned.good))
                seconds_left = (spoke - begun) * (1 / share - 1)
                logger.info(
                    "%.0f %% of %d pictures, %s left", 100 * share, len(scanned.good), format_seconds(seconds_left)
                )

        features = frozen_features(backbone, loader, torch_device, tick)
        # Damage in the midst of a file shows only when it is decoded; another picture took its place in the batch.
        spoilt = {path for bad in here.gathered(loader.images.bad_files()) for path, _ in bad}  # type: ignore[attr-defined]
        if not here.is_first:
            return here.from_first(EmbedResult(out, 0, 0, 0, 0))
        places = [i for i, path in enumerate(scanned.good) if path not in spoilt]
        paths = np.array([scanned.good[i] for i in places])
        with written_whole(target) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, features=features[places], paths=paths, weights=np.array(origin.weights))
        unreadable = len(scanned.bad) + len(spoilt)
        seconds = round(time.monotonic() - started, 1)
        return here.from_first(EmbedResult(str(target), len(places), features.shape[1], unreadable, seconds))
