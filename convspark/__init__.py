"""Masked-image pre-training for any convolutional network, computing visible patches only."""

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .checkpoints.export import export
    from .measure.check import CheckReport, check
    from .measure.figures import figures
    from .measure.images import ScanReport, scan
    from .model.spark import SparK
    from .pretraining.command import pretrain
    from .pretraining.reconstruct import reconstruct
    from .recipes import recipe
    from .sparse import PatchGrid, VisiblePatches, gather, scatter
    from .tasks.classification.command import finetune
    from .tasks.comparison.command import compare
    from .tasks.comparison.settings import Comparison
    from .tasks.detection.command import detect
    from .tasks.features.embed import embed
    from .tasks.features.probe import probe
    from .tasks.load import load
    from .tasks.segmentation.command import segment

# Loaded on first use, so that `convspark --help` does not wait for torch.
_HOME = {
    "CheckReport": ".measure.check",
    "Comparison": ".tasks.comparison.settings",
    "PatchGrid": ".sparse",
    "ScanReport": ".measure.images",
    "SparK": ".model.spark",
    "VisiblePatches": ".sparse",
    "check": ".measure.check",
    "compare": ".tasks.comparison.command",
    "detect": ".tasks.detection.command",
    "embed": ".tasks.features.embed",
    "export": ".checkpoints.export",
    "figures": ".measure.figures",
    "finetune": ".tasks.classification.command",
    "gather": ".sparse",
    "load": ".tasks.load",
    "pretrain": ".pretraining.command",
    "probe": ".tasks.features.probe",
    "recipe": ".recipes",
    "reconstruct": ".pretraining.reconstruct",
    "scan": ".measure.images",
    "scatter": ".sparse",
    "segment": ".tasks.segmentation.command",
}

__all__ = [
    "CheckReport",
    "Comparison",
    "PatchGrid",
    "ScanReport",
    "SparK",
    "VisiblePatches",
    "__version__",
    "check",
    "compare",
    "detect",
    "embed",
    "export",
    "figures",
    "finetune",
    "gather",
    "load",
    "pretrain",
    "probe",
    "recipe",
    "reconstruct",
    "scan",
    "scatter",
    "segment",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
