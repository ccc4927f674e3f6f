"""Small runs: synthetic pictures, a network of a few hundred thousand parameters."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_pictures(folder: Path, count: int) -> Path:
    """Smooth random pictures, 80 x 72 pixels, PNG."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((80, 72), Image.Resampling.BICUBIC).save(folder / f"{index:03}.png")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of 26 pictures."""
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures", 26)


@pytest.fixture(scope="session")
def small() -> dict:
    """Arguments of a run of a few seconds."""
    return {
        "model": "test_resnet",
        "size": 64,
        "decoder_width": 32,
        "batch_size": 8,
        "epochs": 2,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
    }
