"""WEIGHTS, as every command here takes them: what a user names becomes a network with those weights in it."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints.weights import load_backbone_weights
from ..errors import UsageError
from ..model.networks import find_network
from ..training.build import read_config
from ..training.module import counted_seed
from ..training.run_folder import RunFolder
from ..training.settings import normalisation

logger = logging.getLogger(__name__)

RANDOM = "random:"
_INITIAL_WEIGHTS = 104  # second word of the seed of random initial weights, as in pre-training


@dataclass(frozen=True)
class Origin:
    """Where a network and its weights come from; a plain record, from which the network is built.

    Attributes:
        given: what the user named.
        model: the network's name, as `--model` takes it.
        source: what the weights are read from; None for random weights.
        model_args: further arguments of the network.
        size: side of the images that the weights were trained at, if known.
        mean, std: of each channel of their images.
    """

    given: str
    model: str
    source: str | None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    size: int | str | None = None
    channels: int = 3
    mean: Sequence[float] = ()
    std: Sequence[float] = ()

    @property
    def is_random(self) -> bool:
        return self.source is None

    def build(self, seed: int = 0, drop_path: float = 0.0) -> nn.Module:
        """The network with its weights, without a classifier where it is timm's; `seed` of what is random in it.

        Raises:
            UsageError: weights that cannot be read, or none that fits.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(counted_seed(seed, _INITIAL_WEIGHTS))
            network = find_network(self.model, self.channels, drop_path, self.model_args)
        if self.source is not None:
            logger.info("%s", load_backbone_weights(network, self.source))
        return network


def find_weights(given: str | None, model: str | None = None) -> Origin:
    """What WEIGHTS stands for.

    Args:
        given: a run folder, an export folder, a timm name, a .safetensors or .pth file, or `random:MODEL`.
        model: the network's name, where the weights do not tell it.

    Raises:
        UsageError: nothing of that name, or weights that do not tell which network they belong to.
    """
    if not given:
        raise UsageError(
            "weights are missing: give a run folder, an export folder, a timm name, a weights file, or random:MODEL"
        )
    if given.startswith(RANDOM):
        return _known(given, model or given.removeprefix(RANDOM), None)
    path = Path(given)
    if (path / "config.yaml").is_file():
        return _of_run(given, model)
    if path.is_dir():
        return _of_export(given, model)
    if path.is_file():
        if model is None:
            raise UsageError(f"weights is {given!r}, a file that does not tell its network: add --model, as resnet50")
        return _known(given, model, given)
    return _of_timm(given, model)


def _of_run(given: str, model: str | None) -> Origin:
    config = read_config(RunFolder.open(given))
    name = model or config["model"]
    if "mean" not in config:  # a fine-tuning
        return replace(_of_export(f"{given}/export", name), given=given)
    if name is None:
        raise UsageError(f"the run {given} trained a module of yours, not a name: add --model package.module:factory")
    return Origin(
        given,
        name,
        given,
        config.get("model_args") or {},
        config.get("size"),
        config.get("channels") or 3,
        tuple(config["mean"]),
        tuple(config["std"]),
    )


def _of_export(given: str, model: str | None) -> Origin:
    file = Path(given) / "config.json"
    if not file.is_file():
        if model is None:
            raise UsageError(
                f"weights is {given!r}, a folder without config.yaml or config.json: expected a run folder or an "
                "export; if it holds weights of a network of yours, add --model"
            )
        return _known(given, model, given)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        described = config.get("pretrained_cfg", config)
        channels, height, width = described["input_size"]
        name = model or config["architecture"]
    except (json.JSONDecodeError, KeyError, ValueError, AttributeError) as error:
        raise UsageError(f"{file} is not the config of an export for timm ({error!r})") from None
    size = height if height == width else f"{height}x{width}"
    return Origin(given, name, given, {}, size, channels, tuple(described["mean"]), tuple(described["std"]))


def _of_timm(given: str, model: str | None) -> Origin:
    from ..model.networks import check_name

    check_name(given)
    return _known(given, model or given.partition(".")[0], given)


def _known(given: str, model: str, source: str | None) -> Origin:
    """With the normalisation that timm has for these weights, ImageNet's where it has none."""
    import timm

    mean, std = normalisation(3, None, None)
    if source is not None and timm.is_model(given.partition(".")[0]):
        config = timm.get_pretrained_cfg(given)
        if config is not None:
            mean, std = tuple(config.mean), tuple(config.std)
    return Origin(given, model, source, mean=mean, std=std)
