"""`probe`: how well frozen features separate the classes, beside those of the same network with random weights."""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...arguments import checked_arguments
from ...errors import UsageError
from ...runs.folder import check_processes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeReport:
    """Accuracies of simple classifiers on frozen features; `str(report)` is the table.

    Attributes:
        weights, data: as passed.
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
        several = f"Mean and standard deviation of {runs} runs, each on other 80 % of the training pictures"
        lines += ["", several if runs > 1 else "A single run, on 80 % of the training pictures"]
        return "\n".join(lines)


@checked_arguments
def probe(
    weights: str | None = None,
    data: str | None = None,
    *,
    model: str | None = None,
    partial: bool = False,
    size: int | str | None = None,
    neighbours: int = 10,
    seeds: int = 3,
    val_share: float = 0.2,
    device: str = "auto",
    workers: int | None = None,
) -> ProbeReport:
    """Classify by frozen features: nearest neighbours and logistic regression, beside the random initialisation.

    Args:
        weights: run folder, export folder, timm name, .safetensors, .pth or .ckpt file, or random:MODEL.
        data: folder with a folder for each class, plain or under train/, val/ and test/; CSV list of
            path,label[,split]; or tar files, parquet files or a saved dataset with labels (docs/transfer.md).
        model: the network's name, if the weights do not name it.
        partial: go on even if the weights leave most of the network, or all tensors of one kind, random.
        size: side of the images in pixels, or height x width; by default that of pre-training, else 224.
        neighbours: number of neighbours of the nearest-neighbour classifier, by cosine similarity.
        seeds: number of runs, each with another 80 % of the training pictures and other random weights.
        val_share: share of the training pictures to measure with, if the data have no val.
        device: auto, cpu, cuda, cuda:1 or mps.
        workers: processes that load pictures; by default chosen by the number of cores.
    """
    if seeds < 1 or neighbours < 1:
        raise UsageError(f"seeds is {seeds} and neighbours {neighbours}: expected 1 or more")
    check_processes(workers=workers)
    import numpy as np

    from ...checkpoints.origin import RANDOM, find_weights
    from ...runs.device import choose_device, default_workers
    from ...runs.logs import run_log
    from ..classification.data import read_labelled
    from ..classification.network import labelled_loader
    from .classifiers import classify_features, four_fifths
    from .frozen import frozen_features

    with run_log():
        origin = find_weights(weights, model, partial)
        labelled_data = read_labelled(data, val_share, whole=True, pixels=origin.pixels)
        torch_device = choose_device(device)
        processes = default_workers(torch_device) if workers is None else workers
        sides = origin.sides(size)
        split, final = labelled_data.final
        parts = {"train": labelled_data.train, "val": labelled_data.val, "final": final}
        loaders = {
            part: labelled_loader(labelled, sides, origin.mean, origin.std, workers=processes, pixels=origin.pixels)
            for part, labelled in parts.items()
        }
        labels = {part: np.array([label for _, label in labelled]) for part, labelled in parts.items()}
        report = ProbeReport(
            str(weights),
            str(data),
            split,
            len(final),
            len(labelled_data.classes),
            len(four_fifths(labels["train"], seed=0)),
            chance=float(np.mean(labels["final"] == np.bincount(labels["train"]).argmax())),
        )
        arms = [(origin.weights, origin)]
        if not origin.is_random:
            beside = origin.at_random(f"{RANDOM}{origin.model}")
            arms.append((beside.weights, beside))
        for name, arm in arms:
            features: dict[str, Any] = {}
            rows: list[dict[str, dict[str, float]]] = []
            for seed in range(seeds):
                if not features or arm.is_random:
                    network = arm.build(seed)
                    arm.check_size(network, sides)
                    features = {
                        part: frozen_features(network, loader, torch_device) for part, loader in loaders.items()
                    }
                rows.append(classify_features(features, labels, seed, neighbours, split))
                logger.info("%s: run %d of %d", name, seed + 1, seeds)
            report.scores[name] = _transposed(rows)
        return report


def _transposed(rows: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    first = rows[0]
    return {kind: {name: [row[kind][name] for row in rows] for name in first[kind]} for kind in first}


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{100 * values[0]:.1f}"
    return f"{100 * statistics.fmean(values):.1f} ± {100 * statistics.stdev(values):.1f}"
