"""Each of the paper's figures: measured of a network, drawn, and put into words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..checkpoints.whole import Whole, load_whole
from ..errors import UsageError
from ..model.spark import check_mask_ratio
from ..model.stages import evaluating
from ..report.display import displayed
from ..report.figures import Column, draw_features, draw_intensities, draw_pattern, draw_pictures
from ..report.style import MASKED_TONE
from ..runs.folder import RunFolder
from ..seeds import Use, counted_seed
from ..sparse import PatchGrid
from .masking import intensities, mask_pattern, pixel_mask, stage_maps
from .subject import Subject

USUAL_RATIOS = (0.3, 0.6, 0.9)
_MOST_EPOCHS = 5


@dataclass(frozen=True)
class Drawn:
    """A figure in words and numbers.

    Attributes:
        name: its files are NAME.pdf and NAME.png.
        caption: what it shows.
        paper: which figure of the paper it corresponds to; None for none.
        numbers: what it was drawn from, in brief.
    """

    name: str
    caption: str
    paper: str | None
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Maker:
    """Makes the figures of one network and a few pictures.

    Args:
        images: (B, C, H, W), normalised as the subject takes them.
        names: of the pictures.
        mask_ratio: of all figures but the reconstructions at several.
        seed: of the masks.
        show: see `displayed`.
    """

    subject: Subject
    images: Tensor
    names: Sequence[str]
    mask_ratio: float
    seed: int
    show: Sequence[int] | None

    def grid_shape(self) -> tuple[int, ...]:
        """Patches along each side.

        Raises:
            UsageError: the patch does not divide the images.
        """
        sides, patch = self.images.shape[2:], self.subject.patch_size
        if any(side % p for side, p in zip(sides, patch, strict=True)):
            raise UsageError(
                f"size is {'x'.join(map(str, sides))}: expected multiples of the patch of "
                f"{'x'.join(map(str, patch))} pixels"
            )
        return tuple(side // p for side, p in zip(sides, patch, strict=True))

    def grid(self, mask_ratio: float) -> PatchGrid:
        """Masks at random, whatever a run was trained with; at a larger ratio fewer of the same are visible."""
        check_mask_ratio(mask_ratio, self.grid_shape())
        generator = torch.Generator().manual_seed(counted_seed(self.seed, Use.HELD_OUT_MASK))
        return PatchGrid.random(len(self.images), self.grid_shape(), mask_ratio, generator)

    def masked_share(self, mask_ratio: float) -> float:
        """The share of the patches that `grid` masks: as near to the ratio as whole patches come."""
        return 1 - float(self.grid(mask_ratio).visible.double().mean())

    def usual_ratios(self) -> list[float]:
        """Those of the usual ratios that leave some patches visible and some masked."""
        patches = int(np.prod(self.grid_shape()))
        return [ratio for ratio in USUAL_RATIOS if 0 < round(patches * (1 - ratio)) < patches]

    def pattern(self) -> tuple[Drawn, Figure]:
        """How the mask vanishes."""
        layers = mask_pattern(self.subject.stages, self.images, self.grid(self.mask_ratio))
        if not layers:
            raise UsageError(f"{self.subject.name} has no layer whose maps could be looked at")
        dense, visible = [layer.dense for layer in layers], [layer.visible for layer in layers]
        shares = [float(maps.mean()) for maps in dense]
        # A shortcut may pool a map that is not full yet, after a layer whose map is: full is what stays so.
        partly = max((at for at, share in enumerate(shares) if share < 1), default=-1)
        full = layers[partly + 1].name if partly + 1 < len(layers) else None
        caption = (
            f"How the mask pattern vanishes in {self.subject.name}. A position is filled if its features tell anything "
            "of the visible pixels, that is, differ from those of a picture masked as a whole. In the dense network, "
            "which sees masked patches as zeros, each layer that looks around carries visible pixels further into "
            f"masked patches: {_percent(shares[0])} of the positions are filled after {layers[0].name}, "
            f"{_percent(shares[-1])} after {layers[-1].name}"
            + (f", all of them from {full} on" if full else "")
            + f". Run on visible patches only, it fills {_percent(float(visible[-1].mean()))} from first to last: the "
            "visible ones. Maps of the first picture, shares of all."
        )
        numbers = {
            "layers": [layer.name for layer in layers],
            "filled_dense": shares,
            "filled_visible": [float(maps.mean()) for maps in visible],
        }
        paper = "the figure on how sparse convolution keeps the mask pattern from vanishing"
        return Drawn("mask-pattern", caption, paper, numbers), draw_pattern(numbers["layers"], dense, visible)

    def intensities(self) -> tuple[Drawn, Figure]:
        """What masking does to the distribution of pixels."""
        histograms = intensities(self.images, self.grid(self.mask_ratio))
        zeros, visible = histograms.moved(histograms.zeros), histograms.moved(histograms.visible)
        caption = (
            "Histograms of pixel intensities before and after masking, all pictures and channels together, in units of "
            "the deviation that the network's images are normalised by. Setting masked patches to 0 moves "
            f"{_percent(zeros)} of the distribution; leaving them out moves {_percent(visible)}, by which some patches "
            "differ from all. The line is that of the whole pictures."
        )
        numbers = {
            "edges": histograms.edges.tolist(),
            "whole": histograms.whole.tolist(),
            "zeros": histograms.zeros.tolist(),
            "visible": histograms.visible.tolist(),
            "moved_by_zeros": zeros,
            "moved_by_leaving_out": visible,
        }
        figure = draw_intensities(
            histograms.edges, histograms.whole, histograms.zeros, histograms.visible, (zeros, visible)
        )
        paper = "the figure of masking strategies, with histograms of pixel intensities before and after masking"
        return Drawn("intensities", caption, paper, numbers), figure

    def features(self) -> tuple[Drawn, Figure]:
        """The features of each stage, whole and masked."""
        one = self.images[:1]
        grid = PatchGrid(self.grid(self.mask_ratio).visible[:1])
        stages = stage_maps(self.subject.stages, one, grid)
        mask = pixel_mask(grid, one.shape[2:])
        (whole,), (zeros,) = self._displayable([one, one * mask[:, None]])
        differences = [
            [_off(stage.whole, maps, stage.visible) for maps in (stage.visible, stage.zeros)] for stage in stages
        ]
        caption = (
            f"Feature maps of the stages of {self.subject.name}: at each position the root of the mean square over "
            "channels, from dark to bright, of the whole picture, of the visible patches only, and of the dense "
            "network on a picture whose masked patches are 0. The tones of a column are those of its first row. On "
            "visible patches, masked positions hold nothing (light grey). Of the first picture."
        )
        numbers = {
            "stages": [stage.name for stage in stages],
            "strides": [list(stage.stride) for stage in stages],
            "differs_visible": [on_visible for on_visible, _ in differences],
            "differs_zeros": [with_zeros for _, with_zeros in differences],
        }
        titles = [f"stride {_sides(stage.stride)}" for stage in stages]
        pictures = [whole, *_masked([whole], mask.numpy()), zeros]
        figure = draw_features(
            pictures,
            titles,
            [stage.whole[0] for stage in stages],
            [stage.zeros[0] for stage in stages],
            [stage.visible[0] for stage in stages],
        )
        return Drawn("features", caption, None, numbers), figure

    def reconstructions(self, ratios: Sequence[float]) -> tuple[Drawn, Figure]:
        """What the model makes of pictures masked more and more."""
        columns, errors = list[Column](), list[float]()
        masked_by = [self.masked_share(ratio) for ratio in ratios]
        for number, ratio in enumerate(ratios):
            original, masked, painted, error = self._reconstructed(self._whole(), ratio)
            columns += [] if number else [Column("original", original)]
            columns += [
                Column(f"{_percent(masked_by[number])} masked", masked),
                Column("reconstructed", painted),
            ]
            errors.append(error)
        caption = (
            f"Pictures masked by {', '.join(map(_percent, masked_by))}, and what {self.subject.name} reconstructs. "
            f"Masked patches are {self._painted()}; visible ones are copied. The mean squared error of "
            f"{self._error()}, is {', '.join(f'{error:.2f}' for error in errors)}."
        )
        numbers = {"ratios": list(ratios), "masked": masked_by, "loss": errors}
        figure = draw_pictures(columns, self.names)
        return Drawn("reconstructions", caption, "the figure of reconstruction examples", numbers), figure

    def epochs(self, run: str | Path, model: Any) -> tuple[Drawn, Figure] | None:
        """What checkpoints of several epochs make of the same pictures; None where a run has only one."""
        columns, epochs, errors = list[Column](), list[int](), list[float]()
        for file in _checkpoints(RunFolder(run), self._whole().epoch):
            whole = load_whole(run, model, file)
            if whole.epoch is None or whole.epoch + 1 in epochs:
                continue
            original, masked, painted, error = self._reconstructed(whole, self.mask_ratio)
            if not columns:
                share = _percent(self.masked_share(self.mask_ratio))
                columns = [Column("original", original), Column(f"{share} masked", masked)]
            epochs.append(whole.epoch + 1)
            errors.append(error)
            columns.append(Column(f"epoch {epochs[-1]}", painted))
        if len(epochs) < 2:
            return None
        caption = (
            f"What {self.subject.name} reconstructs after {', '.join(map(str, epochs))} epochs, of the same pictures "
            f"under the same masks. The mean squared error of {self._error()}, is "
            f"{', '.join(f'{error:.2f}' for error in errors)}."
        )
        return Drawn("epochs", caption, None, {"epochs": epochs, "loss": errors}), draw_pictures(columns, self.names)

    def _painted(self) -> str:
        if self._whole().model.target == "raw":
            return "painted as predicted"
        return "painted with the true patch's mean and deviation, which the network does not predict"

    def _error(self) -> str:
        model = self._whole().model
        units = "of the normalised images" if model.target == "raw" else "of each patch's variance"
        return f"{'all' if model.loss_on == 'all' else 'masked'} patches, in units {units}"

    def _whole(self) -> Whole:
        assert self.subject.whole is not None
        return self.subject.whole

    def _reconstructed(
        self, whole: Whole, ratio: float
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], float]:
        """Originals, masked and reconstructed ones to show, (H, W, 3) each, and the loss."""
        grid, model = self.grid(ratio), whole.model
        images = self.images.to(model.stages.dtype)
        output = model.reconstruct(images, grid)
        with torch.no_grad(), evaluating(model):
            loss = float(model(images, grid).loss)
        original, painted = self._displayable([self.images, output.reconstruction])
        mask = pixel_mask(grid, self.images.shape[2:]).numpy()
        return original, _masked(original, mask), painted, loss

    def _displayable(self, images: Sequence[Tensor]) -> list[list[np.ndarray]]:
        """Several normalised (B, C, H, W) -> of each a list of (H, W, 3), from 0 to 1."""
        subject = self.subject
        show = self.show or (subject.whole.show if subject.whole else None)
        parts = displayed(images, subject.mean, subject.std, show, not subject.pixels.is_plain)
        return [[one.expand(3, -1, -1).permute(1, 2, 0).numpy() for one in part] for part in parts]


def every(
    maker: Maker, ratios: Sequence[float] | None, run: str | Path | None, model: Any
) -> Iterator[tuple[Drawn, Figure]]:
    """All figures that there are of a network, one after the other.

    Args:
        ratios: to reconstruct at; None or none for the usual ones.
        run: folder whose checkpoints are looked at; None for none.
        model: see `load_whole`.
    """
    yield maker.pattern()
    yield maker.intensities()
    yield maker.features()
    if maker.subject.whole is not None:
        yield maker.reconstructions(ratios or maker.usual_ratios())
        several = None if run is None else maker.epochs(run, model)
        if several is not None:
            yield several


def _checkpoints(folder: RunFolder, last: int | None) -> list[Path]:
    """Those that a run kept, at most five, about equally far apart, the last among them.

    Args:
        last: epoch of the last checkpoint, counted from 0; files count from 1, so that its kept twin is left out.
    """
    named = {file: file.stem.removeprefix("epoch_") for file in folder.checkpoints.glob("epoch_*.ckpt")}
    numbers = {file: int(number) for file, number in named.items() if number.isdecimal()}
    of_epochs = [file for file in sorted(numbers, key=numbers.__getitem__) if last is None or numbers[file] <= last]
    files = [*(of_epochs or [folder.previous_checkpoint]), folder.last_checkpoint]
    files = [file for file in files if file.is_file()]
    places = np.linspace(0, len(files) - 1, min(_MOST_EPOCHS, len(files))).round().astype(int)
    return [files[place] for place in dict.fromkeys(places.tolist())]


def _masked(pictures: Sequence[np.ndarray], visible: np.ndarray) -> list[np.ndarray]:
    """(H, W, 3) each, masked patches in the tone of what is not there; `visible` is bool (B, H, W)."""
    return [np.where(mask[..., None], picture, MASKED_TONE) for picture, mask in zip(pictures, visible, strict=True)]


def _off(whole: np.ndarray, other: np.ndarray, visible: np.ndarray) -> float:
    """By how much maps differ where `visible` is not NaN: root of the mean square, relative to the first."""
    there = ~np.isnan(visible)
    return float(np.sqrt(np.square(other - whole)[there].mean() / max(np.square(whole[there]).mean(), 1e-30)))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _sides(stride: Sequence[int]) -> str:
    return str(stride[0]) if len(set(stride)) == 1 else "x".join(map(str, stride))
