"""`probe`: how much frozen features tell of the classes, beside those of the same network with random weights."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UsageError

logger = logging.getLogger(__name__)

_STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # of the linear probe's inverse regularisation


@dataclass(frozen=True)
class ProbeReport:
    """Accuracies of simple classifiers on frozen features; `str(report)` is the table.

    Attributes:
        weights, data: what was asked for.
        split: "test" or "val": what the figures are of.
        pictures, classes, trained_on: how many.
        scores: weights -> classifier -> measure -> one value a seed, from 0 to 1.
        chance: top-1 of always answering the most frequent class.
    """

    weights: str
    data: str
    split: str
    pictures: int
    classes: int
    trained_on: int
    scores: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    chance: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"Frozen features of {self.trained_on} labelled pictures, measured on {self.pictures} {self.split} "
            f"pictures of {self.classes} classes, in %",
            "",
            f"{'':28}{'kNN top-1':>16}{'balanced':>16}{'linear top-1':>16}{'balanced':>16}",
        ]
        for name, kinds in self.scores.items():
            cells = [_spread(kinds[kind][measure]) for kind in ("knn", "linear") for measure in ("top1", "balanced")]
            lines.append(f"{name[-28:]:28}{''.join(f'{cell:>16}' for cell in cells)}")
        lines.append(f"{'most frequent class':28}{100 * self.chance:>16.1f}{100 / self.classes:>16.1f}")
        runs = len(next(iter(self.scores.values()))["knn"]["top1"])
        lines += ["", f"Mean and standard deviation of {runs} runs, each on other 80 % of the training pictures"]
        return "\n".join(lines)


def probe(
    weights: str | None = None,
    data: str | None = None,
    *,
    model: str | None = None,
    size: int | str | None = None,
    neighbours: int = 10,
    seeds: int = 3,
    val_share: float = 0.2,
    device: str = "auto",
    workers: int | None = None,
) -> ProbeReport:
    """Classify by frozen features: nearest neighbours and logistic regression, beside the random initialisation.

    Args:
        weights: run folder, export folder, timm name, .safetensors or .pth file, or random:MODEL.
        data: folder with a folder for each class, plain or under train/, val/ and test/; or CSV of path,label[,split].
        model: the network's name, for weights that do not tell it.
        size: side of the images in pixels, or height x width; by default that of pre-training, else 224.
        neighbours: of the nearest-neighbour classifier; by cosine similarity.
        seeds: runs, each on another 80 % of the training pictures, with other random weights.
        val_share: share of the training pictures to measure with, where the data name none.
        device: auto, cpu, cuda, cuda:1 or mps.
        workers: processes that load pictures; by default chosen by the cores there are.
    """
    if seeds < 1 or neighbours < 1:
        raise UsageError(f"seeds is {seeds} and neighbours {neighbours}: expected 1 or more")
    from ..training.device import choose_device, default_workers
    from ..training.logs import run_log
    from ..training.settings import parse_size
    from .classify import labelled_loader
    from .features import frozen_features
    from .labels import read_labelled
    from .weights import RANDOM, find_weights

    with run_log():
        origin = find_weights(weights, model)
        found = read_labelled(data, val_share)
        chosen = choose_device(device)
        processes = default_workers(chosen) if workers is None else workers
        sides = parse_size(size or origin.size or 224)
        split, final = found.final
        parts = {"train": found.train, "val": found.val, "final": final}
        loaders = {
            part: labelled_loader(labelled, sides, origin.mean, origin.std, workers=processes)
            for part, labelled in parts.items()
        }
        labels = {part: np.array([label for _, label in labelled]) for part, labelled in parts.items()}
        report = ProbeReport(
            str(weights),
            str(data),
            split,
            len(final),
            len(found.classes),
            round(0.8 * len(found.train)),
            chance=float(np.mean(labels["final"] == np.bincount(labels["train"]).argmax())),
        )
        arms = [(origin.given, origin)]
        if not origin.is_random:
            arms.append((f"{RANDOM}{origin.model}", find_weights(f"{RANDOM}{origin.model}")))
        for name, arm in arms:
            features: dict[str, np.ndarray] = {}
            rows: list[dict[str, dict[str, float]]] = []
            for seed in range(seeds):
                if not features or arm.is_random:
                    network = arm.build(seed)
                    features = {part: frozen_features(network, loader, chosen) for part, loader in loaders.items()}
                rows.append(_classify(features, labels, seed, neighbours, split))
                logger.info("%s: run %d of %d", name, seed + 1, seeds)
            report.scores[name] = _transposed(rows)
        return report


def _classify(
    features: dict[str, np.ndarray], labels: dict[str, np.ndarray], seed: int, neighbours: int, split: str
) -> dict[str, dict[str, float]]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kept = _four_fifths(labels["train"], seed)
    x, y = features["train"][kept], labels["train"][kept]
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
    from sklearn.metrics import accuracy_score, recall_score

    balanced = recall_score(truth, predicted, average="macro", labels=np.unique(truth))
    return {"top1": float(accuracy_score(truth, predicted)), "balanced": float(balanced)}


def _four_fifths(labels: np.ndarray, seed: int) -> np.ndarray:
    """Indices of 80 % of each class, at least one."""
    from ..data.counters import Use, counted

    kept: list[int] = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        order = counted(seed, Use.LABELS, 1, int(label)).permutation(len(places))
        kept += places[order[: max(1, round(0.8 * len(places)))]].tolist()
    return np.array(sorted(kept))


def _transposed(rows: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    first = rows[0]
    return {kind: {name: [row[kind][name] for row in rows] for name in first[kind]} for kind in first}


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{100 * values[0]:.1f}"
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"
