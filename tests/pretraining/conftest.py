"""Small runs: synthetic pictures, a network of a few hundred thousand parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convspark import pretrain
from convspark.runs.callbacks import Checkpoints


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


@contextmanager
def stopped_after(step: int) -> Iterator[None]:
    """What is pre-trained within is stopped after so many steps."""
    before = Checkpoints.on_train_batch_end

    def stop(self, trainer, *rest):
        if trainer.global_step == step:
            self.stop()
        before(self, trainer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.fixture(scope="session")
def stopping():
    return stopped_after


@pytest.fixture(scope="session")
def stop_in_second_epoch(small):
    """Pre-trains on a folder, and is stopped after four steps; into the folder `out`."""

    def run(images: Path, out: Path) -> None:
        settings = small | {"size": 32, "picture_epochs": 0, "held_out": 0.2, "mask_ratio": 0.5, "patch_size": 8}
        with stopped_after(4):
            pretrain(str(images), out=str(out), **settings)

    return run
