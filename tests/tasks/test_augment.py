"""Distortions of labelled pictures, beside those of the libraries."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.auto_augment import AutoAugment
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from convspark.data.transforms import PretrainTransform
from convspark.tasks.classification import augment
from convspark.tasks.classification.augment import FinetuneTransform

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8))
PLAIN = {"size": 64, "mean": (0.5, 0.4, 0.3), "std": (1.0, 1.0, 1.0), "scale": (0.3, 1.0)}


def theirs(policy, interpolation):
    """The policy as its library makes it for training."""
    if policy == "trivial":
        return v2.TrivialAugmentWide(interpolation=v2.InterpolationMode(interpolation))
    chain = create_transform(64, is_training=True, auto_augment="v0", interpolation=interpolation, mean=PLAIN["mean"])
    return next(part for part in chain.transforms if isinstance(part, AutoAugment))


def posterized(image, bits):
    """As Pillow did it while it took 0 bits, too."""
    return Image.fromarray(np.asarray(image) & np.uint8(256 - 2 ** (8 - bits)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("policy", ["trivial", "auto"])
def test_a_policy_is_the_librarys(policy, interpolation, monkeypatch):
    monkeypatch.setattr(auto_augment.ImageOps, "posterize", posterized)
    transform = FinetuneTransform(**PLAIN, policy=policy, interpolation=interpolation, erase=0.0)
    distort, changed = theirs(policy, interpolation), 0
    for index in range(40):
        rng = np.random.default_rng((1, index))
        crop = functional.to_pil_image(PretrainTransform(**PLAIN).crop(PICTURE, rng))
        seed = int(rng.integers(1 << 62))
        torch.manual_seed(seed)
        random.seed(seed)
        distorted = distort(crop)
        expected = (
            torch.from_numpy(np.array(distorted)).permute(2, 0, 1) / 255 - torch.tensor(PLAIN["mean"])[:, None, None]
        )
        torch.testing.assert_close(transform(PICTURE, (1, index)), expected, rtol=0, atol=1e-6)
        changed += np.asarray(distorted).tobytes() != np.asarray(crop).tobytes()
    assert changed > 20


@pytest.mark.parametrize("policy", ["trivial", "auto", None])
def test_draws_are_the_counters_alone(policy):
    transform = FinetuneTransform(**PLAIN, policy=policy, erase=1.0)
    states = random.getstate(), torch.get_rng_state()
    first = transform(PICTURE, (3, 1))
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(first, transform(PICTURE, (3, 1))) and not torch.equal(first, transform(PICTURE, (3, 2)))


@pytest.mark.parametrize("policy", ["trivial", "auto"])
def test_grey_pictures_are_distorted_too(policy):
    transform = FinetuneTransform(size=32, mean=(0.5,), std=(1.0,), policy=policy)
    assert all(transform(PICTURE, (0, index)).shape == (1, 32, 32) for index in range(40))


def test_pictures_of_more_bits_are_not(monkeypatch):
    monkeypatch.setattr(augment.FinetuneTransform, "_policy", None)
    transform = FinetuneTransform(size=32, mean=(0.5,) * 3, std=(1.0,) * 3, policy="auto")
    assert transform(torch.rand(3, 40, 40), (0, 1)).shape == (3, 32, 32)
