"""A whole pre-trained model, decoder and all: out of a run folder, or out of a file of the paper's code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

from torch import nn

from ..data import PLAIN, Pixels
from ..errors import ConvsparkError, UsageError
from ..model.networks import find_network
from ..model.spark import SparK
from ..runs.folder import RunFolder
from ..runs.numbers import normalisation, parse_size
from ..runs.settings import read_part
from ..trust import check_code
from . import paper
from .origin import Trained, papers_network
from .weights import read_checkpoint


class Described(Protocol):
    """The part of a run's settings that makes a model around its backbone."""

    @property
    def size(self) -> int | str: ...
    @property
    def mask_ratio(self) -> float: ...
    @property
    def decoder(self) -> str: ...
    @property
    def decoder_width(self) -> int | None: ...
    @property
    def densify_norm(self) -> str: ...
    @property
    def patch_size(self) -> int | list[int] | None: ...
    @property
    def stages(self) -> list[str] | None: ...
    @property
    def encoding(self) -> str: ...
    @property
    def levels(self) -> int | None: ...
    @property
    def mask_token(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def loss_on(self) -> str: ...
    @property
    def masks(self) -> str: ...


def model_of(described: Described, backbone: nn.Module, *, prove: bool) -> SparK:
    """The model that settings describe, around a backbone."""
    return SparK(
        backbone,
        image_size=parse_size(described.size),
        mask_ratio=described.mask_ratio,
        decoder=described.decoder,
        decoder_width=described.decoder_width,
        densify_norm=described.densify_norm,
        patch_size=described.patch_size,
        stages=described.stages,
        prove=prove,
        encoding=described.encoding,
        levels=described.levels,
        mask_token=described.mask_token,
        target=described.target,
        loss_on=described.loss_on,
        masks=described.masks,
    )


@dataclass(frozen=True)
class Whole:
    """A pre-trained model, and images as it takes them.

    Attributes:
        name: of its network, as `--model` takes it; None for a module of the user's.
        model: in evaluation mode.
        size: (height, width) of the images.
        mean, std: of each channel.
        pixels: how picture files are read.
        show: the channels to draw, counted from 1; None for the usual ones.
        epoch: the last one trained in, counted from 0; None where it is not known.
    """

    name: str | None
    model: SparK
    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    pixels: Pixels = PLAIN
    show: list[int] | None = None
    epoch: int | None = None


@dataclass(frozen=True, kw_only=True)
class _OfRun(Trained):
    """What a pre-training keeps of its model."""

    mask_ratio: float
    decoder: str = field(metadata={"before": "paper"})
    decoder_width: int | None
    densify_norm: str
    patch_size: int | list[int] | None
    stages: list[str] | None
    show: list[int] | None = field(default=None, metadata={"before": None})
    encoding: str = field(default="sparse", metadata={"before": "sparse"})
    levels: int | None = field(default=None, metadata={"before": None})
    mask_token: str = field(default="learned", metadata={"before": "learned"})
    target: str = field(default="normalised", metadata={"before": "normalised"})
    loss_on: str = field(default="masked", metadata={"before": "masked"})
    masks: str = field(default="random", metadata={"before": "random"})


def why_not_whole(source: str | Path | None) -> str | None:
    """Why what WEIGHTS are read from is no whole model, with a decoder; None if it is one, for `load_whole`.

    Args:
        source: see `Origin`.
    """
    if source is None:
        return "the weights are random, and have no decoder"
    path = Path(source)
    if (path / "config.yaml").is_file():
        folder = RunFolder(path)
        if folder.kind != "pretrain":
            return f"a run of `convspark {folder.kind}` has no decoder"
        there = folder.last_checkpoint.is_file()
        return None if there else f"there is no {folder.last_checkpoint}, which would hold the decoder"
    content = read_checkpoint(path) if path.is_file() and path.suffix in (".pth", ".pt") else None
    return None if isinstance(content, Mapping) and paper.has_decoder(content) else "the weights have no decoder"


def load_whole(source: str | Path, model: "str | nn.Module | None" = None, checkpoint: Path | None = None) -> Whole:
    """The trained model of a run folder, or of a file of the paper's code that has a decoder.

    Args:
        source: the run folder, or the file (`*_withdecoder_1kpretrained_spark_style.pth`).
        model: name of the network, where the file does not name it; or a module like the one trained, where that was
            not a name.
        checkpoint: of the run's, instead of its last.

    Raises:
        UsageError: no such run or file, no checkpoint in it yet, or a file without a decoder.
    """
    if Path(source).is_file():
        return _of_paper(Path(source), model)
    folder = RunFolder.open(source)
    if folder.kind != "pretrain":
        raise UsageError(f"{str(source)!r} is a run of `convspark {folder.kind}`, not of pretrain: it has no decoder")
    described = read_part(_OfRun, folder.config)
    if model is None and described.model is None:
        raise UsageError(f"the run {folder.path} trained a module of yours, not a name: pass it again, as `model=`")
    if model is None:
        check_code(described.model, folder.config)
    check_code(described.masks, folder.config, None)
    file = checkpoint or folder.last_checkpoint
    if not file.is_file():
        raise UsageError(f"the run {folder.path} has no checkpoint yet; wait for its first one")
    if folder.masks.is_file():
        described = replace(described, masks=str(folder.masks))
    backbone = _built(model or described.model, described.channels, described.model_args)
    whole = model_of(described, backbone, prove=False)
    content = read_checkpoint(file)
    if not isinstance(content, Mapping) or "state_dict" not in content:
        raise ConvsparkError(f"{file} is not a checkpoint of a run")
    state = cast("Mapping[str, Any]", content["state_dict"])
    try:
        whole.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    except RuntimeError as error:
        raise UsageError(f"{file} is of another network than this one: {str(error).splitlines()[1].strip()}") from None
    return Whole(
        model if isinstance(model, str) else described.model,
        whole.eval(),
        parse_size(described.size),
        *normalisation(described.channels, described.mean, described.std),
        described.pixels,
        described.show,
        content.get("epoch"),
    )


def _of_paper(file: Path, model: "str | nn.Module | None") -> Whole:
    content = read_checkpoint(file)
    if not isinstance(content, Mapping):
        raise UsageError(f"{file} holds a {type(content).__name__}: expected a dictionary of weights")
    name = papers_network(file, content) if model is None else model
    if name is None:
        raise UsageError(f"{file} does not name its network: add --model NETWORK")
    called = repr(str(file))
    channels = paper.channels_of(content, called)
    whole = paper.load(content, _built(name, channels, None), called=called)
    height, width = whole.image_size
    epoch = content.get("epoch")
    return Whole(
        name if isinstance(name, str) else None,
        whole.eval(),
        (height, width),
        *normalisation(channels, None, None),
        Pixels(channels),
        epoch=epoch if isinstance(epoch, int) else None,
    )


def _built(model: "str | nn.Module | None", channels: int, model_args: Mapping[str, Any] | None) -> nn.Module:
    return model if isinstance(model, nn.Module) else find_network(str(model), channels, 0.0, model_args)
