"""What each part of the method is worth: take it away, pre-train, fine-tune. Resumable: call it again to go on.

    python -m benchmarks.ablation DATA [--model resnet18] [--size 128] [--pretrain-epochs 30] [--seeds 3]
        [--fractions 0.1 1] [--arms NAME …]
    python -m benchmarks.ablation --report     # the tables of docs/ablation.md, of all that was recorded

DATA has train/, val/ (and test/) folders; only train/ is pre-trained on, without its labels. A line for each arm, seed
and share of the labels goes to benchmarks/results/ablation.jsonl.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from . import records
from .arms import RANDOM, Arm, arguments, budget_of, run_all, table

RESULTS = records.RESULTS / "ablation.jsonl"

METHOD = "the method"

ARMS = [
    Arm(METHOD),
    Arm(RANDOM),
    Arm("zeros instead of sparse encoding", {"encoding": "zero"}),
    Arm("1 level", {"levels": 1}),
    Arm("2 levels", {"levels": 2}),
    Arm("3 levels", {"levels": 3}),
    Arm("raw pixels", {"target": "raw"}),
    Arm("loss on all patches", {"loss_on": "all"}),
    Arm("mask token of zeros", {"mask_token": "zero"}),
    Arm("masks in blocks", {"masks": "blocks"}),
    Arm("30 % masked", {"mask_ratio": 0.3}),
    Arm("45 % masked", {"mask_ratio": 0.45}),
    Arm("75 % masked", {"mask_ratio": 0.75}),
    Arm("90 % masked", {"mask_ratio": 0.9}),
    Arm("patches of 64", {"patch_size": 64}),
    Arm("the paper's decoder", {"decoder": "paper"}),
]


def main() -> None:
    assert __doc__ is not None
    asked = arguments(__doc__).parse_args()
    if not asked.report:
        arms = [arm for arm in ARMS if not asked.arms or arm.name in asked.arms]
        run_all(RESULTS, budget_of(asked), arms, asked.seeds, asked.out)
    print(report(records.read(RESULTS), ARMS, METHOD))


def report(lines: list[dict[str, Any]], arms: Sequence[Arm], to: str) -> str:
    """A table for each data set, network, budget and share of the labels."""
    shown, known = [], ("data", "model", "size", "pretrain_epochs", "finetune_epochs", "fraction")

    def setting(line: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(line[key] for key in known)

    for key, group in groupby(sorted(lines, key=setting), setting):
        of = list(group)
        data, model, size, pretrain_epochs, finetune_epochs, fraction = key
        shown.append(
            f"{data}, {model} at {size} pixels, {pretrain_epochs} epochs of pre-training, fine-tuned with "
            f"{100 * fraction:g} % of the labels ({of[0]['labels']}; {finetune_epochs} epochs of all), measured on "
            f"{of[0]['pictures']} {of[0]['split']} pictures"
        )
        shown.append(table(of, [arm.name for arm in arms], to))
    return "\n\n".join(shown)


if __name__ == "__main__":
    main()
