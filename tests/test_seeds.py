"""What random numbers are for stands in one table."""

import numpy as np
import pytest

from convspark.errors import UsageError
from convspark.seeds import Use, counted, counted_seed


def test_a_number_stands_for_one_use_and_for_good():
    """Another number would give other runs under the same seed. Compared with numpy's draws for the first numbers."""
    assert len({int(use) for use in Use}) == len(Use.__members__)
    words = {
        Use.CROP: 1,
        Use.ORDER: 2,
        Use.STAND_IN: 3,
        Use.HOLD_OUT: 4,
        Use.LABELS: 5,
        Use.STATISTICS: 6,
        Use.SHARDS: 7,
    }
    for use, word in words.items():
        assert counted(7, use, 2, 3).integers(1 << 60) == np.random.default_rng((7, word, 2, 3)).integers(1 << 60)
    trained = (Use.MASK, Use.HELD_OUT_MASK, Use.STEP, Use.INITIAL_WEIGHTS, Use.MIX)
    heads = (Use.CLASSIFIER, Use.DETECTOR, Use.SEGMENTER, Use.SCALE, Use.SAMPLE)
    for word, use in enumerate((*trained, *heads), start=101):
        drawn = np.random.SeedSequence((7, word, 2)).generate_state(1, np.uint64)[0]
        assert counted_seed(7, use, 2) == int(drawn) >> 1
    assert set(Use) == {*words, *trained, *heads}


def test_a_negative_seed_is_refused_in_words():
    for draw in (counted, counted_seed):
        with pytest.raises(UsageError, match="seed is -1: expected 0 or more"):
            draw(-1, Use.HELD_OUT_MASK)
