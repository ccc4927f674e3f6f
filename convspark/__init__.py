"""Masked-image pre-training for any convolutional network, computing visible patches only."""

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .cli.export import export
    from .cli.reconstruct import reconstruct
    from .model.spark import SparK
    from .sparse import PatchGrid, VisiblePatches, gather, scatter
    from .training.pretrain import pretrain
    from .transfer.compare import Comparison, compare
    from .transfer.detect import detect
    from .transfer.embed import embed
    from .transfer.finetune import finetune
    from .transfer.probe import probe
    from .transfer.segment import segment
    from .trial.check import CheckReport, check

# Loaded on first use, so that `convspark --help` does not wait for torch.
_HOME = {
    "CheckReport": ".trial.check",
    "Comparison": ".transfer.compare",
    "PatchGrid": ".sparse",
    "SparK": ".model.spark",
    "VisiblePatches": ".sparse",
    "check": ".trial.check",
    "compare": ".transfer.compare",
    "detect": ".transfer.detect",
    "embed": ".transfer.embed",
    "export": ".cli.export",
    "finetune": ".transfer.finetune",
    "gather": ".sparse",
    "pretrain": ".training.pretrain",
    "probe": ".transfer.probe",
    "reconstruct": ".cli.reconstruct",
    "scatter": ".sparse",
    "segment": ".transfer.segment",
}

__all__ = [
    "CheckReport",
    "Comparison",
    "PatchGrid",
    "SparK",
    "VisiblePatches",
    "__version__",
    "check",
    "compare",
    "detect",
    "embed",
    "export",
    "finetune",
    "gather",
    "pretrain",
    "probe",
    "reconstruct",
    "scatter",
    "segment",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
