"""Does pre-training on a folder's own pictures help to classify them? Pre-trains, probes and compares; resumable.

    python -m benchmarks.transfer DATA --out runs/evidence --name clothing160 [--model resnet18] [--size 128]
        [--decoder lean] [--pretrain-epochs 80] [--epochs 15] [--fractions 0.1 1] [--seeds 3]
        [--against random imagenet]

DATA has train/, val/ (and test/) folders; only train/ is pre-trained on, without its labels. Call it again to go on, or
with other --fractions, --epochs, --seeds or --against to compare the same pre-trained weights once more. At the end a
line goes to benchmarks/results/transfer.jsonl.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import convspark
from convspark.runs.device import choose_device, describe_device

from . import records

RESULTS = records.RESULTS / "transfer.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of the data, for the record")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--decoder", default="lean", help="of pre-training")
    parser.add_argument("--pretrain-epochs", type=int, default=80)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--against", nargs="+", default=["random"], help="as of `convspark compare`")
    options = parser.parse_args()
    options.out /= f"{options.model}-{options.size}-{options.decoder}-{options.pretrain_epochs}"  # of what is compared
    options.out.mkdir(parents=True, exist_ok=True)

    run = options.out / "pretrained"
    if not (run / "export" / "model.safetensors").is_file():
        if (run / "config.yaml").is_file():
            convspark.pretrain(resume=str(run))
        else:
            settings = {name: getattr(options, name) for name in ("model", "size", "decoder")}
            settings["epochs"] = options.pretrain_epochs
            convspark.pretrain(str(options.data / "train"), out=str(run), **settings)
    probe_file = options.out / "probe.json"
    if not probe_file.is_file():
        report = convspark.probe(str(run), str(options.data))
        probe_file.write_text(json.dumps(asdict(report), indent=2))
        print(report)
    others = "".join(f"-{other}" for other in options.against if other != "random")
    fractions = "-".join(map(str, options.fractions))
    folder = options.out / f"comparison-of-{fractions}-for-{options.epochs}-{options.seeds}{others}"
    if (folder / "compare.yaml").is_file():
        comparison = convspark.compare(resume=str(folder))
    else:
        settings = {name: getattr(options, name) for name in ("against", "fractions", "seeds", "epochs")}
        comparison = convspark.compare(str(run), str(options.data), out=str(folder), **settings)
    print(comparison)
    record(options, comparison, json.loads(probe_file.read_text()))


def record(options: argparse.Namespace, comparison: convspark.Comparison, probed: dict) -> None:
    """A line with the figures, the settings, the date and the machine."""
    line = {
        "data": options.name,
        "model": options.model,
        "size": options.size,
        "decoder": options.decoder,
        "pretrain_epochs": options.pretrain_epochs,
        "epochs_at_all_labels": options.epochs,
        "device": describe_device(choose_device()),
        "split": comparison.split,
        "pictures": comparison.pictures,
        "scores": [asdict(score) for score in comparison.scores],
        "differences": [asdict(difference) for difference in comparison.differences],
        "verdict": comparison.verdict,
        "probe": {("pre-trained" if "random" not in n else "random"): s for n, s in probed["scores"].items()},
    }
    records.append(RESULTS, line)


if __name__ == "__main__":
    main()
