"""A real pre-training of some minutes on a GPU, and the answer whether it helped; `benchmarks/gpu_train.sh` calls it.

    python3 -m benchmarks.gpu_train PICTURES --labelled LABELLED --out runs/gpu --minutes 8

PICTURES is a folder of pictures; LABELLED one with a folder for each class, PICTURES itself by default. As many epochs
as fit into half of the minutes, found by a dry run, then `compare` with the same network from random weights. Called
again with the same `--out` it goes on where it was stopped. Python's API alone: the command line's libraries need not
be there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from . import records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("--labelled", default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=8.0, help="of pre-training and comparison together")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--fractions", type=float, nargs="*", default=[0.1, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--finetune-epochs", type=int, default=None)
    options = parser.parse_args()
    run, compared = options.out / "pretrain", options.out / "compare"
    if not (run / "config.yaml").is_file():
        pretrain(options, run)
    else:
        import convspark

        convspark.pretrain(resume=str(run), device=options.device)
    compare(options, run, compared)


def pretrain(options: argparse.Namespace, run: Path) -> None:
    """As many epochs as fit into half of the time."""
    import convspark
    from convspark.pretraining.estimate import estimate

    settings = {name: getattr(options, name) for name in ("model", "size", "batch_size", "compile", "device")}
    hundred = estimate(options.pictures, epochs=100, **settings)
    epochs = max(2, int(100 * options.minutes * 30 / hundred.total_seconds))
    print(f"{epochs} epochs: {hundred.step_seconds:.3f} s a step, {hundred.memory_bytes / 2**30:.1f} GiB", flush=True)
    convspark.pretrain(options.pictures, epochs=epochs, out=str(run), **settings)


def compare(options: argparse.Namespace, run: Path, folder: Path) -> None:
    """Print the verdict, and keep it."""
    import convspark

    if folder.is_dir():
        comparison = convspark.compare(resume=str(folder), device=options.device)
    else:
        comparison = convspark.compare(
            str(run),
            options.labelled or options.pictures,
            fractions=options.fractions,
            seeds=options.seeds,
            epochs=options.finetune_epochs,
            out=str(folder),
            device=options.device,
        )
    print(comparison)
    last = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()
    line = {
        "part": "train",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "commit": records.commit(),
        "asked": {key: str(value) for key, value in vars(options).items()},
        "last_epoch": dict(zip(last[0].split(","), last[-1].split(","), strict=False)),
        "comparison": json.loads((folder / "compare.json").read_text(encoding="utf-8")),
    }
    records.append(records.RESULTS / "gpu_train.jsonl", line)


if __name__ == "__main__":
    main()
