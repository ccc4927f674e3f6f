"""WEIGHTS, as every command here takes them: what a user names becomes a network with those weights in it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..arguments import checked_arguments
from ..data import PLAIN, Pixels
from ..errors import UsageError
from ..model.networks import find_network
from ..model.stages import evaluating
from ..runs.folder import RunFolder
from ..runs.numbers import format_size, normalisation, parse_size
from ..runs.settings import read_part
from ..seeds import Use, counted_seed
from ..trust import check_code
from .paper import image_size_of
from .weights import check_timm_name, load_backbone_weights, read_checkpoint, split_prefix

RANDOM = "random:"


@dataclass(frozen=True)
class Origin:
    """Where a network and its weights come from; a plain record, from which the network is built.

    Attributes:
        weights: what the user named.
        model: the network's name, as `--model` takes it.
        source: what the weights are read from; None for random weights.
        model_args: further arguments of the network.
        size: side of the images that the weights were trained at, if known.
        channels: of their images.
        mean, std: of each channel of their images.
        classes: names of the classes that a classifier among the weights tells apart.
        pixels: how picture files were read.
        crop: share of a picture's shorter side that an export is to see, or "whole".
        partial: whether to go on where the weights leave most of the network, or a whole kind of its tensors, random.
    """

    weights: str
    model: str
    source: str | None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    size: int | str | None = None
    channels: int = 3
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    classes: Sequence[str] = ()
    pixels: Pixels = PLAIN
    partial: bool = False
    crop: float | Literal["whole"] = 1.0

    @property
    def is_random(self) -> bool:
        return self.source is None

    def at_random(self, weights: str) -> "Origin":
        """The same network with random weights, which are called `weights`, and images as it takes them."""
        return replace(self, weights=weights, source=None, classes=())

    def as_record(self) -> dict[str, Any]:
        """Plain values, kept beside weights that were trained further, for `from_record`."""
        return {
            "model": self.model,
            "model_args": dict(self.model_args),
            "size": self.size,
            "channels": self.channels,
            "mean": list(self.mean),
            "std": list(self.std),
            "pixels": self.pixels.as_dict(),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], weights: str, model: str | None = None) -> "Origin":
        """The origin of weights in a file that keeps `as_record` as "network", beside them.

        Args:
            weights: the file.
            model: another name of the network.

        Raises:
            UsageError: the network is of somebody's own code, which nobody has allowed; or it is no such record.
        """
        try:
            known = _Record(**{name: record[name] for name in _RECORDED})
            pixels = Pixels.of_dict(known.pixels)
        except (KeyError, TypeError, UsageError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise UsageError(f"{weights} does not say which network it holds: {reason}") from None
        if model is None:
            check_code(known.model, weights)
        return cls(
            weights,
            model or known.model,
            weights,
            known.model_args,
            known.size,
            known.channels,
            tuple(known.mean),
            tuple(known.std),
            pixels=pixels,
        )

    def build(self, seed: int = 0, drop_path: float = 0.0, *, classifier: bool = False) -> nn.Module:
        """The network with its weights; `seed` of what is random in it.

        Args:
            classifier: whether to keep the classifier that tells `classes` apart; else timm's networks have none.

        Raises:
            UsageError: weights that cannot be read, or none that fits.
        """
        arguments = dict(self.model_args)
        if classifier and self.classes:
            arguments["num_classes"] = len(self.classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(counted_seed(seed, Use.INITIAL_WEIGHTS))
            network = find_network(self.model, self.channels, drop_path, arguments)
        if self.source is not None:
            load_backbone_weights(network, self.source, self.partial)
        return network

    def warning(self) -> str | None:
        """A warning beside the results of these weights, if much of the network stays random; else None."""
        if self.source is None:
            return None
        network = find_network(self.model, self.channels, 0.0, self.model_args)
        return load_backbone_weights(network, self.source, partial=True).warning

    def sides(self, size: int | str | None) -> tuple[int, int]:
        """(height, width) of images of `size`, or if that is None, of the weights' own size, 224 if it is not known."""
        return parse_size((self.size or 224) if size is None else size)

    def check_size(self, network: nn.Module, sides: tuple[int, int]) -> None:
        """Raise UsageError unless the network can be run on images of (height, width)."""
        try:
            with evaluating(network), torch.no_grad():
                network(torch.zeros(1, self.channels, *sides))
        except Exception as error:  # whatever a foreign network raises at a size that it does not take
            raise UsageError(
                f"size is {format_size(sides)}: {self.model} cannot be run on images of {sides[0]}x{sides[1]} pixels "
                f"({str(error).splitlines()[0]}); choose another --size"
            ) from error

    def check_pictures(self) -> None:
        """Raise UsageError unless the network takes 8-bit colour or grey."""
        if not self.pixels.is_plain:
            raise UsageError(
                f"weights is {self.weights!r}, a network of images of {self.channels} channels that are read "
                "unchanged; this command takes only 8-bit colour or grey. Use the network from Python, with your images"
            )


