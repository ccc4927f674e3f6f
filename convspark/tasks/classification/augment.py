"""Labelled pictures as training examples: stronger augmentation than pre-training's, counted like it."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import auto_augment_transform
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ...data import PLAIN, FileSource, Pixels, PretrainImages, PretrainTransform
from ...data.transforms import Picture
from ...seeds import Counter
from .data import GONE, Labelled


@dataclass(frozen=True, kw_only=True)
class FinetuneTransform(PretrainTransform):
    """Random resized crop, flip, a policy of distortions and random erasing (SparK paper, fine-tuning recipe).

    Args:
        policy: "trivial" is TrivialAugmentWide, "auto" AutoAugment's policy v0, as timm has it; None for none. For
            pictures of 8 bits only, they know no others.
        interpolation: of the policy's turns and shears.
        erase: share of the pictures of which a rectangle is replaced by noise.
    """

    policy: Literal["trivial", "auto"] | None = "trivial"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    erase: float = 0.25

    @cached_property
    def _policy(self) -> Callable[[Image.Image], Image.Image]:
        if self.policy == "auto":
            fill = [min(255, round(255 * mean)) for mean in self.mean]
            # As timm's training has it: what moves into the picture is of the mean colour, shifts are of 0.45 at most.
            policy = auto_augment_transform(
                "v0",
                {
                    "translate_const": int(0.45 * min(self.shape)),
                    "img_mean": tuple(fill) if len(fill) > 1 else fill[0],
                    "interpolation": Image.Resampling[self.interpolation.upper()],
                },
            )
            for operation in (one for several in policy.policy for one in several):
                if operation.name == "Posterize":
                    operation.aug_fn = _posterize
            return policy
        return v2.TrivialAugmentWide(interpolation=v2.InterpolationMode(self.interpolation))

    @cached_property
    def _erasing(self) -> v2.Transform:
        return v2.RandomErasing(p=self.erase, value="random")  # type: ignore[arg-type]

    def __call__(self, picture: Picture, counter: Counter) -> Tensor:
        rng = np.random.default_rng(counter)
        crop = self.crop(picture, rng)
        with _seeded(int(rng.integers(1 << 62))):
            if self.policy and crop.dtype == torch.uint8:
                crop = functional.pil_to_tensor(self._policy(functional.to_pil_image(crop)))
            image = self.normalise(crop)
            return self._erasing(image) if self.erase else image


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keeps so many bits of each sample. The policy has 0, too: black, which newer versions of Pillow refuse."""
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The libraries' transforms draw from torch's or Python's generator: within this context, from the counter's.

    Of torch's only the CPU's, which is the one that they use: `torch.manual_seed` takes longer than the transforms.
    """
    state, of_python = torch.get_rng_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        random.setstate(of_python)


class LabelledImages(PretrainImages):
    """`dataset[(epoch, index)]` is (image, label); a picture that stands in for a bad one brings its own label."""

    def __init__(
        self,
        labelled: Labelled,
        transform: Callable[[Picture, Counter], Tensor],
        seed: int = 0,
        most_bad: float = 0.05,
        pixels: Pixels = PLAIN,
        repeats: int = 1,
    ) -> None:
        gone = [place for place, (_, label) in enumerate(labelled) if label == GONE]
        source = FileSource([path for path, _ in labelled], gone, pixels)
        super().__init__(source, transform, seed, crops_per_image=repeats, most_bad=most_bad)
        self.labels: Sequence[int] = [label for _, label in labelled]

    def _example(self, picture: Picture, image: int, counter: Counter) -> Any:
        return self.transform(picture, counter), self.labels[image]
