"""What pre-training gains: larger networks, more epochs, more pictures. Resumable: call it again to go on.

    python -m benchmarks.scaling_laws DATA --by models [--models resnet10t resnet18 …] [--pretrain-epochs 30]
    python -m benchmarks.scaling_laws DATA --by epochs [--epochs 5 10 30 100] [--model resnet18]
    python -m benchmarks.scaling_laws DATA --by pictures [--pictures 250 500 …] [--model resnet18]
    python -m benchmarks.scaling_laws --report       # the tables of docs/scaling-laws.md, and its plot

Fewer pictures are shown as many times more often, by several crops of each in an epoch, which share a batch, so that
all arms take about the same number of steps. Results go to benchmarks/results/scaling_laws.jsonl.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm

from convspark.data import list_pictures
from convspark.seeds import Use, counted

from . import records
from .arms import RANDOM, Arm, Budget, arguments, budget_of, compared, groups, run_all

RESULTS = records.RESULTS / "scaling_laws.jsonl"
PLOT = Path(__file__).parent.parent / "docs" / "images" / "scaling_laws.png"

MODELS = "resnet10t resnet18 resnet34 resnet50 convnext_atto convnext_pico convnext_nano convnext_tiny".split()
EPOCHS = [5, 10, 30, 100]
PICTURES = [250, 500, 1000, 2000]
ALL = "all pictures"


def main() -> None:
    assert __doc__ is not None
    parser = arguments(__doc__)
    parser.add_argument("--by", choices=["models", "epochs", "pictures"])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--epochs", type=int, nargs="+", default=EPOCHS)
    parser.add_argument("--pictures", type=int, nargs="+", default=PICTURES)
    options = parser.parse_args()
    if not options.report:
        budget = budget_of(options)
        both = [Arm(ALL), Arm(RANDOM)]
        if options.by == "models":
            for model in options.models:
                run_all(RESULTS, dataclasses.replace(budget, model=model), both, options.seeds, options.out)
        elif options.by == "epochs":
            for epochs in options.epochs:
                run_all(RESULTS, dataclasses.replace(budget, pretrain_epochs=epochs), both, options.seeds, options.out)
        else:
            arms = [*both, *(fewer(budget, n, options.out) for n in options.pictures)]
            run_all(RESULTS, budget, arms, options.seeds, options.out)
    print(report())


def fewer(budget: Budget, pictures: int, out: Path) -> Arm:
    """Some of the pictures, the same for every seed, each as many times more often."""
    paths = sorted(list_pictures(str(budget.data / "train")))
    chosen = [paths[i] for i in sorted(counted(0, Use.LABELS).permutation(len(paths))[:pictures])]
    file = out / f"{budget.name}-{pictures}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{Path(path).resolve()}\n" for path in chosen))
    crops = max(1, len(paths) // len(chosen))  # whole ones; more epochs make up for the rest
    epochs = round(budget.pretrain_epochs * len(paths) / (len(chosen) * crops))
    settings = {"images": str(file), "epochs": epochs, "crops_per_image": crops, "held_out": 0}
    return Arm(f"{pictures} pictures", settings)


def report() -> str:
    """Gain over random weights by network, by epochs and by pictures."""
    lines, rows = records.read(RESULTS), []
    points: list[dict[str, Any]] = []
    for common, of in groups(lines):
        for arm in dict.fromkeys(line["arm"] for line in of if line["arm"] != RANDOM):
            gain = compared(of, arm, RANDOM)
            if gain is not None:
                pictures = next(line["pretrained_on"] for line in of if line["arm"] == arm)
                points.append(common | {"arm": arm, "gain": gain, "pictures": pictures})
    head = "| data | network | parameters | pictures | epochs | seeds | gain over random weights | 95 % interval |"
    rows += [head, "|---|---|---|---|---|---|---|---|"]
    for point in points:
        gain, millions = point["gain"], _millions(point["model"])
        spread = "" if gain.deviation is None else f" ± {gain.deviation:.1f}"
        interval = "" if gain.low is None else f"{gain.low:+.1f} to {gain.high:+.1f}"
        rows.append(
            f"| {point['data']} | {point['model']} | {millions:.1f} M | {point['pictures']:,} | "
            f"{point['pretrain_epochs']} | {len(gain.points)} | {gain.mean:+.1f}{spread} | {interval} |"
        )
    if points:
        plot(points)
    return "\n".join(rows)


def plot(points: Sequence[dict[str, Any]]) -> None:
    """Gain against parameters, epochs and pictures, where at least two points differ in that alone."""
    import matplotlib.pyplot as plt

    whole = [p for p in points if p["arm"] == ALL]
    panels = [
        ("parameters (millions)", whole, lambda p: _millions(p["model"]), ("data", "pretrain_epochs")),
        ("epochs of pre-training", whole, lambda p: p["pretrain_epochs"], ("data", "model")),
        ("pictures", points, lambda p: p["pictures"], ("data", "model", "pretrain_epochs")),
    ]
    panels = [panel for panel in panels if len({panel[2](p) for p in panel[1]}) > 1]
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), sharey=True, layout="constrained")
    for axis, (label, of, place, same) in zip(np.atleast_1d(axes), panels, strict=True):
        for key in sorted({tuple(p[k] for k in same) for p in of}, key=str):
            line = sorted((p for p in of if tuple(p[k] for k in same) == key and place(p)), key=place)
            if len({place(p) for p in line}) > 1:
                gains = [p["gain"] for p in line]
                errors = [g.deviation or 0.0 for g in gains]
                axis.errorbar(list(map(place, line)), [g.mean for g in gains], errors, marker="o", capsize=3)
                axis.lines[-1].set_label(", ".join(map(str, key)))
        axis.set(xlabel=label, xscale="log")
        places = sorted({place(p) for p in of})
        apart = [tick for n, tick in enumerate(places) if n == 0 or tick > 1.2 * places[n - 1]]  # or they overlap
        axis.set_xticks(apart, [f"{tick:.3g}" if tick < 1000 else f"{tick:,}" for tick in apart])
        axis.minorticks_off()
        axis.axhline(0, color="grey", linewidth=0.8)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    np.atleast_1d(axes)[0].set_ylabel("gain over random weights, points")
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, dpi=110)
    plt.close(figure)


def _millions(model: str) -> float:
    return sum(p.numel() for p in timm.create_model(model, num_classes=0).parameters()) / 1e6


if __name__ == "__main__":
    main()
