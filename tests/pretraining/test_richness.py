"""Effective rank and dead channels, of features whose answer is known."""

import math

import numpy as np
import pytest
import torch

from convspark.pretraining.richness import dead_share, effective_rank, moments


def test_the_effective_rank_is_the_number_of_directions_that_count_alike():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(40, 12)))[0]  # (40, 12), orthonormal columns
    features = directions @ np.linalg.qr(rng.normal(size=(30, 12)))[0].T  # twelve singular values of 1
    assert effective_rank(features) == pytest.approx(12, rel=1e-4)
    assert effective_rank(np.outer(rng.normal(size=40), rng.normal(size=30))) == pytest.approx(1, abs=1e-4)
    assert effective_rank(np.zeros((4, 3))) == 1.0


def test_singular_values_of_2_and_1_by_hand():
    """exp(-(2/3 log 2/3 + 1/3 log 1/3)) = 3 / 2^(2/3)"""
    features = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert effective_rank(features) == pytest.approx(3 / 2 ** (2 / 3), rel=1e-5)
    assert effective_rank(7 * features) == pytest.approx(effective_rank(features))


def test_dead_are_channels_without_variation_over_pictures_and_positions():
    maps = torch.randn(6, 8, 3, 4, generator=torch.Generator().manual_seed(0)) + 5
    maps[:, 1] = 0
    maps[:, 4] = 3.5  # always on is as dead as always off
    maps[:, 6] = maps[:, 6].mean((1, 2), keepdim=True)  # the same everywhere in a picture, but not in all pictures
    values = moments(maps).numpy()
    deviations = maps.double().std((0, 2, 3), correction=0).numpy()
    assert np.allclose(np.sqrt(values[:, 1].mean(0) - values[:, 0].mean(0) ** 2), deviations, atol=1e-6)
    assert dead_share(values[:, 0], values[:, 1]) == 2 / 8
    assert dead_share(np.ones((3, 4)), np.ones((3, 4))) == 1.0
    assert math.isclose(values[0, 0, 4], 3.5)
