"""SparK: mask an image, encode its visible patches, densify, decode, compare with the masked pixels."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..arguments import checked_arguments
from ..errors import UsageError
from ..sparse import PatchGrid, VisiblePatches, as_patches, gather
from ..sparse.proof.prove import prove as prove_exact
from ..sparse.tensor import check_operands, check_patches
from .decoder import Decoder
from .densify import Densify, choose_norm
from .jointly import Jointly
from .lean_decoder import LeanDecoder
from .masks import masks_named
from .stages import Stages, evaluating
from .strides import Sides, as_text, divides, sides_of, times, upsampling
from .target import join_patches, paint_prediction, per_patch, reconstruction_loss, split_patches

logger = logging.getLogger(__name__)

DECODERS: dict[str, type[Decoder] | type[LeanDecoder]] = {"paper": Decoder, "lean": LeanDecoder}
"""By the name that settings give them."""

MAX_DEFAULT_WIDTH = 768
"""The paper's decoder width; the default for backbones at least as wide."""


class SparKOutput(NamedTuple):
    """What one forward pass gives."""

    loss: Tensor
    """Scalar, at least float32."""
    prediction: Tensor
    """(B, C, H, W), each patch in units of its own standardised pixels."""
    grid: PatchGrid
    """Which patches were visible."""
    features: list[VisiblePatches]
    """Of the decoded stages, finest first; dense maps, (B, C, H, W), where the encoding is "zero"."""


class Reconstruction(NamedTuple):
    """Pictures to look at, (B, C, H, W), in the normalised space of the input."""

    masked: Tensor
    """The images with masked patches at 0."""
    reconstruction: Tensor
    """Masked patches as predicted, visible ones copied."""
    grid: PatchGrid