@checked_arguments
def find_weights(weights: str | None, model: str | None = None, partial: bool = False) -> Origin:
    """What WEIGHTS stands for.

    Args:
        weights: a run folder, an export folder, a timm name, a .safetensors, .pth or .ckpt file (`FILE:PREFIX`
            for a part of it), or `random:MODEL`; `random:FOLDER` and `random:FILE` are the network of a run, an export
            or a file with random weights, and images as it takes them.
        model: the network's name, where the weights do not name it.
        partial: see `Origin`.

    Raises:
        UsageError: nothing of that name, or weights that do not say which network they belong to.
    """
    if not weights:
        raise UsageError(
            "weights are missing: give a run folder, an export folder, a timm name, a weights file, or random:MODEL"
        )
    return replace(_origin(weights, model), partial=partial)


def _origin(weights: str, model: str | None) -> Origin:
    if weights.startswith(RANDOM):
        like = weights.removeprefix(RANDOM)
        if Path(like).exists():
            return _origin(like, model).at_random(weights)
        if model not in (None, like):  # a run that goes on knows its network's name, but not how it takes images
            raise UsageError(
                f"weights is {weights!r}, but the network is {model!r}, and there is no folder or file {like!r} here, "
                "which would say how it takes images; run this where it was, or put it back"
            )
        return _known(weights, model or like, None)
    path = Path(weights)
    if (path / "config.yaml").is_file():
        return _of_run(weights, model)
    if path.is_dir():
        return _of_export(weights, model)
    file, prefix = split_prefix(path)
    if Path(file).is_file():
        origin = _of_file(Path(file), model)
        return origin if prefix is None else replace(origin, weights=weights, source=weights)
    return _of_timm(weights, model)


@dataclass(frozen=True)
class _Named:
    """What every run keeps of its network."""

    model: str | None


@dataclass(frozen=True)
class _Sized:
    """What a fine-tuning keeps of its images."""

    size: int | str | None


@dataclass(frozen=True)
class Trained(_Named):
    """What a pre-training keeps of its network and its images."""

    model_args: dict[str, Any] | None
    size: int | str
    channels: int
    mean: list[float]
    std: list[float]
    bands: list[int] | None = field(default=None, metadata={"before": None})
    band_axis: Literal["first", "last"] | None = field(default=None, metadata={"before": None})
    low: list[float] | None = field(default=None, metadata={"before": None})
    high: list[float] | None = field(default=None, metadata={"before": None})

    @property
    def pixels(self) -> Pixels:
        bands = None if self.bands is None else tuple(self.bands)
        low, high = (None if ends is None else tuple(ends) for ends in (self.low, self.high))
        return Pixels(self.channels, bands, self.band_axis, low, high)


def _of_run(weights: str, model: str | None) -> Origin:
    folder = RunFolder.open(weights)
    if folder.kind in ("detect", "segment"):
        file = trained_file(folder)
        if not file.is_file():
            raise UsageError(f"the run {weights} has no {file.name} yet: `{folder.going_on}` finishes it")
        if model is None:
            model = read_part(_Named, folder.config).model
            check_code(model, folder.config)
        return replace(_of_file(file, model), weights=weights)
    if folder.kind == "finetune":
        if not folder.export.is_dir():
            raise UsageError(f"the run {weights} has no export yet; `{folder.going_on}` makes it")
        if model is None:
            model = read_part(_Named, folder.config).model
            check_code(model, folder.config)
        if not (folder.export / "config.json").is_file() and folder.last_checkpoint.is_file():
            # Of a network that timm does not know, the export does not say how it takes images.
            size = read_part(_Sized, folder.config).size
            origin = _of_file(folder.last_checkpoint, model)
            return replace(origin, weights=weights, source=str(folder.export), size=size)
        return replace(_of_export(str(folder.export), model), weights=weights)
    run = read_part(Trained, folder.config)
    if model is None:
        check_code(run.model, folder.config)
    name = model or run.model
    if name is None:
        raise UsageError(f"the run {weights} trained a module of yours, not a name: add --model package.module:factory")
    return Origin(
        weights,
        name,
        weights,
        run.model_args or {},
        run.size,
        run.channels,
        tuple(run.mean),
        tuple(run.std),
        pixels=run.pixels,
    )


def trained_file(folder: RunFolder) -> Path:
    """The file that a run of detect or segment writes at its end."""
    return folder.path / ("detector.pth" if folder.kind == "detect" else "segmenter.pth")


