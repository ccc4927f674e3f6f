"""`convspark finetune`."""

from collections.abc import Sequence

from ..names import shown
from ..tasks.classification.command import finetune
from ..tasks.classification.settings import FinetuneResult
from .arguments import TASK_GROUPS, Command

_GROUPS = {
    "optimisation": (
        "optimizer",
        "base_learning_rate",
        "warmup_epochs",
        "accumulate",
        "device_batch_size",
        "ema_decay",
        *TASK_GROUPS["optimisation"],
    ),
    "pictures": (
        "mixup",
        "cutmix",
        "mix_share",
        "smoothing",
        "policy",
        "policy_kind",
        "interpolation",
        "erase",
        "crop_scale",
        "repeats",
        "eval_crop",
        "val_share",
    ),
    "machine": TASK_GROUPS["machine"],
}


def command() -> Command:
    command = Command("finetune", finetune, positional=("weights", "data"), groups=_GROUPS)
    command.add_config(recipes=True)
    return command.with_json()


def run(arguments: Sequence[str]) -> int:
    return command().answer(arguments, describe)


def describe(result: FinetuneResult) -> str:
    """A result, and where to look."""
    balanced = f"{100 * result.balanced:.1f} % (mean recall of the classes), macro F1 {result.macro_f1:.3f}"
    worst = sorted(result.recall.items(), key=lambda item: item[1])[:3]
    chosen = "" if result.split == "test" else ", by which the epoch was chosen too"
    return "\n".join(
        [
            f"Top-1 {100 * result.top1:.1f} % on {result.pictures} {result.split} pictures{chosen}",
            f"  balanced      {balanced}",
            f"  weakest       {', '.join(f'{shown(name)} {100 * recall:.0f} %' for name, recall in worst)}",
            f"  weights       epoch {result.best['epoch']} of {result.epochs}, {result.best['weights']}",
            f"  run           {result.folder}",
            f"  confusion     {result.folder}/confusion.png",
            f"  classifier    {result.folder}/export",
        ]
    )
