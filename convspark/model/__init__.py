"""SparK itself: a backbone's stages, densify, decoder, target, and the whole model."""

from .backbone import Stages
from .spark import Reconstruction, SparK, SparKOutput

__all__ = ["Reconstruction", "SparK", "SparKOutput", "Stages"]
