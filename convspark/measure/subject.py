"""What a user wants to see figures of: a run, a file of weights, a network by name, or a module."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints.origin import RANDOM, Origin, find_weights
from ..checkpoints.whole import Whole, load_whole, why_not_whole
from ..data import PLAIN, Pixels
from ..errors import UsageError
from ..model.spark import SparK
from ..model.stages import Stages
from ..runs.numbers import normalisation, parse_size

_ASLEEP = 1e-3  # the size of scales that training starts at or near 0


@dataclass(frozen=True)
class Subject:
    """A network, and images as it takes them.

    Attributes:
        name: as a caption says it.
        weights: what a caption says of its weights.
        stages: of the network.
        patch_size: side of a patch on each axis, in pixels.
        size: (height, width) of the images.
        mean, std: of each channel.
        mask_ratio: that it was trained with, or the paper's.
        whole: the model with its decoder, or None.
        why_not: why there is none.
    """

    name: str
    weights: str
    stages: Stages
    patch_size: tuple[int, ...]
    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    pixels: Pixels = PLAIN
    mask_ratio: float = 0.6
    whole: Whole | None = None
    why_not: str | None = None


def find_subject(
    network: "str | nn.Module",
    weights: str | None = None,
    model: "str | nn.Module | None" = None,
    size: int | str | None = None,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> Subject:
    """The network of `figures`; see there for the arguments.

    Raises:
        UsageError: no such network or weights, or images of a kind that it does not take.
    """
    arguments = {"weights": weights, "channels": channels, "mean": mean, "std": std}
    if isinstance(network, SparK):
        _refuse(("weights", "channels"), arguments, "a SparK has its own")
        norm = normalisation(network.in_chans, mean, std)
        height, width = network.image_size if size is None else parse_size(size)
        whole = Whole(None, network, (height, width), *norm, Pixels(network.in_chans))
        return _of_whole(whole, type(network.backbone).__name__, "the model's own")
    if isinstance(network, nn.Module):
        _refuse(("weights",), arguments, "a module has its own")
        sides = parse_size(224 if size is None else size)
        stages = Stages(network, None, channels, sides)
        norm = normalisation(stages.in_chans, mean, std)
        own = Subject(type(network).__name__, "the module's own", stages, stages.patch_size, sides, *norm)
        return replace(own, pixels=Pixels(stages.in_chans), why_not="a module has no decoder; pass a SparK")
    if why_not_whole(network) is None:
        _refuse(tuple(arguments), arguments, "a pre-trained model has its own")
        whole = load_whole(network, model)
        whole = whole if size is None else replace(whole, size=parse_size(size))
        return _of_whole(whole, whole.name or type(whole.model.backbone).__name__, network)
    return _of_origin(_origin(network, weights, model, channels, mean, std), size, seed)


def _refuse(names: tuple[str, ...], arguments: dict[str, Any], why: str) -> None:
    wrong = [name for name in names if arguments[name] is not None]
    if wrong:
        raise UsageError(f"{' and '.join(wrong)}: {why}; leave it out")


def _of_whole(whole: Whole, name: str, weights: str) -> Subject:
    model = whole.model
    return Subject(
        name,
        weights,
        model.stages,
        model.patch_size,
        whole.size,
        whole.mean,
        whole.std,
        whole.pixels,
        model.mask_ratio,
        whole,
    )


def _origin(
    network: str,
    weights: str | None,
    model: "str | nn.Module | None",
    channels: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Origin:
    name = model if isinstance(model, str) else None
    tagged = "." in network and ":" not in network  # resnet50.a1_in1k: weights that timm has
    if weights is not None:
        origin = find_weights(weights, network)
    elif Path(network).exists() or tagged or network.startswith(RANDOM):
        origin = find_weights(network, name)
    else:
        origin = find_weights(RANDOM + network)
    if channels is None and mean is None and std is None:
        return origin
    channels = channels or origin.channels
    if mean is None and std is None and channels == origin.channels:
        return origin
    norm = normalisation(channels, mean, std)
    pixels = origin.pixels if channels == origin.channels else Pixels(channels)
    return replace(origin, channels=channels, mean=norm[0], std=norm[1], pixels=pixels)


def _of_origin(origin: Origin, size: int | str | None, seed: int) -> Subject:
    network = origin.build(seed)
    network.eval()
    if origin.is_random:
        awaken(network)
    sides = origin.sides(size)
    stages = Stages(network, None, origin.channels, sides)
    return Subject(
        origin.model,
        "random" if origin.source is None else origin.source,
        stages,
        stages.patch_size,
        sides,
        origin.mean,
        origin.std,
        origin.pixels,
        why_not=why_not_whole(origin.source),
    )


@torch.no_grad()
def awaken(network: nn.Module) -> None:
    """Set the scales of channels that training starts at or near 0 to 1.

    The last norm of a residual block and layer scale start so, and hide all that their blocks do: a network with random
    weights would look like one without these blocks.
    """
    for name, parameter in network.named_parameters():
        scales = parameter.ndim > 0 and parameter.numel() == max(parameter.shape) and not name.endswith("bias")
        if scales and parameter.numel() > 1 and float(parameter.abs().max()) < _ASLEEP:
            parameter.fill_(1.0)
