"""Orders in which pictures of one block stay near each other."""

from pathlib import Path

import numpy as np
import pytest
from data.shards import pictures, write_tar
from hypothesis import given
from hypothesis import strategies as st

from convspark.data import EpochSampler, FileSource, PretrainImages, list_pictures
from convspark.data.order import in_windows
from convspark.errors import DataError
from convspark.runs.loading import TrainLoader
from convspark.runs.processes import Processes


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=30), st.integers(0, 5))
def test_every_picture_once_and_blocks_in_few_windows(sizes: list[int], seed: int) -> None:
    blocks = np.repeat(np.arange(len(sizes)), sizes)
    order = in_windows(np.random.default_rng(seed), blocks)
    assert np.array_equal(np.sort(order), np.arange(len(blocks)))
    for block in range(len(sizes)):
        seen = np.flatnonzero(blocks[order] == block)
        # All in one window, which has what begins within 2048 pictures: the last block may reach beyond.
        assert np.ptp(seen) < 2048 + max(sizes)


def test_windows_are_mixed_and_differ() -> None:
    blocks = np.arange(20_000) // 256
    orders = [in_windows(np.random.default_rng(seed), blocks) for seed in (0, 0, 1)]
    assert np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], orders[2])
    for start in range(0, 18_000, 256):
        assert 5 <= len(np.unique(blocks[orders[0][start : start + 256]])) <= 17  # of any batch
    assert np.median(np.abs(np.diff(orders[0]))) > 256


def test_an_epoch_goes_on_in_its_midst() -> None:
    blocks = np.arange(1000) // 100
    whole = list(EpochSampler(2000, 32, 7, 3, crops_per_image=2, blocks=blocks))
    rest = list(EpochSampler(2000, 32, 7, 3, start_batch=20, crops_per_image=2, blocks=blocks))
    assert whole[20 * 32 :] == rest
    images = [index // 2 for _, index in whole[:2000]]
    assert images[0::2] == images[1::2] and sorted(images[0::2]) == list(range(1000))
    assert whole != list(EpochSampler(2000, 32, 7, 3, crops_per_image=2))


def test_a_lost_tar_does_not_change_the_order(tmp_path: Path) -> None:
    content = next(iter(pictures(1).values()))
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", {f"{number}-{i}.jpg": content for i in range(300)})
    addresses = list_pictures(tmp_path)
    blocks = FileSource(addresses).blocks()
    assert blocks.max() == 5
    (tmp_path / "1.tar").unlink()
    assert np.array_equal(FileSource(addresses).blocks(), blocks)


def test_processes_with_other_blocks_are_told(tmp_path: Path) -> None:
    paths = [f"{tmp_path}/{i}.jpg" for i in range(8)]

    class Two(Processes):
        def gathered(self, value):  # type: ignore[no-untyped-def]
            return [value, (value[0], value[1] + 1)]  # the other one has other blocks

    images = PretrainImages(paths, lambda picture, counter: picture, blocks=np.arange(8) // 4)  # type: ignore[arg-type]
    loader = TrainLoader(images, 4, 1, 0, 0, False, here=Two(0, 2, 0, 2))
    with pytest.raises(DataError, match="the processes do not see the same pictures in epoch 1"):
        next(iter(loader))
