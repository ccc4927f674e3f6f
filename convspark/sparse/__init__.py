"""The engine: any convnet, unmodified, on the visible patches of a batch. Imports torch alone."""

from . import functions  # noqa: F401  (fills the registry)
from .functions.pointwise import elementwise
from .functions.whole import whole_images
from .grid import PatchGrid
from .patches import PerImage, VisiblePatches, as_patches, as_per_image, gather, scatter
from .registry import meaning

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
