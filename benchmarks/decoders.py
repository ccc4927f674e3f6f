"""Which decoder pre-trains best? Each decoder x seed: pre-train, then fine-tune on few labels; resumable.

    python -m benchmarks.decoders clothing160 --name clothing160 --out runs/decoders
        [--arms random paper lean] [--seeds 0 1 2] [--epochs 20] [--fraction 0.1] [--size 96]

DATA has train/ and val/ (and test/) folders; only train/ is pre-trained on, without its labels. A seed draws the masks,
the crops and the first weights of pre-training, and for fine-tuning the labels, the order and the classifier, the same
for each decoder. An arm may have its own number of epochs (`lean@60`), for comparisons at equal time. Each cell is
a line of benchmarks/results/decoders.jsonl; cells that are there already are not run again. `--table` only prints.
"""

import argparse
from pathlib import Path

from . import records

ARMS = {
    "paper": {"decoder": "paper"},
    "thin": {"decoder": "paper", "decoder_width": 224},
    "lean": {"decoder": "lean"},
    "lean2": {"decoder": "lean2"},
    "depthwise": {"decoder": "depthwise"},
}
"""What a decoder is, as settings of `pretrain`; thin is the paper's at less than half its width (for a ResNet-18)."""


def add_candidates() -> None:
    """Decoders that were tried and are not part of the library."""
    from torch import nn

    from convspark.model import spark
    from convspark.model.lean_decoder import LeanBlock, LeanDecoder
    from convspark.model.norms import CONV, BatchNorm

    class TwoConvs(LeanBlock):
        """A lean block with two 3x3 convs."""

        def __init__(self, in_width, out_width, factor):
            super().__init__(in_width, out_width, factor)
            self.conv2 = CONV[len(factor)](out_width, out_width, kernel_size=3, padding=1, bias=False)
            self.norm3 = BatchNorm(out_width)

        def forward(self, x, group=None):
            return self.norm3(self.conv2(self.act(super().forward(x, group))), group)

    class Depthwise(LeanBlock):
        """A lean block with a depthwise 5x5 and a pointwise conv instead of the 3x3 one."""

        def __init__(self, in_width, out_width, factor):
            super().__init__(in_width, out_width, factor)
            conv = CONV[len(factor)]
            around = conv(out_width, out_width, kernel_size=5, padding=2, groups=out_width, bias=False)
            self.conv = nn.Sequential(around, conv(out_width, out_width, kernel_size=1, bias=False))

    spark.DECODERS["lean2"] = type("Lean2Decoder", (LeanDecoder,), {"block": TwoConvs})
    spark.DECODERS["depthwise"] = type("DepthwiseDecoder", (LeanDecoder,), {"block": Depthwise})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--name", required=True, help="of the data, for the record")
    parser.add_argument("--out", type=Path, required=True, help="where the run folders go")
    parser.add_argument("--record", type=Path, default=records.RESULTS / "decoders.jsonl")
    parser.add_argument("--arms", nargs="+", default=["random", *ARMS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=20, help="of pre-training")
    parser.add_argument("--fraction", type=float, default=0.1, help="of the labels")
    parser.add_argument("--finetune-epochs", type=int, default=50)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        for seed in options.seeds:
            for arm in options.arms:
                if cell(options, arm, seed) is None:
                    run(options, arm, seed)
    print(table(options))


def setting(options: argparse.Namespace, arm: str) -> dict:
    """What distinguishes the cells of one experiment from those of another."""
    name, _, epochs = arm.partition("@")
    return {
        "data": options.name,
        "model": options.model,
        "size": options.size,
        "decoder": name,
        "epochs": 0 if name == "random" else int(epochs or options.epochs),
        "fraction": options.fraction,
        "finetune_epochs": options.finetune_epochs,
    }


def cell(options: argparse.Namespace, arm: str, seed: int) -> dict | None:
    """The line of a cell that was run before."""
    return records.find(options.record, setting(options, arm) | {"seed": seed})


def run(options: argparse.Namespace, arm: str, seed: int) -> None:
    """Pre-train, fine-tune, write the line."""
    import convspark

    add_candidates()
    what = setting(options, arm)
    folder = options.out / f"{options.name}-{options.model}-{options.size}"
    place = folder / f"{what['decoder']}-{what['epochs']}-{seed}"
    weights, pretrained = f"random:{options.model}", {}
    if what["epochs"]:
        settings = ARMS[what["decoder"]] | {"model": options.model, "size": options.size, "epochs": what["epochs"]}
        if (place / "config.yaml").is_file():
            pretraining = convspark.pretrain(resume=str(place))
        else:
            pretraining = convspark.pretrain(
                str(options.data / "train"), out=str(place), seed=seed, picture_epochs=0, held_out=0.05, **settings
            )
        pretrained = {"held_out_loss": pretraining.held_out_loss}
        weights = str(place)
    place = folder / f"{place.name}-finetuned-{options.fraction:g}-{options.finetune_epochs}"
    if (place / "config.yaml").is_file():
        finetuning = convspark.finetune(resume=str(place))
    else:
        finetuning = convspark.finetune(
            weights,
            str(options.data),
            out=str(place),
            size=options.size,
            seed=seed,
            fraction=options.fraction,
            epochs=options.finetune_epochs,
        )
    line = what | {
        "seed": seed,
        "top1": finetuning.top1,
        "balanced": finetuning.balanced,
        "split": finetuning.split,
        "pictures": finetuning.pictures,
        **pretrained,
    }
    records.append(options.record, line)


def table(options: argparse.Namespace) -> str:
    """Mean and spread of each arm, and its differences to the paper's decoder seed by seed, as Markdown."""
    lines = ["| decoder | epochs | top-1, % | minus the paper's, same seeds | held-out loss | seeds |"]
    lines.append("|---|---|---|---|---|---|")
    of = {arm: {s: c for s in options.seeds if (c := cell(options, arm, s)) is not None} for arm in options.arms}
    reference = {s: c for s in options.seeds if (c := cell(options, "paper", s)) is not None}
    for arm, cells in of.items():
        if not cells:
            continue
        apart = [cells[s]["top1"] - reference[s]["top1"] for s in cells if s in reference]
        top1 = records.spread([c["top1"] for c in cells.values()], 100)
        losses = [c["held_out_loss"] for c in cells.values() if "held_out_loss" in c]
        lines.append(
            f"| {arm} | {setting(options, arm)['epochs']} | {top1} | "
            f"{records.spread(apart, 100) if apart and arm != 'paper' else ''} | {records.spread(losses, 1, 3)} | "
            f"{len(cells)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
