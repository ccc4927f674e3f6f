"""Detection and instance segmentation: torchvision's R-CNNs on any backbone, COCO's average precision."""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from ...data import FileSource, PretrainImages
from ...data.transforms import Picture
from ...errors import DataError
from ...runs.module import TrainingModule
from ...runs.schedule import Schedule
from ...seeds import Counter, Use, counted, counted_seed
from ..fpn import Pyramid
from .data import Scene, Scenes
from .masks import decode_mask

Kind = Literal["bbox", "segm"]
"""What COCO's precision is of: boxes or masks."""

logger = logging.getLogger(__name__)

# Short sides of the images in training, as shares of the size: the paper's 480 to 896 of 800. torchvision measures at
# the last of them.
_SCALES = (0.6, 0.7, 0.8, 0.9, 1.12, 1.0)
_SIDE_STEP = 32  # the paper's
_ANCHOR_OF_STRIDE = 8  # torchvision's: 32 pixels at stride 4


@dataclass(frozen=True)
class Fitted:
    """What of a detector is fitted to the objects that it is trained on, and belongs to it as its weights do.

    Attributes:
        anchors: their sizes in pixels, of each level of the pyramid.
        most: of the detections of a picture.
    """

    anchors: Sequence[Sequence[int]]
    most: int

    @classmethod
    def of(cls, network: FasterRCNN) -> "Fitted":
        anchors = network.rpn.anchor_generator
        assert isinstance(anchors, AnchorGenerator)
        heads: Any = network.roi_heads
        return cls(anchors.sizes, heads.detections_per_img)


def build_detector(
    backbone: nn.Module,
    scenes: Scenes,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    masks: bool,
    *,
    short_sides: tuple[int, int] | None = None,
    norm: bool = False,
    fit_to_objects: bool = True,
) -> FasterRCNN:
    """Faster R-CNN, or Mask R-CNN, with a feature pyramid on the backbone's stages.

    Args:
        size: short side of the images in pixels; the long side is at most 5/3 of it.
        short_sides: see `training_sides`.
        norm: whether batch norms follow the convolutions of the pyramid and the heads; the head for boxes then has four
            of them and one linear layer, instead of two linear ones.
        fit_to_objects: whether anchors, torchvision's (8 times the stride), are made smaller for small objects so that
            the finest fit the smallest tenth of the boxes; and whether as many are found as a picture has.
    """
    pyramid = Pyramid(backbone, norm=True) if norm else Pyramid(backbone)
    strides = [min(stride) for stride in pyramid.stages.strides]
    shrink = anchor_share(scenes, size, strides[0]) if fit_to_objects else 1.0
    sizes = tuple((max(4, round(_ANCHOR_OF_STRIDE * shrink * s)),) for s in [*strides, 2 * strides[-1]])
    most = max(len(scene.things) for scene in scenes.scenes) if fit_to_objects else 0
    fitted = Fitted(sizes, max(100, round(1.2 * most)))
    samples = 256 if fit_to_objects else 512
    return assemble(pyramid, len(scenes.classes), fitted, size, mean, std, masks, short_sides, norm, samples)


def assemble(
    pyramid: Pyramid,
    classes: int,
    fitted: Fitted,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    masks: bool,
    short_sides: tuple[int, int] | None,
    norm: bool,
    samples: int = 512,
) -> FasterRCNN:
    """A detector on a pyramid, as `build_detector` describes it; `samples` of a picture are trained on."""
    strides = [min(stride) for stride in pyramid.stages.strides]
    names = [str(i) for i in range(len(strides))]
    options: dict[str, Any] = {
        "min_size": training_sides(size, short_sides),
        "max_size": longest_side(size),
        "image_mean": list(mean),
        "image_std": list(std),
        "rpn_anchor_generator": _anchors(fitted.anchors),
        "box_roi_pool": _roi_pool(names, strides, 7),
        "box_detections_per_img": fitted.most,
        "box_batch_size_per_image": samples,
    }
    if norm:
        width, layers, norms = pyramid.out_channels, [256] * 4, nn.BatchNorm2d  # as wide as torchvision's
        options["box_head"] = FastRCNNConvFCHead((width, 7, 7), layers, [1024], norm_layer=norms)
        if masks:
            options["mask_head"] = MaskRCNNHeads(width, layers, 1, norm_layer=norms)
    if masks:
        network = MaskRCNN(pyramid, classes + 1, mask_roi_pool=_roi_pool(names, strides, 14), **options)
    else:
        network = FasterRCNN(pyramid, classes + 1, **options)
    for part in (network.backbone, network.rpn.head, network.roi_heads.box_predictor):
        assert isinstance(part, nn.Module)
        part.register_forward_hook(_as_float32)
    return network


