"""Pictures on disk, and a run of two steps."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convspark.cli.main import main


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """26 random pictures, by turns in two nested folders."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(26):
        path = root / ("cats" if index % 2 else "dogs") / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 66, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="session")
def quick() -> list[str]:
    """Flags of a run of a few seconds."""
    return (
        "--model test_resnet --size 64 --decoder-width 32 --batch-size 8 --epochs 1 --workers 0 --device cpu "
        "--precision fp32"
    ).split()


@pytest.fixture(scope="session")
def finished(folder, quick, tmp_path_factory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["pretrain", str(folder), "--out", str(out), *quick]) == 0
    return out
