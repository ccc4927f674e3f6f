"""Backbones by name, and the model of a run from its folder."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ..checkpoints.weights import load_backbone_weights, read_checkpoint
from ..errors import ConvsparkError, UsageError
from ..model.spark import SparK
from .run_folder import RunFolder
from .settings import paper_drop_path, parse_size


def create_backbone(
    name: str,
    *,
    channels: int = 3,
    drop_path: float | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A timm network with random weights and no classifier; nothing is downloaded.

    Args:
        name: timm's name of the architecture.
        channels: channels of the images.
        drop_path: stochastic depth rate; None for the paper's, where it has one.
        model_args: further arguments of `timm.create_model`.

    Raises:
        UsageError: a name that timm does not know (the nearest are suggested), or a network without stochastic depth
            when a rate was given.
    """
    import timm

    check_name(name)
    rate = paper_drop_path(name) if drop_path is None else drop_path
    options: dict[str, Any] = {"num_classes": 0, "in_chans": channels, **(model_args or {})}
    try:
        return timm.create_model(name, pretrained=False, drop_path_rate=rate or None, **options)
    except TypeError as error:
        if "drop_path_rate" in str(error) and rate:
            raise UsageError(
                f"drop_path is {rate}, but {name} has no stochastic depth; leave --drop-path out"
            ) from None
        raise UsageError(f"model is {name!r}, which cannot be built with {options}: {error}") from None
    except (FileNotFoundError, RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        raise UsageError(f"model is {name!r}, which timm cannot build with {options}: {error}") from None


def check_name(name: str) -> None:
    """Raise UsageError, with the nearest names, unless timm knows this one."""
    import timm

    if not (timm.is_model(name.partition(".")[0]) or name.startswith(("local-dir:", "hf-hub:", "hf_hub:"))):
        nearest = get_close_matches(name.lower(), timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "timm.list_models() names them all"
        raise UsageError(f"model is {name!r}, which timm does not know; {hint}")


def build_model(config: Mapping[str, Any], backbone: nn.Module | None = None, *, prove: bool = True) -> SparK:
    """The model that a run's settings describe, around `backbone` or a fresh one of the name they give."""
    if backbone is None:
        if not isinstance(config["model"], str):
            raise UsageError("the run's network is a module of yours, not a timm name: pass it again, as `model=`")
        backbone = create_backbone(
            config["model"],
            channels=config["channels"],
            drop_path=config["drop_path"],
            model_args=config["model_args"],
        )
    return SparK(
        backbone,
        image_size=parse_size(config["size"]),
        mask_ratio=config["mask_ratio"],
        decoder_width=config["decoder_width"],
        densify_norm=config["densify_norm"],
        patch_size=config["patch_size"],
        stages=config["stages"],
        prove=prove,
    )


def initialise(backbone: nn.Module, source: str) -> str:
    """Fill a backbone with existing weights; the sentence to log."""
    return str(load_backbone_weights(backbone, source))


def read_config(folder: RunFolder) -> dict[str, Any]:
    """The settings of a run, as its `config.yaml` has them."""
    try:
        config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"{folder.config} is not valid YAML: {error}") from None
    if not isinstance(config, dict) or "model" not in config:
        raise UsageError(f"{folder.config} is not the config of a run: it names no model")
    return config


def load_run(path: str | Path, backbone: nn.Module | None = None) -> tuple[SparK, dict[str, Any]]:
    """The trained model of a run folder, decoder and all, and the run's settings.

    Args:
        path: the run folder.
        backbone: a module like the one trained, where that was not a timm network.

    Raises:
        UsageError: no such run, or no checkpoint in it yet.
    """
    folder = RunFolder.open(path)
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
