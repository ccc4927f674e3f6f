"""`bench`: what visible patches cost beside whole images and beside mask-and-multiply, on this machine."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import NotExactError, UsageError
from ..kernels.cpu.build import library_is_there
from ..model.find_stages import CallBackbone
from ..model.networks import find_network
from ..model.spark import SparK, check_mask_ratio
from ..model.stages import Stages
from ..model.strides import as_text, sides_of, times
from ..model.target import reconstruction_loss
from ..names import many
from ..runs.device import Precision, choose_device, choose_precision, describe_device
from ..runs.graphs import Graphed, Loss
from ..runs.optimizer import build_optimizer, parameter_groups, set_rates
from ..sparse import PatchGrid, VisiblePatches, gather
from ..sparse.proof.prove import in_float64
from .mask_and_multiply import MaskAndMultiply
from .timing import Measured, compare

Way = Literal["dense", "mask-and-multiply", "visible only"]
Part = Literal["encoder", "step"]

DENSE: Way = "dense"
IMITATED: Way = "mask-and-multiply"
VISIBLE: Way = "visible only"

_AGREEMENT = 1e-6  # of features in float64, relative to the largest


@dataclass(frozen=True)
class BenchReport:
    """What `bench` measured; `str()` is a page to read."""

    network: str
    image_size: tuple[int, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    mask_ratio: float
    visible_share: float
    """Visible patches over all patches: the limit of what leaving out the masked ones can save."""
    precision: str
    compiled: bool
    device: str
    threads: int | None
    """Of the CPU; None on a GPU."""
    compiled_kernels: bool
    """Whether convolutions of visible patches ran by our own kernels, which are for CPUs."""
    torch: str
    repeats: int
    decoder: str
    decoder_width: int
    encoder: dict[Way, Measured]
    """Forward and backward through the backbone's stages, index tables included."""
    step: dict[Way, Measured]
    """The whole step of pre-training: encoder, decoder, loss, backward, optimiser; empty if `parts` leaves it out."""
    not_imitated: str | None
    """Why mask-and-multiply was not measured."""

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON knows it, with the shares that the page shows."""
        rows = {
            part: {
                name: one._asdict()
                | {
                    "images_per_second": self.batch_size / one.seconds,
                    "share_of_dense": one.seconds / ways[DENSE].seconds,
                    "memory_share_of_dense": one.peak_bytes / max(1, ways[DENSE].peak_bytes),
                }
                for name, one in ways.items()
            }
            for part, ways in (("encoder", self.encoder), ("step", self.step))
        }
        return asdict(self) | rows

    def __str__(self) -> str:
        return "\n".join(_page(self))


def bench(
    network: str | nn.Module,
    *,
    size: int | Sequence[int] = 224,
    channels: int | None = None,
    batch_size: int = 16,
    mask_ratio: float = 0.6,
    precision: Precision = "auto",
    compile: bool = False,
    device: str = "auto",
    repeats: int = 5,
    patch_size: int | Sequence[int] | None = None,
    stages: Sequence[str] | None = None,
    decoder: str = "lean",
    decoder_width: int | None = None,
    call: CallBackbone | None = None,
    parts: Sequence[Part] = ("encoder", "step"),
) -> BenchReport:
    """Measure an encoder step and a whole step of pre-training three ways, in turn, and their memory.

    Dense: the network on whole images. Mask-and-multiply: on whole images, masked positions set to 0 wherever something
    looks around, norms over visible positions. Visible only: what convspark does. All three share the network, its
    decoder and the optimiser, get a new mask in each step, and differ in nothing else.

    Args:
        network: timm name, `torchvision:NAME`, `package.module:factory`, or the module itself, whose parameters are
            trained in the course of this.
        size: side of the images in pixels, or one a dimension.
        channels: channels of the images.
        batch_size: images of a step.
        mask_ratio: share of the patches that is masked; 0 shows what the machinery itself costs.
        precision: of the computation; auto is bf16 where the device has instructions for it.
        compile: run dense and visible only through torch.compile, visible only as one graph (`fullgraph=True`);
            Dynamo cannot trace the mode that mask-and-multiply is.
        device: auto, cpu, cuda or mps.
        repeats: steps of each kind; their median counts.
        patch_size: side of a patch in pixels, or one a dimension; by default the network's total stride.
        stages: names of the network's modules to decode, finest first, as for `SparK`.
        decoder, decoder_width: as for `SparK`.
        call: how to call the network on images, as for `SparK`.
        parts: what to measure.

    Raises:
        UsageError: an argument that cannot be used.
        NotExactError: the network cannot run on visible patches.
    """
    if batch_size < 1 or repeats < 1:
        raise UsageError(f"batch_size is {batch_size} and repeats {repeats}: expected 1 or more of each")
    where = choose_device(device)
    lower = choose_precision(precision, where)
    name = network if isinstance(network, str) else type(network).__name__
    backbone = find_network(network, channels) if isinstance(network, str) else network
    dims = Stages(backbone, stages, channels, size if isinstance(size, Sequence) else None, patch_size, call).dims
    sides = sides_of(size, dims, "size")
    model = SparK(
        backbone,
        image_size=sides,
        mask_ratio=mask_ratio or 0.5,
        patch_size=patch_size,
        stages=stages,
        in_chans=channels,
        decoder=decoder,
        decoder_width=decoder_width,
        call=call,
    )
    shape = model.grid_shape(sides)
    if mask_ratio:
        check_mask_ratio(mask_ratio, shape)
    model.mask_ratio = mask_ratio
    reason = _disagreement(model, mask_ratio)
    layout = torch.channels_last if len(sides) == 2 else torch.channels_last_3d
    model.to(where).train()
    if len(sides) == 2:
        model.to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, model.in_chans, *sides, generator=torch.Generator().manual_seed(0))
    trial = Trial(model, images.to(where).contiguous(memory_format=layout), shape, lower, compile)
    ways: list[Way] = [DENSE, *([IMITATED] if reason is None else []), VISIBLE]
    with torch.random.fork_rng([where] if where.type == "cuda" else []):
        torch.manual_seed(0)
        steps = {"encoder": trial.encoder_step, "step": trial.whole_step}
        measured = {part: compare({way: steps[part](way) for way in ways}, repeats, where) for part in parts}
    grid = PatchGrid.random(1, shape, mask_ratio)
    return BenchReport(
        network=name,
        image_size=sides,
        patch_size=model.patch_size,
        batch_size=batch_size,
        mask_ratio=mask_ratio,
        visible_share=grid.num_visible / grid.slots.shape[0],
        precision=lower,
        compiled=compile,
        device=describe_device(where),
        threads=torch.get_num_threads() if where.type == "cpu" else None,
        compiled_kernels=where.type == "cpu" and library_is_there(),
        torch=torch.__version__,
        repeats=repeats,
        decoder=decoder,
        decoder_width=model.decoder_width,
        encoder=measured.get("encoder", {}),  # type: ignore[arg-type]
        step=measured.get("step", {}),  # type: ignore[arg-type]
        not_imitated=reason,
    )


class Trial:
    """Steps of one model on one batch, each with a new mask.

    Args:
        model: on its device, in training mode.
        images: (B, C, H, W).
        shape: patches along each side.
        precision: fp32 or bf16.
        compiled: all but mask-and-multiply through torch.compile.
        graphed: whole steps replayed as CUDA graphs, but for mask-and-multiply, which makes the host wait.

    Attributes:
        losses: of a whole step, by way; `Graphed` where it is to be replayed.
    """

    def __init__(
        self,
        model: SparK,
        images: Tensor,
        shape: tuple[int, ...],
        precision: str,
        compiled: bool,
        graphed: bool = False,
    ) -> None:
        self.model, self.images, self.shape = model, images, shape
        self.bf16 = precision == "bf16"
        named = model.backbone.named_parameters()
        self.parameters = [p for n, p in named if n not in set(model.untrained) and p.requires_grad]
        left_out = frozenset(model._ddp_params_and_buffers_to_ignore)
        self.optimizer = build_optimizer(parameter_groups(model, left_out))
        set_rates(self.optimizer, 1e-4, 0.04)
        ways = (DENSE, IMITATED, VISIBLE)
        self._features = {way: self._prepared(way, self._features_of(way), compiled) for way in ways}
        self.losses = {way: self._prepared(way, self._loss_of(way), compiled, graphed) for way in ways}
        self._slopes: dict[Way, list[Tensor]] = {}

    def encoder_step(self, way: Way) -> Callable[[], None]:
        """Forward, and backward from gradients of the features as a decoder would send them."""

        def run() -> None:
            with self._precision():
                features = [f for f in self._features[way](self._grid()) if f.requires_grad]  # else frozen
            if way not in self._slopes:
                self._slopes[way] = [torch.full_like(f.detach(), 1e-3) for f in features]
            if features:
                torch.autograd.grad(features, self.parameters, self._slopes[way], allow_unused=True)

        return run

    def whole_step(self, way: Way) -> Callable[[], None]:
        def run() -> None:
            with self._precision():
                loss = self.losses[way](self.images, self._grid())
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return run

    def _grid(self) -> PatchGrid:
        return PatchGrid.random(len(self.images), self.shape, self.model.mask_ratio, device=self.images.device)

    def _precision(self) -> Any:
        return torch.autocast(self.images.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def _prepared(
        self, way: Way, function: Callable[..., Any], compiled: bool, graphed: bool = False
    ) -> Callable[..., Any]:
        if graphed and way != IMITATED:
            return Graphed(function, self.model)
        if not compiled or way == IMITATED:
            return function
        return torch.compile(function, fullgraph=way == VISIBLE, dynamic=False)

    def _features_of(self, way: Way) -> Callable[[PatchGrid], Sequence[Tensor]]:
        def features(grid: PatchGrid) -> Sequence[Tensor]:
            return [_plain(f) for f in features_by(way, self.model.stages, self.images, grid)]

        return features

    def _loss_of(self, way: Way) -> Loss:
        """The three differ in how features come about; the rest of the step is one and the same."""

        def loss(images: Tensor, grid: PatchGrid) -> Tensor:
            grid = grid.afresh()  # or else a compiled dense network would leave index tables in this one
            features = features_by(way, self.model.stages, images, grid)
            visible = [f if isinstance(f, VisiblePatches) else gather(f, grid) for f in features]
            prediction = self.model.decode(visible)
            return reconstruction_loss(images, prediction, grid.visible, self.model.patch_size)

        return loss


def features_by(way: Way, stages: Stages, images: Tensor, grid: PatchGrid) -> Sequence[Tensor]:
    """The features of each stage: whole maps, or visible patches."""
    if way == DENSE:
        return stages(images)
    if way == VISIBLE:
        return stages(gather(images, grid.afresh()))
    with MaskAndMultiply(grid) as imitation:
        return stages(imitation.masked(images))


def _disagreement(model: SparK, mask_ratio: float) -> str | None:
    """Why mask-and-multiply is not to be measured: in float64 its features are not those of visible patches."""
    stages = model.stages
    sides = [4 * p for p in model.patch_size]
    images = torch.randn(2, model.in_chans, *sides, dtype=torch.float64, device=stages.device)
    grid = PatchGrid.random(2, [4] * stages.dims, mask_ratio, device=stages.device)
    before = {name: buffer.clone() for name, buffer in model.backbone.named_buffers()}
    try:
        with in_float64(model.backbone, training=True), torch.no_grad(), torch.random.fork_rng():
            ours = features_by(VISIBLE, stages, images, grid)
            theirs = features_by(IMITATED, stages, images, grid)
            apart = max(_apart(_plain(a), _plain(gather(b, grid))) for a, b in zip(ours, theirs, strict=True))
    except NotExactError:
        raise
    except Exception as error:  # whatever a network does that mask-and-multiply does not foresee
        return f"{type(error).__name__}: {error}"
    finally:
        with torch.no_grad():
            for name, buffer in model.backbone.named_buffers():
                buffer.copy_(before[name])
    return (
        None if apart <= _AGREEMENT else f"its features are off by {apart:.1g}: this network has layers unknown to it"
    )


def _apart(features: Tensor, expected: Tensor) -> float:
    return float((features - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _plain(feature: Tensor) -> Tensor:
    return feature.values if isinstance(feature, VisiblePatches) else feature


# ------------------------------------------------------------------------------------------------ the page


def _page(report: BenchReport) -> list[str]:
    where = report.device if report.threads is None else f"{report.device}, {many(report.threads, 'thread')}"
    how = f"{report.precision}, torch {report.torch}"
    if report.threads is not None and not report.compiled_kernels:
        how += ", without the compiled kernels"
    lines = [
        f"{report.network}: {many(report.batch_size, 'image')} of {times(report.image_size)}, "
        f"{report.mask_ratio:.0%} masked, patches of {as_text(report.patch_size)}",
        f"{where}, {how}; medians of {report.repeats}, in turn",
    ]
    if report.compiled:
        lines.append("dense and visible only compiled, the latter as one graph for all masks; mask-and-multiply is not")
    titles = (
        ("Encoder, forward and backward", report.encoder),
        (
            f"Whole step of pre-training ({report.decoder} decoder of width {report.decoder_width}, optimiser)",
            report.step,
        ),
    )
    for title, ways in titles:
        if not ways:
            continue
        dense = ways[DENSE]
        lines += ["", title, f"  {'':20}{'time':>10}{'of dense':>10}{'images/s':>10}{'memory':>12}{'of dense':>10}"]
        for name, one in ways.items():
            lines.append(
                f"  {name:20}{one.seconds:8.3f} s{one.seconds / dense.seconds:10.2f}"
                f"{report.batch_size / one.seconds:10.1f}{one.peak_bytes / 2**20:8.0f} MiB"
                f"{one.peak_bytes / max(1, dense.peak_bytes):10.2f}"
            )
        if ways is report.encoder:
            share = report.visible_share
            lines.append(f"  {'limit':20}{share * dense.seconds:8.3f} s{share:10.2f}   (the visible share of dense)")
        if IMITATED in ways:
            gain = ways[IMITATED].seconds / ways[VISIBLE].seconds
            lines.append(f"  visible only is {gain:.2f} times as fast as mask-and-multiply")
    if report.not_imitated:
        lines += ["", f"mask-and-multiply: not measured, {report.not_imitated}"]
    return lines
