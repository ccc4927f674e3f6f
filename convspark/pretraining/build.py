"""The model that a run's settings describe: of a network of their name, of yours, or out of the run's folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from ..checkpoints.weights import read_checkpoint
from ..data import Pixels
from ..errors import ConvsparkError, UsageError
from ..model.networks import find_network
from ..model.spark import SparK
from ..runs.folder import RunFolder
from ..runs.numbers import parse_size
from ..runs.settings import read_settings
from ..trust import check_code
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
    """The stochastic depth rate of a run: the one set, or else the paper's for the networks that it trained."""
    if settings.drop_path is not None:
        return settings.drop_path
    return _PAPER_DROP_PATH.get(str(settings.model).partition(".")[0], 0.0)


def build_model(settings: PretrainSettings, backbone: nn.Module | None = None, *, prove: bool = True) -> SparK:
    """The model that a run's settings describe, around `backbone` or a fresh one of the name they give."""
    return SparK(
        named_backbone(settings) if backbone is None else backbone,
        image_size=parse_size(settings.size),
        mask_ratio=settings.mask_ratio,
        decoder=settings.decoder,
        decoder_width=settings.decoder_width,
        densify_norm=settings.densify_norm,
        patch_size=settings.patch_size,
        stages=settings.stages,
        prove=prove,
        encoding=settings.encoding,
        levels=settings.levels,
        mask_token=settings.mask_token,
        target=settings.target,
        loss_on=settings.loss_on,
        masks=settings.masks,
    )


def pixels_of(settings: PretrainSettings, channels: int) -> Pixels:
    """How a run reads files, of whose images its network takes so many channels."""
    bands = None if settings.bands is None else tuple(settings.bands)
    low, high = _for_all(settings.low, channels), _for_all(settings.high, channels)
    return Pixels(channels, bands, settings.band_axis, low, high)


def _for_all(values: Sequence[float] | None, channels: int) -> tuple[float, ...] | None:
    return None if values is None else tuple(values) * (channels if len(values) == 1 else 1)


def check_shown(show: Sequence[int] | None, channels: int) -> None:
    """Raise UsageError unless these are the numbers of a channel, or of three."""
    if show is not None and (len(show) not in (1, 3) or not all(1 <= channel <= channels for channel in show)):
        raise UsageError(
            f"show is {list(show)}: expected three channels or one, counted from 1 to {channels}, as in 3,2,1"
        )


def named_backbone(settings: PretrainSettings) -> nn.Module:
    """The network that a run's settings name, with random weights."""
    if not isinstance(settings.model, str):
        raise UsageError("the run's network is a module of yours, not a name: pass it again, as `model=`")
    return find_network(settings.model, settings.channels, drop_path_of(settings), settings.model_args)


def load_run(path: str | Path, backbone: nn.Module | None = None) -> tuple[SparK, PretrainSettings]:
    """The trained model of a run folder, decoder and all, and the run's settings.

    Args:
        path: the run folder.
        backbone: a module like the one trained, where that was not a timm network.

    Raises:
        UsageError: no such run, or no checkpoint in it yet.
    """
    folder = RunFolder.open(path, PretrainSettings)
    settings = read_settings(PretrainSettings, folder.config)
    if backbone is None:
        check_code(settings.model, folder.config)
    check_code(settings.masks, folder.config)
    if not folder.last_checkpoint.is_file():
        raise UsageError(f"the run {folder.path} has no checkpoint yet; wait for its first one")
    model = build_model(settings, backbone, prove=False)
    content = read_checkpoint(folder.last_checkpoint)
    if not isinstance(content, Mapping) or "state_dict" not in content:
        raise ConvsparkError(f"{folder.last_checkpoint} is not a checkpoint of a run")
    state = cast("Mapping[str, Any]", content["state_dict"])
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    return model.eval(), settings
