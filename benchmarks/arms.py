"""Experiments that pre-train in several ways and fine-tune from each: the arms, their records, how they compare.

Each arm is pre-trained and fine-tuned with each seed, so that what is compared is paired: a seed draws the first
weights, the masks and crops, the labels, and the order and augmentation of fine-tuning, the same in all arms. One line
of JSON for each arm, seed and share of the labels; what is there already is not run again.
"""

import argparse
import csv
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import convspark
from convspark.runs.device import choose_device, describe_device
from convspark.tasks import defaults
from convspark.tasks.classification.settings import read_predictions
from convspark.tasks.comparison.verdict import Difference, Score, difference

from . import records

_COMMON = ("data", "model", "size", "pretrain_epochs", "batch_size", "finetune_epochs", "fraction")
_OLDER = {"batch_size": None}  # of lines from before there was this field

RANDOM = "random"
"""The arm without pre-training."""


@dataclass(frozen=True)
class Arm:
    """One way to pre-train.

    Attributes:
        settings: of `pretrain`, that differ from those of the other arms.
        otherwise: pre-trains without convspark: (budget, seed, folder) -> WEIGHTS of `finetune`, and its settings.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    otherwise: "Callable[[Budget, int, Path], tuple[str, dict[str, Any]]] | None" = None


@dataclass(frozen=True)
class Budget:
    """What all arms have in common.

    Attributes:
        data: its folder, with train/ and val/ (and test/); `name` is what the records call it.
        pretrain: settings of `pretrain` for all arms.
        finetune: settings of `finetune`; epochs are of all labels, a smaller share gets more (`epochs_at`).
        fractions: shares of the labels.
    """

    data: Path
    name: str
    model: str
    size: int
    pretrain_epochs: int
    finetune_epochs: int
    fractions: tuple[float, ...]
    pretrain: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)

    def key(self, arm: str, seed: int, fraction: float) -> dict[str, Any]:
        """The fields by which a line of the records is looked up."""
        return {
            "data": self.name,
            "model": self.model,
            "size": self.size,
            "pretrain_epochs": self.pretrain_epochs,
            "batch_size": self.pretrain.get("batch_size"),
            "finetune_epochs": self.finetune_epochs,
            "arm": arm,
            "seed": seed,
            "fraction": fraction,
        }


def arguments(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """The options that all these experiments have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="folder with train/, val/ and, if there is, test/")
    parser.add_argument("--name", help="of the data, for the records; by default the folder's")
    parser.add_argument("--out", type=Path, default=Path("runs/arms"), help="folder for the runs")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--pretrain-epochs", type=int, default=30)
    parser.add_argument("--finetune-epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, help="of pre-training; by default its own")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--report", action="store_true", help="only print the tables of what the records hold")
    parser.set_defaults(**defaults)
    return parser


def budget_of(options: argparse.Namespace) -> Budget:
    if options.data is None or not options.data.is_dir():
        raise SystemExit(f"data is {options.data}: expected a folder with train/ and val/, or --report")
    return Budget(
        options.data,
        options.name or options.data.name,
        options.model,
        options.size,
        options.pretrain_epochs,
        options.finetune_epochs,
        tuple(options.fractions),
        {} if options.batch_size is None else {"batch_size": options.batch_size},
    )


def run_all(file: Path, budget: Budget, arms: Sequence[Arm], seeds: int, out: Path) -> None:
    """Every arm with every seed, a seed after the other: what is stopped early has compared something."""
    for seed in range(seeds):
        for arm in arms:
            run(file, budget, arm, seed, out)


def run(file: Path, budget: Budget, arm: Arm, seed: int, out: Path) -> None:
    """Pre-train and fine-tune one arm with one seed, unless the records hold it."""
    missing = [f for f in budget.fractions if not records.find(file, budget.key(arm.name, seed, f), _OLDER)]
    if not missing:
        return
    shape = f"{budget.name}-{budget.model}-{budget.size}-{budget.pretrain_epochs}"
    shape += f"-of-{batch_size}" if (batch_size := budget.pretrain.get("batch_size")) else ""
    folder = out / shape / f"{arm.name}-seed{seed}"
    weights, pretrained, tune = f"random:{budget.model}", {}, budget.finetune
    began = time.perf_counter()
    if arm.otherwise is not None:
        weights, own = arm.otherwise(budget, seed, folder / "pretrained")
        tune = tune | own
    elif arm.name != RANDOM:
        loss = _pretrained(budget, arm, seed, folder / "pretrained")
        pictures = (folder / "pretrained" / "train_files.txt").read_text().count("\n")
        pretrained = {"loss": loss, "pretrained_on": pictures}
        weights = str(folder / "pretrained" / "export")
    pretrained["pretrain_seconds"] = round(time.perf_counter() - began)
    for fraction in missing:
        epochs = defaults.epochs_at(fraction, budget.finetune_epochs)
        settings = {"size": budget.size, "fraction": fraction, "epochs": epochs, "seed": seed, **tune}
        fine = folder / f"finetuned-{fraction:g}-{budget.finetune_epochs}"
        if (fine / "config.yaml").is_file():
            tuned = convspark.finetune(resume=str(fine))
        else:
            tuned = convspark.finetune(weights, str(budget.data), out=str(fine), **settings)
        line = budget.key(arm.name, seed, fraction) | {
            # The arm's name says which pictures; their path is of this machine alone.
            "settings": {k: v for k, v in (budget.pretrain | arm.settings).items() if k != "images"},
            "labels": tuned.trained_on,
            "split": tuned.split,
            "top1": tuned.top1 if tuned.split == "test" else tuned.last["top1"],
            "right": _as_hex(_right(fine, tuned.split)),
            "pictures": tuned.pictures,
            "device": describe_device(choose_device()),
            "commit": records.commit(),
            **pretrained,
        }
        records.append(file, line)
        print({k: v for k, v in line.items() if k in ("arm", "seed", "fraction", "top1", "loss")}, flush=True)
        shutil.rmtree(fine)
    for checkpoint in folder.rglob("*.ckpt"):
        checkpoint.unlink()


