"""Which decoder pre-trains best? Each decoder x seed: pre-train, then fine-tune on few labels; resumable.

    python -m benchmarks.decoders clothing160 --name clothing160 --out runs/decoders
        [--arms random paper lean] [--seeds 0 1 2] [--epochs 20] [--fraction 0.1] [--size 96]

DATA has train/ and val/ (and test/) folders; only train/ is pre-trained on, without its labels. A seed draws the masks,
the crops and the first weights of pre-training, and for fine-tuning the labels, the order and the classifier, the same
for each decoder. An arm may be given its own number of epochs (`lean@60`), for comparisons at equal time. Each cell is
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
    asked = parser.parse_args()
    if not asked.table:
        for seed in asked.seeds:
            for arm in asked.arms:
                if cell(asked, arm, seed) is None:
                    run(asked, arm, seed)
    print(table(asked))


def setting(asked: argparse.Namespace, arm: str) -> dict:
    """What tells the cells of one experiment from those of another."""
    name, _, epochs = arm.partition("@")
    return {
        "data": asked.name,
        "model": asked.model,
        "size": asked.size,
        "decoder": name,
        "epochs": 0 if name == "random" else int(epochs or asked.epochs),
        "fraction": asked.fraction,
        "finetune_epochs": asked.finetune_epochs,
    }


def cell(asked: argparse.Namespace, arm: str, seed: int) -> dict | None:
    """The line of a cell that was run before."""
    return records.find(asked.record, setting(asked, arm) | {"seed": seed})


def run(asked: argparse.Namespace, arm: str, seed: int) -> None:
    """Pre-train, fine-tune, write the line."""
    import convspark

    add_candidates()
    what = setting(asked, arm)
    folder = asked.out / f"{asked.name}-{asked.model}-{asked.size}"
    weights, pretrained = f"random:{asked.model}", {}
    if what["epochs"]:
        place = folder / f"{arm}-{seed}"
        settings = ARMS[what["decoder"]] | {"model": asked.model, "size": asked.size, "epochs": what["epochs"]}
        if (place / "config.yaml").is_file():
            done = convspark.pretrain(resume=str(place))
        else:
            done = convspark.pretrain(
                str(asked.data / "train"), out=str(place), seed=seed, picture_epochs=0, held_out=0.05, **settings
            )
        pretrained = {"held_out_loss": done.held_out_loss}
        weights = str(place)
    place = folder / f"{arm}-{seed}-finetuned"
    if (place / "config.yaml").is_file():
        found = convspark.finetune(resume=str(place))
    else:
        found = convspark.finetune(
            weights,
            str(asked.data),
            out=str(place),
            size=asked.size,
            seed=seed,
            fraction=asked.fraction,
            epochs=asked.finetune_epochs,
        )
    line = what | {
        "seed": seed,
        "top1": found.top1,
        "balanced": found.balanced,
        "split": found.split,
        "pictures": found.pictures,
        **pretrained,
    }
    records.append(asked.record, line)


def table(asked: argparse.Namespace) -> str:
    """Mean and spread of each arm, and its differences to the paper's decoder seed by seed, as Markdown."""
    lines = ["| decoder | epochs | top-1, % | less the paper's, same seeds | held-out loss | seeds |"]
    lines.append("|---|---|---|---|---|---|")
    of = {arm: {s: c for s in asked.seeds if (c := cell(asked, arm, s)) is not None} for arm in asked.arms}
    reference = {s: c for s in asked.seeds if (c := cell(asked, "paper", s)) is not None}
    for arm, cells in of.items():
        if not cells:
            continue
        apart = [cells[s]["top1"] - reference[s]["top1"] for s in cells if s in reference]
        losses = [c["held_out_loss"] for c in cells.values() if "held_out_loss" in c]
        lines.append(
            f"| {arm} | {setting(asked, arm)['epochs']} | {records.spread([c['top1'] for c in cells.values()], 100)} | "
            f"{records.spread(apart, 100) if apart and arm != 'paper' else ''} | {records.spread(losses, 1, 3)} | "
            f"{len(cells)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
