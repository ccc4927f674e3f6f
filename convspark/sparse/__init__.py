"""The engine: any convnet, unmodified, on the visible patches of a batch. Imports torch alone."""

from . import functions  # noqa: F401  (fills the registry)
from .functions.pointwise import elementwise
from .grid import PatchGrid
from .patches import PerImage, VisiblePatches, gather, scatter
from .registry import meaning

__all__ = ["PatchGrid", "PerImage", "VisiblePatches", "elementwise", "gather", "meaning", "scatter"]
