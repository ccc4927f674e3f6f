"""How rich features are, without labels: their effective rank, and the channels that carry nothing."""

import numpy as np
import torch
from torch import Tensor

_EPS = 1e-7
"""Added to each share of the singular values, as in RankMe's definition."""

_DEAD = 1e-3
"""Of a usual channel's deviation: what varies less is dead."""


def moments(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 2, C) float64: mean and mean square of each channel over an image's positions."""
    values = features.flatten(2).double()  # (B, C, h w)
    return torch.stack([values.mean(-1), values.square().mean(-1)], dim=1)


def effective_rank(features: np.ndarray) -> float:
    """RankMe of features (N, C), from 1 to min(N, C): exp of the entropy of the normalised singular values.

    Source: Garrido et al., RankMe, arXiv 2210.02885, equation 1. Features that all point the same way have 1.
    """
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    total = values.sum()
    if not total > 0:
        return 1.0
    shares = values / total + _EPS
    return float(np.exp(-(shares * np.log(shares)).sum()))


def dead_share(means: np.ndarray, squares: np.ndarray) -> float:
    """Share of channels that are the same at every position of every image, but for a thousandth of what is usual.

    Args:
        means, squares: (N, C), of each image (see `moments`).
    """
    deviations = np.sqrt(np.maximum(squares.mean(0) - means.mean(0) ** 2, 0))  # (C,)
    usual = np.sqrt(np.mean(deviations**2))
    return float(np.mean(deviations <= _DEAD * usual))