def _pretrained(budget: Budget, arm: Arm, seed: int, folder: Path) -> float:
    if (folder / "export" / "model.safetensors").is_file():
        rows = list(csv.DictReader((folder / "metrics.csv").open()))
        return float(rows[-1]["train_loss"])
    if (folder / "config.yaml").is_file():
        return convspark.pretrain(resume=str(folder)).train_loss
    settings = {"model": budget.model, "size": budget.size, "epochs": budget.pretrain_epochs, "seed": seed}
    settings |= {"picture_epochs": 0, "images": str(budget.data / "train"), **budget.pretrain, **arm.settings}
    return convspark.pretrain(out=str(folder), **settings).train_loss


def _right(folder: Path, split: str) -> list[bool]:
    """Of each picture measured, in the order of their names, whether it was named rightly.

    By the weights that were best in validation, where there are other pictures to test with; else by the last.
    """
    predictions = read_predictions(folder, "predicted" if split == "test" else "last")
    return [predictions[path][0] for path in sorted(predictions)]


def _as_hex(bits: Sequence[bool]) -> str:
    return f"{int('1' + ''.join('01'[bit] for bit in bits), 2):x}"


def _of_hex(text: str) -> list[bool]:
    return [digit == "1" for digit in f"{int(text, 16):b}"[1:]]


def compared(lines: Sequence[Mapping[str, Any]], arm: str, to: str) -> Difference | None:
    """Top-1 of one arm minus another's, in points, over the seeds that both have; None if they share none."""
    of = [{line["seed"]: line for line in lines if line["arm"] == name} for name in (arm, to)]
    seeds = sorted(of[0].keys() & of[1].keys())
    if not seeds:
        return None
    first = of[0][seeds[0]]
    scores = [
        Score(name, first["fraction"], first["labels"], seeds, {"top1": [by[s]["top1"] for s in seeds]})
        for name, by in zip((arm, to), of, strict=True)
    ]
    gains = []
    for seed in seeds:
        pairs = zip(*(_of_hex(by[seed]["right"]) for by in of), strict=True)
        gains.append({str(n): int(ours) - int(theirs) for n, (ours, theirs) in enumerate(pairs)})
    return difference(scores[0], scores[1], gains)


def table(lines: Sequence[Mapping[str, Any]], arms: Sequence[str], to: str) -> str:
    """A table in Markdown: each arm's top-1 and its difference to the arm `to`."""
    head = f"| arm | seeds | top-1 | minus {to} | 95 % interval |"
    rows = [head, "|---|---|---|---|---|"]
    for arm in arms:
        values = [line["top1"] for line in lines if line["arm"] == arm]
        if not values:
            continue
        row = f"| {arm} | {len(values)} | {records.spread(values, 100)} %"
        between = compared(lines, arm, to) if arm != to else None
        if between is None:
            row += " | | |"
        else:
            spread = "" if between.deviation is None else f" ± {between.deviation:.1f}"
            interval = "" if between.low is None else f"{between.low:+.1f} to {between.high:+.1f}"
            row += f" | {between.mean:+.1f}{spread} | {interval} |"
        rows.append(row)
    return "\n".join(rows)


def groups(lines: Sequence[Mapping[str, Any]]) -> Iterator[tuple[dict[str, Any], list[Mapping[str, Any]]]]:
    """What lines that may be compared have in common, and those lines."""

    def common(line: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple((_OLDER | line)[key] for key in _COMMON)

    def place(line: Mapping[str, Any]) -> list[tuple[bool, Any]]:  # None is less than any number
        return [(value is not None, value) for value in common(line)]

    for values, group in groupby(sorted(lines, key=place), common):
        yield dict(zip(_COMMON, values, strict=True)), list(group)


def report(lines: Sequence[Mapping[str, Any]], arms: Sequence[str] | None, to: str) -> str:
    """A table for each data set, network, budget and share of the labels; of all arms where none are named."""
    parts = []
    for common, of in groups(lines):
        batches = f" in batches of {common['batch_size']}" if common["batch_size"] else ""
        parts.append(
            f"{common['data']}, {common['model']} at {common['size']} pixels, {common['pretrain_epochs']} epochs of "
            f"pre-training{batches}, fine-tuned with {100 * common['fraction']:g} % of the labels ({of[0]['labels']}; "
            f"{common['finetune_epochs']} epochs of all), measured on {of[0]['pictures']} {of[0]['split']} pictures"
        )
        parts.append(table(of, arms or list(dict.fromkeys(line["arm"] for line in of)), to))
    return "\n\n".join(parts)


def experiment(description: str | None, file: Path, arms: Sequence[Arm], to: str) -> None:
    """The command of an experiment whose arms differ in settings alone: run what is asked for, print the tables."""
    options = arguments(description or "").parse_args()
    if not options.report:
        chosen = [arm for arm in arms if not options.arms or arm.name in options.arms]
        run_all(file, budget_of(options), chosen, options.seeds, options.out)
    print(report(records.read(file), [arm.name for arm in arms], to))
