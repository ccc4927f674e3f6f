"""Simple classifiers on frozen features: nearest neighbours and logistic regression."""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, recall_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ...seeds import Use, counted

_STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # of the linear probe's inverse regularisation


def classify_features(
    features: dict[str, np.ndarray], labels: dict[str, np.ndarray], seed: int, neighbours: int, split: str
) -> dict[str, dict[str, float]]:
    """Both classifiers' scores on `final`, trained on the 80 % of `train` that the seed draws.

    Args:
        features: of train, val and final, (N, C) each; `labels` alike, (N,).
        neighbours: by cosine similarity.
        split: what `final` is; where it is "test", the regression's strength is chosen on `val`.
    """
    drawn_places = four_fifths(labels["train"], seed)
    x, y = features["train"][drawn_places], labels["train"][drawn_places]
    knn = KNeighborsClassifier(min(neighbours, len(x)), metric="cosine").fit(x, y)

    def linear(strength: float) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(x, y)

    if split == "test":  # the strength is chosen by validation, so that the test pictures choose nothing
        fitted = [linear(strength) for strength in _STRENGTHS]
        best = max(fitted, key=lambda model: float(np.mean(model.predict(features["val"]) == labels["val"])))
    else:
        best = linear(0.01)
    truth = labels["final"]
    return {
        "knn": _scores(truth, knn.predict(features["final"])),
        "linear": _scores(truth, best.predict(features["final"])),
    }


def _scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    balanced = recall_score(truth, predicted, average="macro", labels=np.unique(truth))
    return {"top1": float(accuracy_score(truth, predicted)), "balanced": float(balanced)}


def four_fifths(labels: np.ndarray, seed: int) -> np.ndarray:
    """Indices of 80 % of each class, at least one."""
    chosen: list[int] = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        order = counted(seed, Use.LABELS, 1, int(label)).permutation(len(places))
        chosen += places[order[: max(1, round(0.8 * len(places)))]].tolist()
    return np.array(sorted(chosen))
