"""Runs whose pictures are decoded on the device, the CPU in a GPU's place."""

import numpy as np
import pytest
import torch
from PIL import Image
from pretraining.test_pretrain import weights

from convspark.errors import UsageError
from convspark.pretraining import plan
from convspark.pretraining.command import pretrain

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


@pytest.fixture
def photographs(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for index in range(12):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((80, 72), Image.Resampling.BICUBIC).save(tmp_path / f"pictures/{index:03}.jpg")
    return str(tmp_path / "pictures")


def test_a_run_is_nearly_that_whose_workers_decode_and_goes_on_exactly(
    photographs, small, tmp_path, stopping, monkeypatch
):
    monkeypatch.setattr(plan, "_check_decoder", lambda *_: None)
    small = small | {"size": 32, "patch_size": 8, "picture_epochs": 0, "held_out": 0, "watch_epochs": 0, "epochs": 3}
    usual = pretrain(photographs, out=str(tmp_path / "usual"), **small)
    whole = pretrain(photographs, out=str(tmp_path / "whole"), decode="device", **small)
    assert whole.train_loss == pytest.approx(usual.train_loss, rel=1e-3)
    with stopping(3):  # in the second epoch
        pretrain(photographs, out=str(tmp_path / "part"), decode="device", **small)
    resumed = pretrain(resume=str(tmp_path / "part"), workers=1)
    assert resumed.train_loss == whole.train_loss
    ours, theirs = weights(whole.folder), weights(resumed.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_without_a_gpu_it_is_refused(photographs, small, tmp_path):
    with pytest.raises(UsageError, match="decode is 'device', which needs an NVIDIA GPU, but the device is cpu"):
        pretrain(photographs, out=str(tmp_path / "run"), decode="device", **small)
