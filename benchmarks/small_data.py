"""Which settings suit a few thousand pictures: pre-train with each, fine-tune, compare. Resumable.

    python -m benchmarks.small_data DATA [--model resnet18] [--pretrain-epochs 30] [--seeds 3] [--arms NAME …]
    python -m benchmarks.small_data --report

As `benchmarks.ablation`, whose records and tables are of the same kind; the results go to results/small_data.jsonl.
"""

from . import records
from .arms import RANDOM, Arm, experiment

RESULTS = records.RESULTS / "small_data.jsonl"

DEFAULTS = "defaults"

ARMS = [
    Arm(DEFAULTS),
    Arm(RANDOM),
    Arm("crops of 0.35 to 1", {"crop_scale": (0.35, 1.0)}),
    Arm("crops of 0.2 to 1", {"crop_scale": (0.2, 1.0)}),
    Arm("patches of 16", {"patch_size": 16}),
    Arm("patches of 16, dilated", {"patch_size": 16, "model_args": {"output_stride": 16}}),
    Arm("192 pixels", {"size": 192}),
    Arm("192 pixels, crops of 0.35 to 1", {"size": 192, "crop_scale": (0.35, 1.0)}),
    Arm("45 % masked", {"mask_ratio": 0.45}),
    Arm("75 % masked", {"mask_ratio": 0.75}),
    Arm("a rate of 0.003", {"learning_rate": 3e-3}),
    Arm("a rate of 0.02", {"learning_rate": 2e-2}),
    Arm("batches of 32", {"batch_size": 32}),
    Arm("batches of 16", {"batch_size": 16}),
    Arm("batches of 32, 45 % masked", {"batch_size": 32, "mask_ratio": 0.45}),
    Arm("batches of 16, loss on all patches", {"batch_size": 16, "loss_on": "all"}),
    Arm("adamw", {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05, "final_weight_decay": 0.05}),
]


if __name__ == "__main__":
    experiment(__doc__, RESULTS, ARMS, DEFAULTS)