class SparK(nn.Module):
    """Masked-image pre-training of a convolutional network (Tian et al., arXiv 2301.03580).

    Args:
        backbone: any convnet, 2-D or 3-D; it is used as it is, and `model.backbone` is this very module. The
            rest of the model follows its type and device.
        image_size: side in pixels, or one a spatial dimension; divisible by the patch. The forward pass takes
            other sizes too, as long as the patch divides them.
        mask_ratio: share of patches masked in each image, between 0 and 1.
        decoder_width: channels of the decoder's first block, divisible by 2^blocks; None takes
            min(768, width of the deepest stage), rounded down to that.
        decoder: "lean", or "paper": the paper's own, of the same kind, at about eight times the multiplications.
        encoding: "sparse": the encoder computes visible patches only; "zero": it is the dense network on the image with
            masked patches at 0, as the paper's ablation has it, and there is nothing to prove.
        levels: how many stages to decode, the deepest ones; None takes all, at most four. 1 is a decoder without skips.
        mask_token: "learned", or "zero" for zeros at masked positions.
        target: "normalised": each patch's pixels by its own mean and deviation; "raw": the pixels as they are.
        loss_on: "masked" patches, or "all".
        masks: how masks are drawn where none is passed: see `masks_named`.
        densify_norm: "batch", "layer" or "auto": "layer" for backbones whose norms are LayerNorms.
        patch_size: side of a patch in pixels, or one a spatial dimension; None takes the deepest stride. A finer one
            trains only the stages whose stride divides it, and `untrained` names the rest.
        stages: names of the backbone's modules to decode, or None to find them (see `Stages`).
        prove: before anything else, prove in float64 that the backbone runs exactly as it will be trained: in training
            mode, with gradients, against its dense self and mask-and-multiply, and at this image size; some seconds.
        in_chans: channels of the images; None takes those of the backbone's first convolution.
        call: how to call the backbone, `call(backbone, images)`, where it takes images in a dictionary, say; None calls
            it as `backbone(images)`.
        sync_batchnorm: in training, where `torch.distributed` runs several processes, take the statistics of all batch
            norms (the backbone's too) over all of them, and count the loss's patches over all, so that wrapped into
            `DistributedDataParallel` the model takes the very steps of one process with the joint batch. Every process
            must then take part in every step.

    Raises:
        UsageError: an argument that cannot be used.
        NotExactError: from the proof, if the backbone does not run exactly on visible patches.

    Example:
        >>> model = SparK(timm.create_model("resnet50"), image_size=224)
        >>> model(images).loss.backward()
    """

    @checked_arguments
    def __init__(
        self,
        backbone: "nn.Module",  # a text, which is not checked: `Stages` says what a name is
        image_size: int | Sequence[int] = 224,
        mask_ratio: float = 0.6,
        decoder_width: int | None = None,
        densify_norm: str = "auto",
        patch_size: int | Sequence[int] | None = None,
        stages: Sequence[str] | None = None,
        prove: bool = True,
        in_chans: int | None = None,
        call: Callable[[nn.Module, Tensor], object] | None = None,
        sync_batchnorm: bool = True,
        decoder: str = "lean",
        encoding: str = "sparse",
        levels: int | None = None,
        mask_token: str = "learned",
        target: str = "normalised",
        loss_on: str = "masked",
        masks: str = "random",
    ):
        super().__init__()
        self.encoding = _one_of("encoding", encoding, "sparse", "zero")
        self.target = _one_of("target", target, "normalised", "raw")
        self.loss_on = _one_of("loss_on", loss_on, "masked", "all")
        learned = _one_of("mask_token", mask_token, "learned", "zero") == "learned"
        self.masks, self.draw_masks = masks, masks_named(masks)
        self.sync_batchnorm = sync_batchnorm
        self.stages = Stages(backbone, stages, in_chans, image_size, patch_size, call, levels)
        dims = self.stages.dims
        if dims == 1:
            raise UsageError(
                f"backbone={type(backbone).__name__} takes signals (its convolutions are Conv1d): SparK's decoders are "
                "for images and volumes. `gather` and `scatter` take signals, (B, C, length), and `check` proves them"
            )
        self.in_chans = self.stages.in_chans
        self.patch_size = self.stages.patch_size
        self.image_size = sides_of(image_size, dims, "image_size")
        self.mask_ratio = mask_ratio
        check_mask_ratio(mask_ratio, self.grid_shape(self.image_size))
        self.draw_masks(1, self.grid_shape(self.image_size), mask_ratio, torch.Generator())  # a file's may not fit

        ways = upsampling(self.stages.strides)
        make_decoder = DECODERS[_one_of("decoder", decoder, *DECODERS)]
        blocks = make_decoder.count_blocks(ways)
        self.decoder_width = _checked_width(decoder_width, self.stages.channels[-1], blocks)
        modules = [backbone.get_submodule(name) for name in self.stages.modules]
        self.densify_norm = choose_norm(densify_norm, modules)
        self.backbone = backbone
        # Deepest first, like the decoder's blocks: self.densify[i] goes to block self._block[i].
        self._block = list(accumulate(map(len, ways[:-1]), initial=0))
        self.densify = nn.ModuleList(
            Densify(
                channels,
                self.decoder_width >> block,
                self.densify_norm,
                deepest=block == 0,
                dims=dims,
                kernel=make_decoder.projection_kernel,
                learned_token=learned and encoding == "sparse",  # dense maps have no position to fill
            )
            for channels, block in zip(reversed(self.stages.channels), self._block, strict=True)
        )
        self.decoder = make_decoder(self.decoder_width, ways, self.in_chans)
        self.densify.to(self.stages.device, self.stages.dtype)
        self.decoder.to(self.stages.device, self.stages.dtype)
        # No gradient ever comes for these, which DistributedDataParallel would wait for.
        self._ddp_params_and_buffers_to_ignore = [f"backbone.{name}" for name in self.untrained]
        if self.untrained:
            logger.info("After the deepest stage, left as it is: %s", ", ".join(self.stages.untrained_parts))
        if prove and encoding == "sparse":
            logger.info("proving that the network runs exactly on visible patches …")
            started = time.perf_counter()
            proof = prove_exact(self.stages, backbone, self.in_chans, self.image_size, self.patch_size)
            seconds = time.perf_counter() - started
            logger.info("proved exact in %.1f s (largest deviation %.1g)", seconds, proof.largest)
            if proof.unmatched:
                logger.warning("proved in evaluation mode only: in training it draws %s", proof.unmatched)

    @property
    def untrained(self) -> list[str]:
        """Names of the backbone's parameters and buffers that pre-training does not touch."""
        return self.stages.untrained

    def grid_shape(self, image_size: Sequence[int]) -> tuple[int, ...]:
        """How many patches an image of this size has along each side."""
        if min(image_size) <= 0 or not divides(self.patch_size, image_size):
            raise UsageError(
                f"image_size={times(image_size)} is not divisible by the patch of {as_text(self.patch_size)} pixels; "
                f"nearest sizes: {_nearest_sizes(image_size, self.patch_size)}"
            )
        return tuple(side // p for side, p in zip(image_size, self.patch_size, strict=True))

    def forward(
        self, images: Tensor, grid: PatchGrid | None = None, generator: torch.Generator | None = None
    ) -> SparKOutput:
        """Mask, encode, decode, compare.

        Args:
            images: (B, C, H, W), normalised by mean and deviation.
            grid: which patches are visible; None draws one.
            generator: for drawing the grid.
        """
        grid = self._grid(images, grid, generator)
        group = self._process_group()
        inner = grid.afresh() if torch.compiler.is_compiling() else grid
        if self.encoding == "zero":
            count = len(images)
            joined = nullcontext() if group is None else Jointly(0, count, count, group)
            with joined:  # what the dense network normalises over the batch goes over all processes
                features = self.stages(self._masked(images, grid))
        else:
            features = self.stages(gather(images, inner if group is None else inner.across(group)))
            for feature in features:
                check_patches(feature, "a stage of the backbone is")
        prediction = self.decode(features)  # type: ignore[arg-type]
        if inner is not grid and self.encoding == "sparse":
            features = [as_patches(f.values, grid, f.axes) for f in features]  # type: ignore[attr-defined]
        loss = reconstruction_loss(
            images,
            prediction,
            grid.visible,
            self.patch_size,
            group,
            raw=self.target == "raw",
            everywhere=self.loss_on == "all",
        )
        return SparKOutput(loss, prediction, grid, features)  # type: ignore[arg-type]

    def _masked(self, images: Tensor, grid: PatchGrid) -> Tensor:
        """The images with masked patches at 0."""
        return join_patches(torch.where(per_patch(grid.visible), split_patches(images, self.patch_size), 0))

    def decode(self, features: Sequence[VisiblePatches]) -> Tensor:
        """The features of each stage, finest first, to the standardised pixels of all patches, (B, C, H, W)."""
        group = self._process_group()
        maps: list[Tensor | None] = [None] * (self._block[-1] + 1)
        for block, densify, stage in zip(self._block, self.densify, reversed(features), strict=True):
            maps[block] = densify(stage, group)
        return self.decoder(maps, group)

    @torch.no_grad()
    def reconstruct(
        self, images: Tensor, grid: PatchGrid | None = None, generator: torch.Generator | None = None
    ) -> Reconstruction:
        """Show what the model makes of masked images, in evaluation mode; training modes stay as they are.

        A masked patch is drawn with the mean and deviation of the true one, which the model does not predict.
        """
        with evaluating(self):
            output: SparKOutput = self(images, grid, generator)
        raw = self.target == "raw"
        painted = paint_prediction(images, output.prediction, output.grid.visible, self.patch_size, raw=raw)
        return Reconstruction(self._masked(images, output.grid), painted, output.grid)

    def _process_group(self) -> dist.ProcessGroup | None:
        """The processes to share statistics and counts with."""
        if not (self.sync_batchnorm and self.training and dist.is_available() and dist.is_initialized()):
            return None
        return dist.group.WORLD if dist.get_world_size() > 1 else None

    def _grid(self, images: Tensor, grid: PatchGrid | None, generator: torch.Generator | None) -> PatchGrid:
        check_operands(images, grid)
        if not images.is_floating_point():
            raise UsageError(f"images of {images.dtype}: expected floats, normalised by mean and deviation")
        dims = self.stages.dims
        if images.ndim != dims + 2 or images.shape[1] != self.in_chans:
            raise UsageError(
                f"images of shape {tuple(images.shape)}: expected (B, {self.in_chans}, "
                f"{', '.join('DHW'[-dims:])}), as the backbone takes them"
            )
        shape = self.grid_shape(images.shape[2:])
        if grid is None:
            check_mask_ratio(self.mask_ratio, shape)
            return self.draw_masks(len(images), shape, self.mask_ratio, generator, images.device)
        if grid.batch_size != len(images) or tuple(grid.shape) != shape:
            raise UsageError(
                f"grid of {grid.batch_size} images with {times(grid.shape)} patches: expected {len(images)} "
                f"with {times(shape)}, for images of {times(images.shape[2:])} and patches of "
                f"{as_text(self.patch_size)} pixels"
            )
        return grid


def check_mask_ratio(mask_ratio: float, grid_shape: Sequence[int]) -> None:
    """Raise UsageError if masking would leave none or all of an image's patches."""
    patches = 1
    for cells in grid_shape:
        patches *= cells
    visible = round(patches * (1 - mask_ratio)) if 0 <= mask_ratio <= 1 else -1
    if not 0 < visible < patches:
        problem = f"leaves {visible} of {patches} patches visible" if visible >= 0 else "is no share of patches"
        raise UsageError(
            f"mask_ratio={mask_ratio} {problem} ({times(grid_shape)} patches an image); expected at least one "
            "visible and one masked. The paper uses 0.6; with few patches an image, use larger images"
        )


def _one_of(argument: str, value: str, *known: str) -> str:
    if value not in known:
        raise UsageError(f"{argument}={value!r}: expected {' or '.join(map(repr, known))}")
    return value


def _checked_width(width: int | None, channels: int, blocks: int) -> int:
    step = 1 << blocks
    if width is None:
        return max(step, min(MAX_DEFAULT_WIDTH, channels) // step * step)
    if width <= 0 or width % step:
        lower = max(step, width // step * step)
        raise UsageError(
            f"decoder_width={width}: expected a multiple of {step}, because the width halves at each of "
            f"{blocks} blocks; nearest: {lower} or {lower + step}"
        )
    return width


def _nearest_sizes(image_size: Sequence[int], patch_size: Sides) -> str:
    sides = list(zip(image_size, patch_size, strict=True))
    lower = [max(p, side // p * p) for side, p in sides]
    upper = [max(p, -(-side // p) * p) for side, p in sides]
    return " or ".join(dict.fromkeys([times(lower), times(upper)]))
