"""What each part of the method is worth: take it away, pre-train, fine-tune. Resumable: call it again to go on.

    python -m benchmarks.ablation DATA [--model resnet18] [--size 128] [--pretrain-epochs 30] [--seeds 3]
        [--fractions 0.1 1] [--arms NAME …]
    python -m benchmarks.ablation --report     # the tables of docs/ablation.md, of all that was recorded

DATA has train/, val/ (and test/) folders; only train/ is pre-trained on, without its labels. A line for each arm, seed
and share of the labels goes to benchmarks/results/ablation.jsonl.
"""

from . import records
from .arms import RANDOM, Arm, experiment

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


if __name__ == "__main__":
    experiment(__doc__, RESULTS, ARMS, METHOD)
