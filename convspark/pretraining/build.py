"""Backbones by name, and the model of a run from its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoints.weights import load_backbone_weights, read_checkpoint
from ..errors import ConvsparkError, UsageError
from ..model.networks import find_network
from ..model.spark import SparK
from ..runs.folder import RunFolder, read_config
from ..runs.settings import drop_path_of, parse_size


def build_model(config: Mapping[str, Any], backbone: nn.Module | None = None, *, prove: bool = True) -> SparK:
    """The model that a run's settings describe, around `backbone` or a fresh one of the name they give."""
    if backbone is None:
        backbone = named_backbone(config)
    return SparK(
        backbone,
        image_size=parse_size(config["size"]),
        mask_ratio=config["mask_ratio"],
        decoder=config.get("decoder", "paper"),  # runs of old had no other
        decoder_width=config["decoder_width"],
        densify_norm=config["densify_norm"],
        patch_size=config["patch_size"],
        stages=config["stages"],
        prove=prove,
    )


def named_backbone(config: Mapping[str, Any]) -> nn.Module:
    """The network that a run's settings name, with random weights."""
    if not isinstance(config["model"], str):
        raise UsageError("the run's network is a module of yours, not a name: pass it again, as `model=`")
    return find_network(config["model"], config["channels"], drop_path_of(config), config["model_args"])


def initialise(backbone: nn.Module, source: str) -> str:
    """Fill a backbone with existing weights; the sentence to log."""
    return str(load_backbone_weights(backbone, source))


def load_run(path: str | Path, backbone: nn.Module | None = None) -> tuple[SparK, dict[str, Any]]:
    """The trained model of a run folder, decoder and all, and the run's settings.

    Args:
        path: the run folder.
        backbone: a module like the one trained, where that was not a timm network.

    Raises:
        UsageError: no such run, or no checkpoint in it yet.
    """
    folder = RunFolder.open(path, "pretrain")
    config = read_config(folder)
    if not folder.last_checkpoint.is_file():
        raise UsageError(f"the run {folder.path} has no checkpoint yet; wait for its first one")
    model = build_model(config, backbone, prove=False)
    content = read_checkpoint(folder.last_checkpoint)
    if not isinstance(content, Mapping) or "state_dict" not in content:
        raise ConvsparkError(f"{folder.last_checkpoint} is not a checkpoint of a run")
    prefix = "model."
    state = {name.removeprefix(prefix): value for name, value in content["state_dict"].items()}
    model.load_state_dict(state)
    return model.eval(), config
