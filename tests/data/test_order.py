"""Orders in which pictures of one block stay near each other."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from convspark.data import EpochSampler
from convspark.data.order import in_windows


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
