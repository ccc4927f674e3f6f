"""`export`: weights, wherever they are, to a file or folder that another library loads.

The command line's `convspark export` is this function. Its module imports no torch by itself.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..arguments import checked_arguments
from ..errors import UsageError
from ..files import check_local, check_writable, is_taken, write_text
from ..names import in_code

if TYPE_CHECKING:
    from torch import nn

    from .origin import Origin
    from .targets import Written

logger = logging.getLogger(__name__)

_Target = Literal["timm", "torchvision", "onnx", "detectron2", "mmdet", "paper"]


@checked_arguments
def export(
    run: str | None = None,
    *,
    to: _Target = "timm",
    out: str | None = None,
    model: str | None = None,
    partial: bool = False,
    size: int | str | None = None,
) -> "Written":
    """Write a network in another library's layout, check it there, and put a model card beside it.

    The backbone alone; for timm and ONNX with the classifier, where the run is a fine-tuning. For the paper's code also
    the whole model, where the weights have the paper's decoder.

    Args:
        run: run folder, export folder, timm name, or weights file.
        to: timm (a folder), torchvision, detectron2 or mmdet (a .pth file), onnx, or paper (a folder with the files of
            the paper's code).
        out: file or folder to write; by default MODEL-TO beside the run.
        model: the network's name, if the weights do not name it.
        partial: go on even if the weights leave most of the network, or all tensors of one kind, random.
        size: side of the images in pixels with which the written network is compared; by default that of pre-training,
            else 224.
    """
    if run is None:
        raise UsageError("run is missing: give a run folder, an export folder, a timm name or a weights file")
    import torch

    from ..runs.logs import run_log
    from . import targets
    from .card import file_card
    from .origin import find_weights
    from .to_paper import export_paper
    from .to_timm import export_timm

    with run_log(), torch.random.fork_rng(devices=[]):
        origin = find_weights(run, model, partial)
        sides = origin.sides(size)
        suffix = {"timm": "", "paper": "", "onnx": ".onnx"}.get(to, ".pth")
        home = Path(run) if Path(run).is_dir() else Path()
        target = Path(out) if out is not None else home / f"{origin.model.replace(':', '_')}-{to}{suffix}"
        check_local(target)
        if taken := is_taken(target):
            raise UsageError(f"out is {str(target)!r}, {taken}: choose another --out")
        if not target.absolute().parent.is_dir():
            raise UsageError(f"out is {str(target)!r}: there is no folder {str(target.parent)!r}")
        check_writable(target)
        if to == "paper":
            return export_paper(origin, target, sides, _facts(origin, run))
        network = origin.build(classifier=to in ("timm", "onnx"))
        classes = origin.classes if to in ("timm", "onnx") else ()
        facts, untrained = _facts(origin, run), _untrained(network, origin, run)
        if to == "timm":
            report = export_timm(
                network,
                target,
                mean=origin.mean,
                std=origin.std,
                image_size=sides,
                untrained=untrained,
                card=facts,
                classes=list(classes) or None,
                pixels=origin.pixels,
                crop=origin.crop,
            )
            by = "timm" if report.architecture else "torch"
            checked = f"loaded by {by}, features equal to {report.difference:.1e}"
            use = f"timm.create_model({in_code(f'local-dir:{target}')}, pretrained=True)"
            if report.architecture is None:
                use = f"network.load_state_dict(safetensors.torch.load_file({in_code(target / 'model.safetensors')}))"
            return targets.Written(str(target), "timm", report.tensors, checked, use)
        kept = untrained  # in the file
        if to == "onnx":
            _warn_of_untrained(network, origin, untrained)
            written = targets.export_onnx(network, target, sides)
        elif to == "torchvision":
            kept = untrained if origin.model.startswith("torchvision:") else []
            written = targets.export_torchvision(network, origin.model, target, sides)
        else:
            kept = []
            if origin.model_args:  # torchvision's and onnx are compared in their features
                logger.warning(
                    "The network was built with %s, which the file does not say: build %s's so, too, or its features "
                    "are others",
                    dict(origin.model_args),
                    to,
                )
            write = targets.export_detectron2 if to == "detectron2" else targets.export_mmdet
            written = write(network, origin.model, target)
        facts["check"] = written.checked
        card = file_card(origin.model, to, written.use, facts, origin.mean, origin.std, sides, classes, kept)
        write_text(target.with_name(f"{target.name}.md"), card)
        return written


def _facts(origin: "Origin", run: str) -> dict[str, str]:
    """Facts for the card: where the weights are from, and what their own card says."""
    from .card import read_facts

    card = _with_card(run)
    facts = {} if card is None else read_facts(card)
    return {"weights of": origin.weights if not origin.is_random else "none: random", **facts}


def _with_card(run: str) -> Path | None:
    """The folder with the card of WEIGHTS: a run's export, the weights' own, or that around a file; else None."""
    from .card import read_facts

    place = Path(run)
    folders = [place / "export", place, place.parent] if place.exists() else []
    return next(filter(read_facts, folders), None)


def _untrained(network: "nn.Module", origin: "Origin", run: str) -> list[str]:
    """Names of the tensors that pre-training does not reach, by the weights' own card or by the network."""
    from ..model.stages import Stages
    from ..runs.folder import RunFolder
    from .card import read_untrained

    card = _with_card(run)
    if card is not None:
        return read_untrained(card)
    folder = RunFolder(run)  # one that has not ended has no card yet
    unfinished = folder.config.is_file() and folder.kind == "pretrain"
    return list(Stages(network, image_size=origin.sides(None)).untrained) if unfinished else []


def _warn_of_untrained(network: "nn.Module", origin: "Origin", untrained: list[str]) -> None:
    """Warn where outputs of a pre-trained network go through layers that pre-training does not reach."""
    from ..model.stages import Stages

    if untrained and (parts := Stages(network, image_size=origin.sides(None)).untrained_parts):
        logger.warning(
            "The outputs of %s go through %s, which pre-training does not reach and which has random weights: use the "
            "export of a fine-tuning, or cut the network before",
            origin.model,
            ", ".join(parts),
        )