def training_sides(size: int, between: tuple[int, int] | None = None) -> tuple[int, ...]:
    """Short sides in pixels that training chooses from; torchvision measures at the last, which is `size`.

    Args:
        between: the least and the most, in steps of 32 pixels; None is for 0.6 to 1.12 of the size.
    """
    if between is None:
        return tuple(round(share * size) for share in _SCALES)
    return (*(side for side in range(between[0], between[1] + 1, _SIDE_STEP) if side != size), size)


def _anchors(sizes: Sequence[Sequence[int]]) -> AnchorGenerator:
    return AnchorGenerator(tuple(map(tuple, sizes)), ((0.5, 1.0, 2.0),) * len(sizes))


def _as_float32(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    """Outputs that torchvision turns into positions, as float32: beyond pixel 512, bfloat16 has steps of 4 pixels.

    Anchors get the maps' dtype, and proposals and true boxes that of the heads' corrections.
    """
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, Mapping):
        return OrderedDict((name, output.float()) for name, output in outputs.items())
    return type(outputs)(_as_float32(module, inputs, output) for output in outputs)


def _roi_pool(names: Sequence[str], strides: Sequence[int], side: int) -> MultiScaleRoIAlign:
    """Pooling of boxes from the maps of known strides.

    torchvision guesses the strides from the first batch, and keeps them; of small pictures, padded to a multiple of 32,
    it guesses wrong.
    """
    pool = MultiScaleRoIAlign(list(names), side, 2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(round(math.log2(strides[0])), round(math.log2(strides[-1])))
    return pool


def anchor_share(scenes: Scenes, size: int, stride: int) -> float:
    """What torchvision's anchors are multiplied by, from 1/4 to 1: small objects need small anchors."""
    sides = [
        np.sqrt((t.box[2] - t.box[0]) * (t.box[3] - t.box[1])) * size / min(scene.size)
        for scene in scenes.scenes
        for t in scene.things
    ]
    return float(np.clip(np.quantile(sides, 0.1) / (_ANCHOR_OF_STRIDE * stride), 0.25, 1.0))


class SceneImages(PretrainImages):
    """`dataset[(epoch, index)]` is (image (C, H, W) from 0 to 1, torchvision's target), half of them mirrored.

    Pictures are shrunk to the largest short side that training uses, and objects in crowds left out.
    """

    def __init__(self, scenes: Scenes, channels: int, largest: int, masks: bool, seed: int = 0) -> None:
        super().__init__(FileSource(scenes.pictures, scenes.gone), _unused, seed)
        self._scenes = scenes.scenes
        self._channels = channels
        self._side = largest
        self._masks = masks

    def _example(self, picture: Picture, image: int, counter: Counter) -> Any:
        assert isinstance(picture, Image.Image)
        scene = self._scenes[image]
        scale = min(1.0, self._side / min(scene.size))
        height, width = (max(1, round(scale * side)) for side in scene.size)
        flip = bool(np.random.default_rng(counter).random() < 0.5)
        shrunk = picture.resize((width, height), Image.Resampling.BILINEAR) if scale < 1 else picture
        things = [thing for thing in scene.things if not thing.crowd]
        boxes = torch.tensor([thing.box for thing in things], dtype=torch.float32).reshape(-1, 4) * scale
        if flip:
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        target = {"boxes": boxes, "labels": torch.tensor([thing.label for thing in things], dtype=torch.int64)}
        if self._masks:
            masks = np.zeros((len(things), height, width), dtype=np.uint8)
            for i, thing in enumerate(things):
                assert thing.mask is not None
                whole = Image.fromarray(decode_mask(thing.mask))
                masks[i] = np.asarray(whole.resize((width, height), Image.Resampling.BOX) if scale < 1 else whole) > 0.5
            target["masks"] = torch.from_numpy(masks[:, :, ::-1].copy() if flip else masks)
        tensor = as_tensor(shrunk, self._channels)
        # A side of a box may have vanished by rounding, which torchvision refuses.
        large = ((boxes[:, 2] - boxes[:, 0]) > 0.5) & ((boxes[:, 3] - boxes[:, 1]) > 0.5)
        return (tensor.flip(2) if flip else tensor), {name: value[large] for name, value in target.items()}


def _unused(picture: Picture, counter: Counter) -> Tensor:
    raise AssertionError("scenes make their own examples")


def as_tensor(picture: Image.Image, channels: int) -> Tensor:
    """(C, H, W) from 0 to 1."""
    values = torch.from_numpy(np.array(picture.convert("L" if channels == 1 else "RGB")))
    values = values[None] if values.ndim == 2 else values.permute(2, 0, 1)
    return values.float() / 255


def collate(examples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images of unequal size stay a list."""
    return [image for image, _ in examples], [target for _, target in examples]


class CountedSampler(BalancedPositiveNegativeSampler):
    """torchvision's choice of the samples of a picture to train on, drawn by the picture's place in the batch.

    Attributes:
        seed_of: index of a picture in the pass -> the seed of its choice.
        sampled, positive: how many were chosen in the last pass, of all pictures.
    """

    seed_of: Callable[[int], int]

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive: list[Tensor] = []
        negative: list[Tensor] = []
        for index, matched in enumerate(matched_idxs):
            torch.manual_seed(self.seed_of(index))
            for masks, new_masks in zip((positive, negative), super().__call__([matched]), strict=True):
                masks += new_masks
        self.positive = torch.stack([mask.sum() for mask in positive]).sum()
        self.sampled = self.positive + torch.stack([mask.sum() for mask in negative]).sum()
        return positive, negative


def _with_counted_sampler(part: Any) -> CountedSampler:
    """Gives a part of an R-CNN its new sampler."""
    before = part.fg_bg_sampler
    part.fg_bg_sampler = CountedSampler(before.batch_size_per_image, before.positive_fraction)
    return part.fg_bg_sampler


class DetectModule(TrainingModule):
    """Trains a detector of torchvision's; after an epoch, its average precision on validation pictures.

    Args:
        network: the detector.
        scenes: to validate with.
        kind: "bbox" or "segm", what COCO's precision is of.
        channels: of the images.
    """

    measures = ("val_ap", "val_ap50", "val_ap75")

    def __init__(
        self,
        network: FasterRCNN,
        make_optimizer: Callable[[], torch.optim.Optimizer],
        schedule: Schedule,
        scenes: Scenes,
        kind: Kind,
        channels: int,
        seed: int = 0,
    ) -> None:
        super().__init__(make_optimizer, schedule, seed)
        self.network = network
        self._proposed, self._pooled = (_with_counted_sampler(part) for part in (network.rpn, network.roi_heads))
        self.detections: list[dict[str, Any]] = []
        self._scenes, self._channels = scenes, channels
        self._kind: Kind = kind

    def loss_of(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        place, first = self.place(batch_idx), self.part(len(images), batch_idx).first
        scales = iter([counted(self.seed, Use.SCALE, place[0], first + index) for index in range(len(images))])
        transform: Any = self.network.transform
        transform.torch_choice = lambda sizes: sizes[int(next(scales).integers(len(sizes)))]
        for number, sampler in enumerate((self._proposed, self._pooled)):
            sampler.seed_of = lambda index, n=number: counted_seed(self.seed, Use.SAMPLE, *place, first + index, n)
        losses = self.network(images, targets)
        return torch.stack([loss * self._share(name) for name, loss in losses.items()]).sum()

    def _share(self, name: str) -> Tensor | float:
        """What makes a loss, a mean over what was sampled here, its part of the mean over what was in all processes."""
        if not self.here.are_several:
            return 1.0
        sampler = self._proposed if "rpn" in name or name == "loss_objectness" else self._pooled
        own = (sampler.positive if name == "loss_mask" else sampler.sampled).float()
        return own * self.here.count / self.here.summed(own).clamp(min=1)

    def candidates(self) -> list[tuple[float, str, nn.Module]]:
        return [(self.measured["val_ap"], "raw", self.network)] if self.measured else []

    def describe_measured(self) -> str:
        if not self.measured:
            return ""
        return f"AP {100 * self.measured['val_ap']:.1f}, AP50 {100 * self.measured['val_ap50']:.1f}"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fitted"] = asdict(Fitted.of(self.network))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Anchors and counts that were fitted to the objects belong to the network as its weights do."""
        fitted = checkpoint.get("fitted")
        if fitted is not None:
            self.network.rpn.anchor_generator = _anchors(fitted["anchors"])
            self.network.roi_heads.detections_per_img = fitted["most"]

    def measure(self, batch: Any, number: int) -> list[dict[str, Any]]:
        """What is found in one picture."""
        return detections_in(self.network, self._scenes.scenes[number], number + 1, self._channels)

    def summarise(self, measurements: list[list[dict[str, Any]]]) -> dict[str, float]:
        self.detections = [one for of_picture in measurements for one in of_picture]
        scores = average_precision(self._scenes, self.detections, self._kind)
        return {f"val_{name}": scores[name] for name in ("ap", "ap50", "ap75")}


def is_too_narrow(size: tuple[int, int], longest: int) -> bool:
    """Whether a picture's short side vanishes where its long one is brought to the longest that a detector takes."""
    return max(size) >= longest * min(size)


def longest_side(size: int) -> int:
    """Of the images of a detector, by its `size`."""
    return round(5 / 3 * size)


def look_at(network: nn.Module, picture: Image.Image, channels: int) -> dict[str, Tensor]:
    """torchvision's boxes, labels, scores and, where there are some, masks of the objects in one picture.

    Raises:
        DataError: it is too narrow.
    """
    transform: Any = network.transform
    if is_too_narrow(picture.size, transform.max_size):
        raise DataError(
            f"a picture of {picture.width}x{picture.height} pixels is too narrow for this detector, whose images have "
            f"at most {transform.max_size} pixels on a side: cut it"
        )
    device = next(network.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return network([as_tensor(picture, channels).to(device)])[0]


def binary(masks: Tensor) -> np.ndarray:
    """(N, 1, H, W) shares of belief -> (N, H, W) bool."""
    return (masks[:, 0] > 0.5).cpu().numpy()


def detections_in(network: nn.Module, scene: Scene, image_id: int, channels: int) -> list[dict[str, Any]]:
    """What a detector finds in one picture, as COCO's result entries."""
    from faster_coco_eval.core import mask as coding

    from ...data import decode

    output = look_at(network, decode(scene.path), channels)
    masks = binary(output["masks"]) if "masks" in output else None
    entries: list[dict[str, Any]] = []
    for i, (box, label, score) in enumerate(
        zip(output["boxes"].tolist(), output["labels"].tolist(), output["scores"].tolist(), strict=True)
    ):
        left, top, right, bottom = box
        entry = {
            "image_id": image_id,
            "category_id": label,
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
        }
        if masks is not None:
            entry["segmentation"] = coding.encode(np.asfortranarray(masks[i], dtype=np.uint8))
        entries.append(entry)
    return entries


def average_precision(scenes: Scenes, detections: list[dict[str, Any]], kind: Kind) -> dict[str, Any]:
    """COCO's AP, AP50, AP75 (0 to 1), and AP of each class (None where there is none to find), by faster-coco-eval.

    As many detections of a picture count as there are, COCO's own limit is 100.

    Args:
        kind: "bbox" or "segm".
    """
    from faster_coco_eval import COCO, COCOeval_faster

    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    if not detections:
        there = {thing.label for scene in scenes.scenes for thing in scene.things if not thing.crowd}
        by_class = {name: 0.0 if label in there else None for label, name in enumerate(scenes.classes, start=1)}
        return {**dict.fromkeys(names, 0.0), "by_class": by_class}
    truth = COCO(scenes.as_coco())
    run = COCOeval_faster(truth, truth.loadRes([dict(d) for d in detections]), kind, print_function=_silent)
    most = max(sum(1 for d in detections if d["image_id"] == i) for i in {d["image_id"] for d in detections})
    run.params.maxDets = [1, 10, max(100, most)]  # type: ignore[union-attr]
    run.evaluate()
    run.accumulate()
    run.summarize()
    stats = [float(value) for value in run.stats[:6]]
    precision = np.asarray(run.eval["precision"])  # (thresholds, recalls, classes, areas, counts)
    by_class: dict[str, float | None] = {}
    for i, name in enumerate(scenes.classes):
        own = precision[:, :, i, 0, -1]
        by_class[name] = float(own[own > -1].mean()) if (own > -1).any() else None
    return {**dict(zip(names, stats, strict=True)), "by_class": by_class}


def _silent(*_: Any) -> None:
    pass