def _of_export(weights: str, model: str | None) -> Origin:
    file = Path(weights) / "config.json"
    if not file.is_file():
        if model is None:
            raise UsageError(
                f"weights is {weights!r}, a folder without config.yaml or config.json: expected a run folder or an "
                "export; if it holds weights of a network of yours, add --model"
            )
        return _known(weights, model, weights)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        described = config.get("pretrained_cfg", config)
        channels, height, width = described["input_size"]
        name = model or config["architecture"]
        size = int(height) if height == width else f"{height}x{width}"
        mean, std = ([float(value) for value in described[key]] for key in ("mean", "std"))
        classes = tuple(map(str, config.get("label_names") or ()))
        pixels = Pixels.of_dict(config.get("pixels", {"channels": channels}))
        arguments = _arguments(config) if name == config.get("architecture") else {}
        crop = "whole" if described.get("crop_mode") == "squash" else float(described.get("crop_pct") or 1)
    except (OSError, KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        raise UsageError(f"{file} is not the config of an export for timm ({error!r})") from None
    if model is None:
        check_code(name, file)
    return Origin(
        weights, name, weights, arguments, size, channels, tuple(mean), tuple(std), classes, pixels, crop=crop
    )


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a network's config says it was built with, besides what is known without it."""
    arguments = {k: v for k, v in (config.get("model_args") or {}).items() if k not in ("num_classes", "in_chans")}
    if not config.get("label_names") or arguments.get("global_pool") == "avg":
        arguments.pop("global_pool", None)  # timm writes it for every network, and only a classifier looks at it
    return arguments


def _of_file(path: Path, model: str | None) -> Origin:
    """A weights file, whose network `model` names, or the export that it lies in, or a checkpoint of the paper."""
    if path.suffix == ".safetensors" and (path.parent / "config.json").is_file():
        try:
            return replace(_of_export(str(path.parent), model), weights=str(path), source=str(path))
        except UsageError:
            if model is None:  # else the config may be of other weights
                raise
    content = read_checkpoint(path) if path.suffix in (".pth", ".pt", ".ckpt") else None
    if isinstance(content, Mapping) and _is_record(content.get("network")):
        return Origin.from_record(content["network"], str(path), model)
    model = model or papers_network(path, content)
    if model is None:
        raise UsageError(f"weights is {str(path)!r}, a file that does not name its network: add --model NETWORK")
    return replace(_known(str(path), model, str(path)), size=_papers_size(path, content))


def _is_record(network: object) -> bool:
    """Whether it is what `Origin.as_record` makes; other code keeps weights by that name."""
    return isinstance(network, Mapping) and all(name in network for name in _RECORDED)


@checked_arguments
@dataclass(frozen=True)
class _Record:
    """What `Origin.as_record` makes."""

    model: str
    model_args: dict[str, Any]
    size: int | str | None
    channels: int
    mean: list[float]
    std: list[float]
    pixels: dict[str, Any]


_RECORDED = tuple(signature(_Record).parameters)


_STYLE = r"_(?:withdecoder_)?1k(?:pretrained|finetuned)"  # what comes after the network in the paper's names of files
_IN_BRIEF = {"S": "small", "B": "base", "L": "large"}


def papers_network(path: Path, content: object) -> str | None:
    """What a checkpoint of the paper's code says of its network, in timm's words; None if nothing.

    Its files are called `resnet50_1kpretrained_timm_style.pth`, and those that were published also
    `res50_withdecoder_1kpretrained_spark_style.pth`, `cnxS224_…`, `convnextL_384_1kpretrained_official_style.pth`.

    Args:
        content: of the file, which may name it.
    """
    import timm

    said = content.get("arch") if isinstance(content, Mapping) else None
    named = re.match(rf"(.+?){_STYLE}", path.name)
    called = named[1] if named else ""
    bare = re.sub(r"_?(224|384)$", "", called)
    residual, brief = re.fullmatch(r"res(\d+)", bare), re.fullmatch(r"(?:cnx|convnext)([SBL])", bare)
    candidates = (
        said,
        called,
        bare,
        residual and f"resnet{residual[1]}",
        brief and f"convnext_{_IN_BRIEF[brief[1]]}",
    )
    return next((name for name in candidates if isinstance(name, str) and timm.is_model(name)), None)


def _papers_size(path: Path, content: object) -> int | None:
    """Side of the images that a checkpoint of the paper's code was trained at; None where it does not say."""
    said = image_size_of(content) if isinstance(content, Mapping) else None
    named = re.match(rf".+?(224|384){_STYLE}", path.name)
    return said if said is not None else int(named[1]) if named else None


def _of_timm(name: str, model: str | None) -> Origin:
    check_timm_name(name)
    return _known(name, model or name.partition(".")[0], name)


def _known(weights: str, model: str, source: str | None) -> Origin:
    """An origin with the normalisation that timm has for these weights, ImageNet's where it has none."""
    import timm

    mean, std = normalisation(3, None, None)
    if source is not None and not Path(source).exists() and timm.is_model(weights.partition(".")[0]):
        config = timm.get_pretrained_cfg(weights)
        if config is not None:
            mean, std = tuple(config.mean), tuple(config.std)
    return Origin(weights, model, source, mean=mean, std=std)
