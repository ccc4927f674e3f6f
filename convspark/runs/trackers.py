"""Where a run's figures and pictures go besides its folder: TensorBoard, Weights & Biases."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from .folder import RunFolder


def make_tracker(name: str, folder: RunFolder) -> Logger | bool:
    """Lightning's logger for a tracker; False for none."""
    if name == "tensorboard":
        return TensorBoardLogger(folder.path, name="", version="tensorboard")
    if name == "wandb":
        return WandbLogger(name=folder.path.name, save_dir=folder.path, project="convspark")
    return False


def track_figures(trackers: Iterable[Logger], row: Mapping[str, object], step: int) -> None:
    """Send the numbers of a row; empty cells are left out."""
    figures = {name: float(str(value)) for name, value in row.items() if value not in ("", None)}
    for tracker in trackers:
        tracker.log_metrics(figures, step)


def track_picture(trackers: Iterable[Logger], name: str, path: Path, step: int) -> None:
    """Send a picture file, to those that take pictures."""
    for tracker in trackers:
        if isinstance(tracker, WandbLogger):
            tracker.log_image(name, [str(path)], step=step)
        elif isinstance(tracker, TensorBoardLogger):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))  # (H, W, 3)
            tracker.experiment.add_image(name, pixels, step, dataformats="HWC")
