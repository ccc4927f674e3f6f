"""The engine: any convnet, unmodified, on the visible patches of a batch. Imports torch alone."""

from . import meanings  # noqa: F401  (fills the registry)
from .grid import PatchGrid
from .meanings.pointwise import elementwise
from .meanings.whole import whole_images
from .registry import meaning
from .tensor import PerImage, VisiblePatches, as_patches, as_per_image, gather, scatter

__all__ = [
    "PatchGrid",
    "PerImage",
    "VisiblePatches",
    "as_patches",
    "as_per_image",
    "elementwise",
    "gather",
    "meaning",
    "scatter",
    "whole_images",
]
