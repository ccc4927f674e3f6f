"""`load`: a detector or a segmenter that was trained here, to look at pictures with.

A classifier's export is loaded by timm, and needs nothing of this.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import checked_arguments
from ..errors import ConvsparkError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import nn

    from ..checkpoints.origin import Origin


@dataclass(frozen=True)
class Seen:
    """An object in a picture.

    Attributes:
        name: of its class.
        score: the detector's own belief, from 0 to 1; no probability.
        box: left, top, right, bottom, in pixels of the picture as it is.
        mask: (H, W) bool, where the detector makes masks.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: "np.ndarray | None" = None


@dataclass(frozen=True)
class Detector:
    """Finds objects: `detector("picture.jpg")` is a list of `Seen`, the surest first.

    Attributes:
        network: torchvision's Faster or Mask R-CNN, in evaluation mode.
        classes: names of what it finds.
    """

    network: "nn.Module"
    classes: list[str]
    channels: int

    def __call__(self, picture: "str | os.PathLike[str] | Image.Image", least: float = 0.0) -> list[Seen]:
        """The objects in a picture, a file or a Pillow image, whose score is `least` or more.

        Raises:
            UsageError: something else, such as an array.
            DataError: a picture that cannot be read, or is too narrow.
        """
        from ..data.decode import decode
        from .detection.network import binary, look_at

        image = decode(picture) if isinstance(picture, str | os.PathLike) else _image_of(picture)
        output = look_at(self.network, image, self.channels)
        masks = binary(output["masks"]) if "masks" in output else [None] * len(output["scores"])
        rows = zip(output["labels"].tolist(), output["scores"].tolist(), output["boxes"].tolist(), masks, strict=True)
        return [
            Seen(self.classes[label - 1], score, tuple(box), mask) for label, score, box, mask in rows if score >= least
        ]


@dataclass(frozen=True)
class Segmenter:
    """Names the class of every pixel: `segmenter("picture.jpg")` is (H, W) uint8, places in `classes`.

    Attributes:
        network: images (B, C, H, W) -> logits (B, classes, H, W), in evaluation mode.
        classes: their names.
        origin: how it takes images: `mean`, `std`, `pixels`.
    """

    network: "nn.Module"
    classes: list[str]
    origin: "Origin"

    def __call__(self, picture: "str | os.PathLike[str] | Image.Image") -> "np.ndarray":
        """The class of each pixel of a picture: a file, read as in training, or a Pillow image.

        Raises:
            UsageError: a Pillow image for a network of pictures that are read as they are stored; or something else.
            DataError: a picture that cannot be read.
        """
        from .segmentation.network import segment_picture

        of = self.origin
        if not (of.pixels.is_plain or isinstance(picture, str | os.PathLike)):
            raise UsageError(
                f"picture is {picture!r}, and this segmenter was trained on the samples of {of.channels} channels that "
                "files hold, which Pillow's image has no more: give it the file"
            )
        image = of.pixels.read(picture) if isinstance(picture, str | os.PathLike) else _image_of(picture)
        return segment_picture(self.network, image, of.mean, of.std)  # pyright: ignore[reportArgumentType]


def _image_of(picture: Any) -> "Image.Image":
    """RGB, upright."""
    from PIL import Image

    from ..data.decode import to_rgb

    if not isinstance(picture, Image.Image):
        raise UsageError(
            f"picture is a {type(picture).__name__}: expected the name of a file, or a Pillow image, which "
            "PIL.Image.fromarray makes of an array in the order RGB"
        )
    return to_rgb(picture)


@checked_arguments
def load(run: str, *, model: str | None = None, device: str = "auto") -> Detector | Segmenter:
    """The detector or the segmenter that a run has trained.

    Args:
        run: folder of a run of `detect` or `segment` that is done, or its `detector.pth` or `segmenter.pth`, which
            needs no other file.
        model: `package.module:factory` of a backbone of your own, where it has another name by now.
        device: auto, cpu, cuda, cuda:1 or mps.

    Raises:
        UsageError: no such run or file, or a backbone whose code is somebody's own and was not allowed.
    """
    from ..checkpoints.origin import Origin, trained_file
    from ..checkpoints.weights import read_checkpoint
    from ..runs.device import choose_device
    from ..runs.folder import RunFolder

    path = Path(run)
    if path.is_dir():
        folder = RunFolder.open(run)
        if folder.kind not in ("detect", "segment"):
            usual = f"timm.create_model('local-dir:{run}/export', pretrained=True)"
            raise UsageError(f"run is {run!r}, of `convspark {folder.kind}`: its network is loaded by {usual}")
        path = trained_file(folder)
    if not path.is_file():
        raise UsageError(f"run is {run!r}, and there is no {path}: give a run of detect or segment that is done")
    content = read_checkpoint(path)
    if not isinstance(content, Mapping) or not {"model", "network", "classes"} <= set(content):
        raise UsageError(f"{path} does not say how its network is built: train it with this version of convspark")
    origin = Origin.from_record(content["network"], str(path), model)
    try:
        classes, detects = list(content["classes"]), "fitted" in content
        backbone = replace(origin, source=None).build()  # without weights, which come with all others
        network = _detector(content, backbone, origin) if detects else _segmenter(backbone, len(classes))
        network.load_state_dict(content["model"])
    except ConvsparkError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UsageError(f"{path} holds no whole network ({type(error).__name__}: {error}): was it changed?") from error
    network.to(choose_device(device)).eval()
    return Detector(network, classes, origin.channels) if detects else Segmenter(network, classes, origin)


def _detector(content: Mapping[str, Any], backbone: "nn.Module", origin: "Origin") -> "nn.Module":
    from .detection import network as detection

    norm = content["norm"]
    return detection.assemble(
        detection.Pyramid(backbone, norm=norm),
        len(content["classes"]),
        detection.Fitted(**content["fitted"]),
        content["size"],
        origin.mean,
        origin.std,
        content["masks"],
        content["short_sides"],
        norm,
    )


def _segmenter(backbone: "nn.Module", classes: int) -> "nn.Module":
    from .segmentation.network import Segmenter as Network

    return Network(backbone, classes)
