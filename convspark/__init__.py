"""Masked-image pre-training for any convolutional network, computing visible patches only."""

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .cli.reconstruct import reconstruct
    from .model.spark import SparK
    from .sparse import PatchGrid, VisiblePatches, gather, scatter
    from .training.pretrain import pretrain
    from .trial.check import CheckReport, check

# Loaded on first use, so that `convspark --help` does not wait for torch.
_HOME = {
    "CheckReport": ".trial.check",
    "PatchGrid": ".sparse",
    "SparK": ".model.spark",
    "VisiblePatches": ".sparse",
    "check": ".trial.check",
    "gather": ".sparse",
    "pretrain": ".training.pretrain",
    "reconstruct": ".cli.reconstruct",
    "scatter": ".sparse",
}

__all__ = [
    "CheckReport",
    "PatchGrid",
    "SparK",
    "VisiblePatches",
    "__version__",
    "check",
    "gather",
    "pretrain",
    "reconstruct",
    "scatter",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
