"""SparK itself: a backbone's stages, densify, decoder, target, and the whole model."""

from .spark import Reconstruction, SparK, SparKOutput
from .stages import Stages

__all__ = ["Reconstruction", "SparK", "SparKOutput", "Stages"]
