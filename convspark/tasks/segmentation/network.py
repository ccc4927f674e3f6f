"""Semantic segmentation: a feature pyramid's maps added up, a class for every pixel, IoU and Dice."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ...data import PretrainImages
from ...data.transforms import Picture, filled
from ...runs.module import TrainingModule, channels_last
from ...runs.processes import ALONE, Processes
from ...runs.schedule import Schedule
from ...seeds import Counter
from ..fpn import Pyramid
from .data import IGNORED, LabelMaps

_WIDTH = 128


class Segmenter(nn.Module):
    """Images (B, C, H, W) -> logits (B, classes, H, W): pyramid maps brought to the finest, added, classified.

    Sides that the deepest stride does not divide are padded by 0 and cut off again.
    """

    def __init__(self, backbone: nn.Module, classes: int) -> None:
        super().__init__()
        self.pyramid = Pyramid(backbone, _WIDTH, extra=False)
        self.head = nn.Sequential(
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(_WIDTH),
            nn.ReLU(inplace=True),
            nn.Conv2d(_WIDTH, classes, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        down, across = self.pyramid.stages.strides[-1]
        padded = F.pad(images, (0, -width % across, 0, -height % down))
        maps = list(self.pyramid(padded).values())
        finest = maps[0].shape[2:]
        total = maps[0]
        for features in maps[1:]:
            total = total + F.interpolate(features, finest, mode="bilinear", align_corners=False)
        logits = F.interpolate(self.head(total), padded.shape[2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]


class MapImages(PretrainImages):
    """`dataset[(epoch, index)]` is (image (C, S, S), labels (S, S)): a random crop, scaled and mirrored both ways.

    Where a picture is smaller than the crop, the rest is 0 and its labels are ignored.
    """

    def __init__(self, maps: LabelMaps, size: int, mean: Sequence[float], std: Sequence[float], seed: int = 0) -> None:
        super().__init__(maps.source, _unused, seed)
        self._maps, self._side = maps, size
        self._mean, self._std = mean, std

    def _example(self, picture: Picture, image: int, counter: Counter) -> Any:
        assert isinstance(picture, Image.Image | Tensor)
        rng = np.random.default_rng(counter)
        labels = self._maps.label_map(image)
        side = self._side / float(np.exp(rng.uniform(np.log(0.5), np.log(2.0))))  # of the crop, before scaling
        height, width = (min(round(side), n) for n in labels.shape)
        top, left = int(rng.integers(labels.shape[0] - height + 1)), int(rng.integers(labels.shape[1] - width + 1))
        scale = self._side / side
        shape = max(1, min(self._side, round(scale * width))), max(1, min(self._side, round(scale * height)))
        crop = _resized(picture, (left, top, left + width, top + height), shape, self._mean)
        cut = Image.fromarray(labels[top : top + height, left : left + width]).resize(shape, Image.Resampling.NEAREST)
        tensor = normalised(crop, self._mean, self._std)
        target = torch.from_numpy(np.array(cut)).long()
        room = (0, self._side - shape[0], 0, self._side - shape[1])
        tensor, target = F.pad(tensor, room), F.pad(target, room, value=IGNORED)
        flips = [axis for axis in (-1, -2) if rng.random() < 0.5]
        return (tensor.flip(flips), target.flip(flips)) if flips else (tensor, target)


def _unused(picture: Picture, counter: Counter) -> Tensor:
    raise AssertionError("label maps make their own examples")


def _resized(
    picture: Image.Image | Tensor, box: tuple[int, int, int, int], shape: tuple[int, int], mean: Sequence[float]
) -> Image.Image | Tensor:
    """The part of a picture in a box (left, top, right, bottom), of (width, height) `shape`; linear, antialiased."""
    if isinstance(picture, Image.Image):
        return picture.crop(box).resize(shape, Image.Resampling.BILINEAR)
    left, top, right, bottom = box
    part = filled(picture[:, top:bottom, left:right], mean)
    return F.interpolate(part[None], shape[::-1], mode="bilinear", antialias=True)[0]


def normalised(picture: Image.Image | Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(C, H, W), (value - mean) / std, grey where there is one mean; tensors are floats of these channels."""
    if isinstance(picture, Tensor):
        return (filled(picture, mean) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    values = torch.from_numpy(np.array(picture.convert("L" if len(mean) == 1 else "RGB")))
    values = (values[None] if values.ndim == 2 else values.permute(2, 0, 1)).float() / 255
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


class SegmentModule(TrainingModule):
    """Trains a segmenter on cross-entropy and Dice; after an epoch, IoU and Dice on whole validation pictures."""

    measures = ("val_iou", "val_dice", "val_accuracy")

    def __init__(
        self,
        network: Segmenter,
        make_optimizer: Callable[[], torch.optim.Optimizer],
        schedule: Schedule,
        maps: LabelMaps,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
    ) -> None:
        super().__init__(make_optimizer, schedule, seed)
        self.network = network
        self.counts: np.ndarray | None = None  # of the last measurement, see `pixel_counts`
        self._maps, self._mean, self._std = maps, mean, std

    def loss_of(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return segmentation_loss(self.network(channels_last(images)), labels, self.here)

    def candidates(self) -> list[tuple[float, str, nn.Module]]:
        return [(self.measured["val_iou"], "raw", self.network)] if self.measured else []

    def describe_measured(self) -> str:
        return f"mean IoU {100 * self.measured['val_iou']:.1f} %" if self.measured else ""

    def measure(self, batch: Any, number: int) -> np.ndarray:
        """See `pixel_counts`, of one picture."""
        predicted = segment_picture(self.network, self._maps.source.read(number), self._mean, self._std)
        return pixel_counts(self._maps.label_map(number), predicted, len(self._maps.classes))

    def summarise(self, measurements: list[np.ndarray]) -> dict[str, float]:
        self.counts = sum(measurements, np.zeros((len(self._maps.classes),) * 2, dtype=np.int64))
        scores = overlap(self.counts)
        return {f"val_{name}": scores[name] for name in ("iou", "dice", "accuracy")}


def segmentation_loss(logits: Tensor, labels: Tensor, here: Processes = ALONE) -> Tensor:
    """Cross-entropy plus 1 - Dice, the mean over classes that are there; (B, K, H, W) and (B, H, W) -> a number.

    Of several processes, each with its part of a batch, it is that of the whole batch. Where no pixel counts it is 0.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    known = labels != IGNORED
    pixels = here.summed(known.sum())
    entropy = here.summed(F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")) / pixels.clamp(min=1)
    share = logits.softmax(1) * known[:, None]
    truth = F.one_hot(labels.where(known, labels.new_zeros(())), logits.shape[1]).permute(0, 3, 1, 2) * known[:, None]
    both, sizes = here.summed((share * truth).sum((0, 2, 3))), here.summed((share + truth).sum((0, 2, 3)))
    there = here.summed(truth.sum((0, 2, 3))) > 0
    dice = (2 * both[there] / sizes[there]).sum() / there.sum().clamp(min=1)
    return (entropy + 1 - dice) * there.any()


def segment_picture(network: nn.Module, picture: Picture, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(H, W) uint8, the class of each pixel of a picture."""
    device = next(network.parameters()).device
    assert isinstance(picture, Image.Image | Tensor)
    image = normalised(picture, mean, std)[None].to(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return network(channels_last(image)).argmax(1)[0].to(torch.uint8).cpu().numpy()


def pixel_counts(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) number of pixels, true class by predicted class, without those that do not count."""
    known = truth != IGNORED
    joint = truth[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(joint, minlength=classes * classes).reshape(classes, classes)


def overlap(counts: np.ndarray) -> dict[str, Any]:
    """Mean IoU and Dice over the classes that are there, the share of right pixels, and both of each class."""
    both = np.diag(counts).astype(float)
    true, predicted = counts.sum(1), counts.sum(0)
    there = true + predicted > 0
    union = np.maximum(1, true + predicted - both)
    iou, dice = both / union, 2 * both / np.maximum(1, true + predicted)
    return {
        "iou": float(iou[there].mean()),
        "dice": float(dice[there].mean()),
        "accuracy": float(both.sum() / max(1, counts.sum())),
        "iou_by_class": [float(v) if t else None for v, t in zip(iou, there, strict=True)],
        "dice_by_class": [float(v) if t else None for v, t in zip(dice, there, strict=True)],
    }
