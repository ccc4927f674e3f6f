"""Labelled pictures as training examples: stronger augmentation than pre-training's, counted like it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ...data import PLAIN, FileSource, Pixels, PretrainImages, PretrainTransform
from ...data.transforms import Picture
from ...seeds import Counter
from .data import GONE, Labelled


@dataclass(frozen=True, kw_only=True)
class FinetuneTransform(PretrainTransform):
    """Random resized crop, flip, TrivialAugmentWide and random erasing (SparK paper, fine-tuning recipe).

    Args:
        policy: whether TrivialAugmentWide is applied; to pictures of 8 bits only, it knows no others.
        erase: share of the pictures of which a rectangle is replaced by noise.
    """

    policy: bool = True
    erase: float = 0.25

    @cached_property
    def _trivial(self) -> v2.Transform:
        return v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)

    @cached_property
    def _erasing(self) -> v2.Transform:
        return v2.RandomErasing(p=self.erase, value="random")  # type: ignore[arg-type]

    def __call__(self, picture: Picture, counter: Counter) -> Tensor:
        rng = np.random.default_rng(counter)
        crop = self.crop(picture, rng)
        with _torch_seeded(int(rng.integers(1 << 62))):
            if self.policy and crop.dtype == torch.uint8:
                crop = functional.pil_to_tensor(self._trivial(functional.to_pil_image(crop)))
            image = self._normalise(crop)
            return self._erasing(image) if self.erase else image


@contextmanager
def _torch_seeded(seed: int) -> Iterator[None]:
    """The library's transforms draw from torch's generator: for once it is the counter's.

    Only the CPU's, which is the one that they use: `torch.manual_seed` takes longer than the transforms.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


class LabelledImages(PretrainImages):
    """`dataset[(epoch, index)]` is (image, label); a picture that stands in for a bad one brings its own label."""

    def __init__(
        self,
        labelled: Labelled,
        transform: Callable[[Picture, Counter], Tensor],
        seed: int = 0,
        most_bad: float = 0.05,
        pixels: Pixels = PLAIN,
    ) -> None:
        gone = [place for place, (_, label) in enumerate(labelled) if label == GONE]
        super().__init__(FileSource([path for path, _ in labelled], gone, pixels), transform, seed, most_bad=most_bad)
        self.labels: Sequence[int] = [label for _, label in labelled]

    def _example(self, picture: Picture, image: int, counter: Counter) -> Any:
        return self.transform(picture, counter), self.labels[image]
