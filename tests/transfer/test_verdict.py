"""Differences and sentences, against scipy's paired t-test."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from convspark.transfer.verdict import difference, markdown, sentence, summarise


def score(arm, values):
    return summarise(arm, 0.1, 307, {seed: {"top1": v, "balanced": v / 2} for seed, v in enumerate(values)})


def test_the_interval_is_the_paired_t_tests():
    ours, theirs = [0.46, 0.42, 0.44, 0.47], [0.40, 0.39, 0.37, 0.43]
    found = difference(score("pre-trained", ours), score("random", theirs))
    interval = ttest_rel(100 * np.array(ours), 100 * np.array(theirs)).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(5.0)
    text = sentence(found, 372, "test")
    assert text.startswith("Pre-training helped: +5.0 ± 1.8 points") and "4 paired runs" in text and "307" in text


def test_pairs_are_by_seed_whatever_their_order():
    ours = summarise("pre-trained", 0.1, 9, {2: {"top1": 0.5}, 0: {"top1": 0.3}})
    theirs = summarise("random", 0.1, 9, {0: {"top1": 0.2}, 2: {"top1": 0.45}})
    assert difference(ours, theirs).points == pytest.approx([10, 5])


@pytest.mark.parametrize(
    ("ours", "theirs", "begins", "holds"),
    [
        ([0.30, 0.31, 0.29], [0.40, 0.42, 0.38], "Pre-training harmed: -10.0", "random weights"),
        ([0.50, 0.40, 0.45], [0.40, 0.45, 0.44], "No certain difference to random weights", "includes 0."),
        ([0.50, 0.41, 0.45], [0.40, 0.40, 0.44], "No certain difference", "all 3 runs point the same way"),
        ([0.5], [0.4], "Pre-training gave +10.0 points", "more --seeds"),
    ],
)
def test_the_sentence_says_no_more_than_the_figures(ours, theirs, begins, holds):
    found = difference(score("pre-trained", ours), score("random", theirs))
    text = sentence(found, 372, "test")
    assert text.startswith(begins) and holds in text
    table = markdown([score("pre-trained", ours), score("random", theirs)], [found], [text], "test", 372)
    assert "| gain over random |" in table and text in table
