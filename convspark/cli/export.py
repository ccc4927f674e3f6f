"""`convspark export`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..errors import UsageError
from .arguments import Command


def export(
    run: str | None = None,
    *,
    to: Literal["timm", "torchvision", "onnx", "detectron2", "mmdet"] = "timm",
    out: str | None = None,
    model: str | None = None,
    size: int | str | None = None,
) -> str:
    """Write a backbone in another library's layout, and check it there.

    Args:
        run: run folder, export folder, timm name, or weights file.
        to: timm (a folder), torchvision, detectron2 or mmdet (a .pth file), or onnx.
        out: file or folder to write; by default MODEL-TO beside the run.
        model: the network's name, for weights that do not tell it.
        size: side of the images in pixels that it is compared at; by default that of pre-training, else 224.
    """
    from ..checkpoints import targets
    from ..checkpoints.export import export_timm
    from ..training.logs import run_log
    from ..training.settings import parse_size
    from ..transfer.weights import find_weights

    if run is None:
        raise UsageError("run is missing: give a run folder, an export folder, a timm name or a weights file")
    with run_log():
        origin = find_weights(run, model)
        sides = parse_size(size or origin.size or 224)
        suffix = {"timm": "", "onnx": ".onnx"}.get(to, ".pth")
        home = Path(run) if Path(run).is_dir() else Path()
        target = Path(out) if out is not None else home / f"{origin.model.replace(':', '_')}-{to}{suffix}"
        if target.exists():
            raise UsageError(f"out is {str(target)!r}, which exists already: choose another --out")
        if not target.absolute().parent.is_dir():
            raise UsageError(f"out is {str(target)!r}: there is no folder {str(target.parent)!r}")
        backbone = origin.build()
        if to == "timm":
            report = export_timm(
                backbone, target, mean=origin.mean, std=origin.std, image_size=sides, card={"weights of": run}
            )
            return f'{target}: {report.tensors} tensors; timm.create_model("local-dir:{target}", pretrained=True)'
        if to == "onnx":
            return str(targets.export_onnx(backbone, target, sides))
        if to == "torchvision":
            return str(targets.export_torchvision(backbone, origin.model, target, sides))
        write = targets.export_detectron2 if to == "detectron2" else targets.export_mmdet
        return str(write(backbone, origin.model, target))


def run(arguments: Sequence[str]) -> int:
    made = Command("export", export, positional=("run",))
    made.add_switch("--json", help="print the result as JSON")
    given = made.parse(arguments)
    text = export(**made.values(given))
    print(json.dumps({"written": text}) if given.json else text)
    return 0
