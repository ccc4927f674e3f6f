"""The model that a run's settings describe: of a network of their name, or of yours."""

from collections.abc import Sequence

from torch import nn

from ..checkpoints.whole import model_of
from ..data import Pixels
from ..errors import UsageError
from ..model.networks import find_network
from ..model.spark import SparK
from .settings import PretrainSettings

# The paper's stochastic depth; networks that are not named start without.
_PAPER_DROP_PATH = {
    "resnet50": 0.05,
    "resnet101": 0.08,
    "resnet152": 0.10,
    "resnet200": 0.15,
    "convnext_small": 0.2,
    "convnext_base": 0.3,
    "convnext_large": 0.4,
}


def drop_path_of(settings: PretrainSettings) -> float:
    """The stochastic depth rate of a run: the one set, or else the paper's for the networks that it trained; 0 leaves
    it to `model_args`, where they have one."""
    if settings.drop_path is not None:
        return settings.drop_path
    if "drop_path_rate" in (settings.model_args or {}):
        return 0.0
    return _PAPER_DROP_PATH.get(str(settings.model).partition(".")[0], 0.0)


def build_model(settings: PretrainSettings, backbone: nn.Module | None = None, *, prove: bool = True) -> SparK:
    """The model that a run's settings describe, around `backbone` or a fresh one of the name they give."""
    return model_of(settings, named_backbone(settings) if backbone is None else backbone, prove=prove)


def pixels_of(settings: PretrainSettings, channels: int) -> Pixels:
    """How a run reads files, of whose images its network takes so many channels."""
    bands = None if settings.bands is None else tuple(settings.bands)
    low, high = _for_all(settings.low, channels), _for_all(settings.high, channels)
    return Pixels(channels, bands, settings.band_axis, low, high)


def _for_all(values: Sequence[float] | None, channels: int) -> tuple[float, ...] | None:
    return None if values is None else tuple(values) * (channels if len(values) == 1 else 1)


def named_backbone(settings: PretrainSettings) -> nn.Module:
    """The network that a run's settings name, with random weights."""
    if not isinstance(settings.model, str):
        raise UsageError("the run's network is a module of yours, not a name: pass it again, as `model=`")
    return find_network(settings.model, settings.channels, drop_path_of(settings), settings.model_args)
