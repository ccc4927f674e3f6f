"""Does pre-training on a data set's own pictures help to detect, and to segment? Each start x seed; resumable.

    python -m benchmarks.scenes boxes --pictures bccd/JPEGImages --train bccd/coco/instances_train.json
        --val bccd/coco/instances_val.json --name bccd --out runs/scenes --epochs 10 --pretrain-epochs 100
    python -m benchmarks.scenes masks   ...   # instances, by a Mask R-CNN
    python -m benchmarks.scenes classes ...   # a class at every pixel

Pre-training runs once, on `--pool`, or on the training pictures alone, without their annotations; then the same
training starts from those weights and from random ones, with the same seeds. Each cell is a line of
benchmarks/results/scenes.jsonl; those that are there already are not run again. `--table` only prints.
"""

import argparse
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

from . import records

ARMS = ("random", "pre-trained")
MEASURES = {"boxes": ("ap", "ap50"), "masks": ("ap", "ap50"), "classes": ("iou", "dice")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=MEASURES)
    parser.add_argument("--name", required=True, help="of the data, for the record")
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--val-pictures", type=Path, help="where they are in another folder")
    parser.add_argument("--train", type=Path, required=True, help="COCO file")
    parser.add_argument("--val", type=Path, required=True, help="COCO file")
    parser.add_argument("--out", type=Path, required=True, help="where the run folders go")
    parser.add_argument("--annotated", type=int, help="train on so many pictures, drawn by the seed; by default all")
    parser.add_argument("--pool", type=Path, help="pre-train on this folder instead of on the training pictures")
    parser.add_argument("--record", type=Path, default=records.RESULTS / "scenes.jsonl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--pretrain-size", type=int, default=128)
    parser.add_argument("--pretrain-epochs", type=int, default=100)
    parser.add_argument("--decoder", default="lean")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the training")
    parser.add_argument("--learning-rate", type=float, help="by default that of the command")
    parser.add_argument("--layer-decay", type=float, help="of the pre-trained start; by default that of the command")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        for seed in options.seeds:
            for arm in ARMS:
                if cell(options, arm, seed) is None:
                    run(options, arm, seed)
    print(table(options))


def setting(options: argparse.Namespace, arm: str) -> dict[str, Any]:
    """What distinguishes the cells of one experiment from those of another."""
    names = ("task", "name", "model", "size", "epochs", "learning_rate")
    how = {f"pretrain_{n}": getattr(options, f"pretrain_{n}") for n in ("size", "epochs")} | {
        "decoder": options.decoder
    }
    precision = {} if options.precision == "auto" else {"precision": options.precision}  # older lines lack it
    shared = {n: getattr(options, n) for n in names} | precision
    shared |= {} if options.annotated is None else {"annotated": options.annotated}
    how |= {} if options.pool is None else {"pool": options.pool.name}
    return shared | ({"arm": start(options, arm)} | how if arm == "pre-trained" else {"arm": arm})


def start(options: argparse.Namespace, arm: str) -> str:
    """A start and what is special about how it is trained."""
    return arm if options.layer_decay is None or arm == "random" else f"{arm}, layer decay {options.layer_decay:g}"


def cell(options: argparse.Namespace, arm: str, seed: int) -> dict[str, Any] | None:
    """The line of a cell that was run before."""
    return records.find(options.record, setting(options, arm) | {"seed": seed})


def run(options: argparse.Namespace, arm: str, seed: int) -> None:
    """Train from one start, write the line."""
    import convspark

    weights = pretrained(options) if arm == "pre-trained" else f"random:{options.model}"
    out = options.out / f"{options.name}-{options.task}-{arm}-{_mark(setting(options, arm))}-{seed}"
    shared = {name: getattr(options, name) for name in ("size", "epochs", "precision", "learning_rate")}
    shared |= {"seed": seed, "out": str(out)}
    shared["layer_decay"] = options.layer_decay if arm == "pre-trained" else None
    pictures, val_pictures = str(options.pictures), str(options.val_pictures or options.pictures)
    train, val = str(annotations(options, seed)), str(options.val)
    if options.task == "classes":
        command = convspark.segment
        data = {"images": pictures, "masks": train, "val_images": val_pictures, "val_masks": val}
    else:
        command = convspark.detect
        data = {"images": pictures, "val_images": val_pictures, "train": train, "val": val, "task": options.task}
    going_on = (out / "config.yaml").is_file()
    result = command(resume=str(out)) if going_on else command(weights, **data, **shared)
    line = setting(options, arm) | {"seed": seed, "pictures": result.pictures, "seconds": result.seconds}
    records.append(options.record, line | {name: getattr(result, name) for name in MEASURES[options.task]})


def _mark(settings: dict[str, Any]) -> str:
    """What tells the folders of one experiment from those of another."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def annotations(options: argparse.Namespace, seed: int) -> Path:
    """The COCO file to train on: that of `--train`, or one of some of its pictures, the same for each start."""
    if options.annotated is None:
        return options.train
    whole = json.loads(options.train.read_text(encoding="utf-8"))
    images = random.Random(seed).sample(sorted(whole["images"], key=lambda image: image["id"]), options.annotated)
    chosen = {image["id"] for image in images}
    objects = [thing for thing in whole["annotations"] if thing["image_id"] in chosen]
    part = options.out / f"{options.name}-train-{options.annotated}-{seed}.json"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps(whole | {"images": images, "annotations": objects}), encoding="utf-8")
    return part


def pretrained(options: argparse.Namespace) -> str:
    """The run folder of the pre-training, which is done if it has not been."""
    import convspark

    of = options.name if options.pool is None else options.pool.name
    settings = {"model": options.model, "size": options.pretrain_size, "epochs": options.pretrain_epochs}
    settings |= {"decoder": options.decoder}
    place = options.out / f"{of}-pretrained-{_mark(settings)}"
    if (place / "export" / "model.safetensors").is_file():
        return str(place)
    if (place / "config.yaml").is_file():
        return convspark.pretrain(resume=str(place)).folder
    pictures = options.pool or training_pictures(options)
    convspark.pretrain(str(pictures), out=str(place), picture_epochs=0, **settings)
    return str(place)


def training_pictures(options: argparse.Namespace) -> Path:
    """A folder of links to the pictures of the training annotations, and to no others."""
    pictures = options.out / f"{options.name}-pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for image in json.loads(options.train.read_text(encoding="utf-8"))["images"]:
        link = pictures / Path(image["file_name"]).name
        if not link.exists():
            os.symlink((options.pictures / image["file_name"]).resolve(), link)
    return pictures


def table(options: argparse.Namespace) -> str:
    """Mean and deviation of each start, and of the paired differences, in points, as Markdown."""
    names = MEASURES[options.task]
    lines = [f"| start | {' | '.join(names)} | seeds |", "|---" * (len(names) + 2) + "|"]
    of = {arm: {s: c for s in options.seeds if (c := cell(options, arm, s)) is not None} for arm in ARMS}
    both = [s for s in options.seeds if all(s in cells for cells in of.values())]
    rows = {start(options, arm): [[cells[s][name] for s in cells] for name in names] for arm, cells in of.items()}
    rows["difference"] = [[of["pre-trained"][s][name] - of["random"][s][name] for s in both] for name in names]
    for arm, values in rows.items():
        if values[0]:
            lines.append(f"| {arm} | {' | '.join(records.spread(v, 100) for v in values)} | {len(values[0])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
