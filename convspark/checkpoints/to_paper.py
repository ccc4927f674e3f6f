"""Weights as the two files of the paper's code, read back before they are kept.

The files have the names that its pre-training gives them, which name the network; "1k" stands for the pictures of the
paper, and says nothing of ours.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConvsparkError
from ..files import beside, disk_errors, write_text
from ..model.networks import copied
from ..model.stages import Stages
from . import paper
from .card import file_card
from .origin import Origin
from .targets import Written
from .whole import Whole, load_whole, why_not_whole

WITH_DECODER = "{}_withdecoder_1kpretrained_spark_style.pth"
ENCODER = "{}_1kpretrained_timm_style.pth"


def export_paper(
    origin: Origin, folder: str | os.PathLike[str], sides: tuple[int, int], facts: Mapping[str, str]
) -> Written:
    """A folder with the encoder alone, and where the weights have the paper's decoder, the whole model.

    The whole model's file has no state of an optimiser, so that the paper's `--resume_from` goes on with a fresh one.

    Args:
        sides: (height, width) of the images, for the card.
        facts: of the weights, for the card.

    Raises:
        ConvsparkError: what was written could not be read back equal.
    """
    reason = why_not_whole(origin.source)
    whole = load_whole(str(origin.source), origin.model) if reason is None else None
    if whole is not None:
        reason = paper.no_place_for(whole.model)
    backbone = (origin.build() if whole is None else whole.model.backbone).eval()
    untrained = Stages(backbone).untrained if whole is None else whole.model.untrained
    name = origin.model.partition(".")[0] if ":" not in origin.model else origin.model.rpartition(":")[2]
    encoder = paper.backbone_in_layout(backbone, untrained)
    files: dict[str, Mapping[str, Any]] = {ENCODER.format(name): encoder}
    if whole is not None and reason is None:
        files[WITH_DECODER.format(name)] = _content(whole, name, origin.weights)
    target = Path(folder)
    fresh = beside(target)
    checked = f"{len(files)} file{'s' if len(files) > 1 else ''}, read back, every tensor equal"
    if reason is not None:
        checked += f"; no {WITH_DECODER.format(name)}: {reason}"
    use = f'network.load_state_dict(torch.load("{target / ENCODER.format(name)}"), strict=False)'
    if reason is None:
        use += f"\n--init_weight={target / WITH_DECODER.format(name)}"
    card = file_card(origin.model, "the paper's code", use, {**facts, "check": checked}, origin.mean, origin.std, sides)
    try:
        with disk_errors(target):
            fresh.mkdir()
            for file, content in files.items():
                torch.save(content, fresh / file)
                _check(fresh / file, backbone, whole, untrained)
            write_text(fresh / "README.md", card)
            fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    tensors = sum(isinstance(v, Tensor) for c in files.values() for v in c.get("module", c).values())
    return Written(str(target), "paper", tensors, checked, use)


def _content(whole: Whole, name: str, weights: str) -> dict[str, Any]:
    content: dict[str, Any] = {
        "args": f"exported by convspark from {weights}",
        "input_size": whole.size[0],
        "arch": name,
        "performance_desc": "[not known]",
        "module": paper.state_dict(whole.model),
        "is_pretrain": True,
    }
    return content if whole.epoch is None else content | {"epoch": whole.epoch}


def _check(file: Path, backbone: nn.Module, whole: Whole | None, untrained: list[str]) -> None:
    """Read one of the files as any other, into a copy whose weights are spoilt, and compare.

    Raises:
        ConvsparkError: it gives other weights.
    """
    content = torch.load(file, weights_only=True)
    copy = copied(backbone)
    with torch.no_grad():
        for tensor in copy.state_dict().values():
            tensor.zero_()
    if "module" in content and whole is not None:
        expected, loaded = whole.model.state_dict(), paper.load(content, copy).state_dict()
        leave = {f"backbone.{name}" for name in untrained}
    else:
        copy.load_state_dict(paper.backbone_state_dict(content, copy), strict=False)
        expected, loaded, leave = backbone.state_dict(), copy.state_dict(), set(untrained)
    wrong = [n for n in expected if n not in leave and not (n in loaded and torch.equal(loaded[n], expected[n]))]
    if wrong:
        raise ConvsparkError(f"{file.name} gives other weights when it is read back: {', '.join(wrong[:3])}")
