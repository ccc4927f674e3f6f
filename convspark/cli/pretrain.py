"""`convspark pretrain`."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from ..names import in_code, many, shown_text
from ..pretraining.command import pretrain
from ..pretraining.settings import PretrainResult
from ..runs.processes import Processes
from .arguments import Command

_GROUPS = {
    "network": (
        "model_args",
        "channels",
        "patch_size",
        "stages",
        "decoder",
        "decoder_width",
        "densify_norm",
        "drop_path",
    ),
    "ablations": ("masks", "encoding", "levels", "mask_token", "target", "loss_on"),
    "optimisation": (
        "optimizer",
        "learning_rate",
        "base_learning_rate",
        "warmup_epochs",
        "weight_decay",
        "final_weight_decay",
        "betas",
        "gradient_clip",
        "accumulate",
        "device_batch_size",
    ),
    "images": (
        "held_out",
        "held_out_most",
        "check",
        "shuffle",
        "shards_per_epoch",
        "crop_scale",
        "flip",
        "crops_per_image",
        "decode",
    ),
    "values": ("bands", "band_axis", "stats", "low", "high", "mean", "std"),
    "machine": ("seed", "device", "devices", "nodes", "precision", "workers", "compile", "cuda_graph"),
    "watching": ("probe", "watch_epochs", "picture_epochs", "show", "tracker"),
    "what is kept": ("checkpoint_minutes", "keep_epochs"),
}


def command() -> Command:
    command = Command(
        "pretrain",
        pretrain,
        types={"images": str | None, "model": str, "held_out": float | str},
        positional=("images",),
        groups=_GROUPS,
    )
    command.add_config(recipes=True)
    command.add_switch("--print_config", "--print-config", help="print the resolved settings as YAML, and exit")
    command.add_switch("--dry-run", help="show settings, memory, and the time this would take, and exit")
    command.add_switch("--json", help="print the result as JSON")
    return command


def run(arguments: Sequence[str]) -> int:
    parser = command()
    first = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    several = list(arguments[:first])  # `{000..127}.tar`, as a shell writes it out
    options = parser.parse([*several[:1], *arguments[first:]])
    values = parser.values(options)
    if len(several) > 1:
        values["images"] = several
    if options.print_config:
        from ..pretraining.estimate import resolved_config

        config = resolved_config(**values)
        if Processes.here().is_first:
            print(config, end="")
        return 0
    if options.dry_run:
        from ..pretraining.estimate import estimate

        plan = estimate(**values)
        if Processes.here().is_first:
            print(json.dumps(plan.as_dict(), indent=2) if options.json else plan)
        return 0
    code = parser.spread(arguments, options)
    if code is not None:
        return code
    result = pretrain(**values)
    if not Processes.here().is_first:
        return 0
    print(json.dumps(as_dict(result), indent=2) if options.json else shown_text(describe(result)))
    return 0


def as_dict(result: PretrainResult) -> dict[str, Any]:
    """A result as JSON knows it."""
    return {
        "folder": str(result.folder),
        "export": str(result.export.folder),
        "architecture": result.export.architecture,
        "untrained": result.export.untrained,
        "epochs": result.epochs,
        "steps": result.steps,
        "train_loss": result.train_loss,
        "held_out_loss": result.held_out_loss,
        "seconds": round(result.seconds, 1),
        "picture": str(result.picture) if result.picture else None,
    }


def describe(result: PretrainResult) -> str:
    """A result, and what to do next."""
    held_out = "" if result.held_out_loss is None else f", {result.held_out_loss:.4f} on held-out images"
    pictures = [f"  pictures        {result.picture}"] if result.picture else []
    weights = result.export.folder / "model.safetensors"
    load = (
        f"timm.create_model({in_code(f'local-dir:{result.export.folder}')}, pretrained=True, num_classes=N)"
        if result.export.architecture
        else f"network.load_state_dict(safetensors.torch.load_file({in_code(weights)}))"
    )
    run = shlex.quote(str(result.folder))
    lines = [
        f"Done: {many(result.epochs, 'epoch')}, loss {result.train_loss:.4f}{held_out}",
        f"  run             {result.folder}",
        *pictures,
        f"  report          {result.folder / 'report.html'} (for a browser)",
        f"  backbone        {result.export.folder}",
        "Next, in Python:",
        f"  {load}",
        "or:",
        f"  convspark reconstruct {run} PICTURE -o grid.png",
        f"  convspark probe {run} LABELLED        (what it has learnt: LABELLED has a folder for each class)",
    ]
    return "\n".join(lines)
