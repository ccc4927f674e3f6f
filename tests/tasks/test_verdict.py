"""Differences and sentences, against scipy's tests and against chance itself."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from convspark.tasks.comparison.verdict import difference, markdown, sentence, summarise


def score(arm, values):
    return summarise(arm, 0.1, 307, {seed: {"top1": v, "balanced": v / 2} for seed, v in enumerate(values)})


def compared(ours, theirs, gains=()):
    return difference(score("pre-trained", ours), score("random", theirs), gains)


def test_the_interval_of_pictures_without_a_say_is_the_paired_t_tests():
    ours, theirs = [0.46, 0.42, 0.44, 0.47], [0.40, 0.39, 0.37, 0.43]
    result = compared(ours, theirs)
    interval = ttest_rel(100 * np.array(ours), 100 * np.array(theirs)).confidence_interval()
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
    assert result.mean == pytest.approx(5.0)
    text = sentence(result, 372, "test", 3007)
    assert text.startswith("Pre-training on 3,007 images helped: +5.0 ± 1.8 points")
    assert "mean and standard deviation of 4 paired runs" in text and "10 % of the labels (307 pictures)" in text


def test_seeds_that_agree_by_chance_leave_the_doubt_that_the_pictures_leave():
    gains = [{str(i): int(i < 12) - int(i >= 92) for i in range(100)}] * 2  # 12 pictures won, 8 lost, twice
    result = compared([0.54, 0.54], [0.50, 0.50], gains)
    interval = ttest_1samp([100 * g for g in gains[0].values()], 0).confidence_interval()
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
    assert sentence(result, 100, "test").startswith("Pre-training made no certain difference")


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_equal_weights_are_rarely_said_to_differ(seeds):
    """Runs that differ by chance: of their seeds, of the pictures, and of both together. 5 % of errors are allowed."""
    rng = np.random.default_rng(seeds)
    errors, runs, pictures = 0, 300, 200
    for _ in range(runs):
        ease = rng.normal(0, 1, pictures)  # of a picture, for either
        taste = 0.5 * rng.normal(0, 1, (2, 1, pictures))  # of one initialisation for some pictures
        luck = 0.2 * rng.normal(0, 1, (2, seeds, 1))
        right = ease + taste + luck + rng.normal(0, 1, (2, seeds, pictures)) > 0
        gains = [{str(i): int(g) for i, g in enumerate(row)} for row in right[0].astype(int) - right[1]]
        result = compared(*right.mean(2).tolist(), gains)
        errors += not result.low <= 0 <= result.high
    assert errors <= 0.075 * runs  # the expected 5 %, and two standard deviations for so many runs


def test_pairs_are_by_seed_whatever_their_order():
    ours = summarise("pre-trained", 0.1, 9, {2: {"top1": 0.5}, 0: {"top1": 0.3}})
    theirs = summarise("random", 0.1, 9, {0: {"top1": 0.2}, 2: {"top1": 0.45}})
    assert difference(ours, theirs, []).points == pytest.approx([10, 5])


@pytest.mark.parametrize(
    ("ours", "theirs", "begins", "holds"),
    [
        ([0.30, 0.31, 0.29], [0.40, 0.42, 0.38], "Pre-training harmed: -10.0", "random weights"),
        ([0.50, 0.40, 0.45], [0.40, 0.45, 0.44], "Pre-training made no certain difference to random weights", "0."),
        ([0.50, 0.41, 0.45], [0.40, 0.40, 0.44], "Pre-training made no", "all 3 runs point the same way"),
        ([0.50, 0.48], [0.40, 0.40], "Pre-training made no certain difference", "of 2 paired runs"),
        ([0.5], [0.4], "Pre-training gave +10.0 points", "more --seeds"),
    ],
)
def test_the_sentence_says_no_more_than_the_figures(ours, theirs, begins, holds):
    result = compared(ours, theirs)
    text = sentence(result, 372, "test")
    assert text.startswith(begins) and holds in text
    table = markdown([score("pre-trained", ours), score("random", theirs)], [result], [text], "test", 372)
    spread = f"mean ± standard deviation of {len(ours)} runs" if len(ours) > 1 else "of a single run"
    assert "| gain over random |" in table and text in table and spread in table


@pytest.mark.parametrize(("theirs", "begins"), [(0.1, "did better than"), (0.9, "did worse than")])
def test_against_weights_that_were_trained_before_it_neither_helps_nor_harms(theirs, begins):
    ours, others = score("pre-trained", [0.50, 0.51, 0.49]), score("imagenet", [theirs, theirs + 0.01, theirs])
    text = sentence(difference(ours, others, []), 372, "test")
    assert text.startswith(f"Pre-training {begins} ImageNet weights at 10 % of the labels (307 pictures): ")
