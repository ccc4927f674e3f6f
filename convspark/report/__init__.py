"""What a run shows for itself: reconstructions and curves."""

from .curves import loss_curves
from .reconstructions import reconstruction_grid

__all__ = ["loss_curves", "reconstruction_grid"]
