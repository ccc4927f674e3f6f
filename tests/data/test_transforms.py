"""Transforms: the pixels are torchvision's, the crops are spread like torchvision's, the randomness is counted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from convspark.data import Shrunk, decode, demo_photographs
from convspark.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    HeldOutTransform,
    Normalise,
    Picture,
    PretrainTransform,
)
from convspark.errors import DataError, UsageError

RNG = np.random.default_rng(0)
# Pillow's and torch's resampling of bytes may round differently, by 1 of 255: here in units of the smallest std.
ROUNDING = 1.01 / 255 / min(IMAGENET_STD)
PHOTO = Image.fromarray(RNG.integers(0, 256, (12, 16, 3), np.uint8)).resize((160, 120), Image.Resampling.BICUBIC)


def torchvision_normalised(picture: Image.Image) -> torch.Tensor:
    to_floats = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    return v2.functional.normalize(to_floats(picture), list(IMAGENET_MEAN), list(IMAGENET_STD))


def coordinates(height: int, width: int) -> torch.Tensor:
    """(2, H, W): each pixel's x and y, as shares of the width and the height."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y])


def crop_of(out: torch.Tensor) -> tuple[float, float, float, float]:
    """(left, top, width, height) of the crop that coordinates (2, H, W) came from, as shares: a line fitted to each."""
    _, height, width = out.shape
    step_x, left = np.polyfit(np.arange(4, width - 4) + 0.5, out[0, height // 2, 4:-4].numpy(), 1)
    step_y, top = np.polyfit(np.arange(4, height - 4) + 0.5, out[1, 4:-4, width // 2].numpy(), 1)
    return left, top, step_x * width, step_y * height


def plain(**options: object) -> PretrainTransform:
    return PretrainTransform(size=32, mean=(0.0, 0.0), std=(1.0, 1.0), **options)  # type: ignore[arg-type]


def test_values_are_torchvisions() -> None:
    whole = PretrainTransform(size=(48, 64), scale=(1, 1), ratio=(4 / 3, 4 / 3), flip=False)
    expected = torchvision_normalised(PHOTO.resize((64, 48), Image.Resampling.BICUBIC))
    out = whole(PHOTO, 5)
    torch.testing.assert_close(out, expected, rtol=0, atol=ROUNDING)
    assert (out - expected).abs().gt(1e-5).float().mean() < 0.02  # nearly nowhere, and without a bias
    assert out.dtype == torch.float32 and out.is_contiguous()


def test_a_crop_is_torchvisions_resized_crop() -> None:
    for counter in range(20):
        transform = PretrainTransform(size=(40, 56), scale=(0.2, 0.9), flip=False)
        boxes = PretrainTransform(size=64, scale=(0.2, 0.9), flip=False, mean=(0, 0), std=(1, 1))
        left, top, width, height = crop_of(boxes(coordinates(120, 160), counter))  # another route to the same crop
        box = round(top * 120), round(left * 160), round(height * 120), round(width * 160)
        expected = v2.functional.resized_crop(PHOTO, *box, [40, 56], interpolation=InterpolationMode.BICUBIC)
        torch.testing.assert_close(transform(PHOTO, counter), torchvision_normalised(expected), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("height", "width"), [(500, 200), *(pytest.param(300, width, marks=pytest.mark.slow) for width in (300, 450))]
)
def test_crops_are_spread_like_torchvisions(height: int, width: int) -> None:
    count, scale, ratio = 1500, (0.3, 1.0), (3 / 4, 4 / 3)
    image = coordinates(height, width)
    ours = np.array([crop_of(plain(scale=scale, flip=False)(image, (7, i))) for i in range(count)])
    torch.manual_seed(0)
    theirs = []
    for _ in range(count):
        box = v2.RandomResizedCrop(32, scale, ratio).make_params([Image.new("L", (width, height))])
        theirs.append((box["left"] / width, box["top"] / height, box["width"] / width, box["height"] / height))
    for name, a, b in zip(("left", "top", "width", "height"), ours.T, np.array(theirs).T, strict=True):
        # Quantiles of two samples of 1,500 differ by some 0.03 at most (Kolmogorov-Smirnov at 1e-4: 0.08).
        grid = np.linspace(0, 1, 41)
        gap = np.abs((a[:, None] <= grid + 0.01).mean(0) - (b[:, None] <= grid + 0.01).mean(0)).max()
        assert gap < 0.08, (name, gap)


def test_half_of_the_crops_are_mirrored() -> None:
    image = coordinates(64, 64)
    mirrored = sum(crop_of(plain()(image, (1, i)))[2] < 0 for i in range(1000))
    assert 430 < mirrored < 570
    assert all(crop_of(plain(flip=False)(image, (1, i)))[2] > 0 for i in range(100))


def test_the_same_counter_gives_the_same_crop_and_leaves_global_generators_alone() -> None:
    transform = PretrainTransform(size=32)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = transform(PHOTO, (3, 1, 0, 17))
    torch.manual_seed(1234)
    assert torch.equal(first, transform(PHOTO, (3, 1, 0, 17)))
    for other in [(4, 1, 0, 17), (3, 1, 1, 17), (3, 1, 0, 18)]:
        assert not torch.equal(first, transform(PHOTO, other))
    torch.set_rng_state(before[0])
    transform(PHOTO, 0)
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()


def test_crops_that_travel_as_bytes_become_the_same_numbers() -> None:
    draw = torch.Generator().manual_seed(0)
    colour, grey = (torch.randint(256, (c, 50, 60), generator=draw).to(torch.uint8) for c in (3, 1))
    deep = torch.randint(-9000, 9000, (3, 50, 60), generator=draw).to(torch.int16)
    numbers, in_bytes = PretrainTransform(size=32), PretrainTransform(size=32, in_bytes=True)
    normalise = Normalise(numbers.mean, numbers.std)
    for pictures, are_alike in (
        ([PHOTO, colour, PHOTO], True),
        ([grey, grey], True),
        ([PHOTO, grey], False),
        ([colour, deep], False),
        ([deep, deep.float()], False),
    ):
        batch = in_bytes.collate([in_bytes(picture, number) for number, picture in enumerate(pictures)])
        assert (batch.dtype == torch.uint8) == are_alike
        batch = normalise(batch) if are_alike else batch
        assert torch.equal(batch, torch.stack([numbers(picture, number) for number, picture in enumerate(pictures)]))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 2000)])
def test_any_shape_of_picture(size: tuple[int, int]) -> None:
    for picture in (Image.new("RGB", size, "red"), torch.full((3, *size), 255, dtype=torch.uint8)):
        for transform in (PretrainTransform(size=(32, 48)), HeldOutTransform(size=(32, 48))):
            for counter in range(5):
                assert transform(picture, counter).shape == (3, 32, 48)


def test_held_out_is_resize_and_centre_crop() -> None:
    for size in ((300, 200), (200, 300), (96, 96), (50, 70)):
        picture = PHOTO.resize(size, Image.Resampling.BICUBIC)
        resized = v2.functional.resize(picture, 96, interpolation=InterpolationMode.BICUBIC)
        expected = torchvision_normalised(v2.functional.center_crop(resized, [96, 96]))
        out = HeldOutTransform(size=96)(picture)
        assert (out - expected).abs().mean() < 0.05, size
    # Rectangles: all of the width, the middle of the height.
    coords = HeldOutTransform(size=(32, 64), mean=(0, 0), std=(1, 1))(coordinates(90, 60))
    np.testing.assert_allclose(crop_of(coords), (0, 1 / 3, 1, 1 / 3), atol=0.01)


def test_grey_networks() -> None:
    out = PretrainTransform(size=32, mean=(0.5,), std=(0.25,))(PHOTO, 0)
    assert out.shape == (1, 32, 32)
    colour = PretrainTransform(size=32, mean=(0.5,) * 3, std=(0.25,) * 3)(PHOTO, 0)
    luma = torch.einsum("c,chw->hw", torch.tensor([0.299, 0.587, 0.114]), colour)
    torch.testing.assert_close(out[0], luma, rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("dtype", "top"), [(torch.uint8, 255), (torch.uint16, 65535), (torch.int16, 32767), (torch.float64, 1)]
)
def test_tensors_of_many_channels(dtype: torch.dtype, top: int) -> None:
    shares = torch.rand(5, 40, 30)
    image = (shares * top).to(dtype)
    transform = PretrainTransform(
        size=(40, 30), scale=(1, 1), ratio=(0.75, 0.75), flip=False, mean=[0.5] * 5, std=[2] * 5
    )
    torch.testing.assert_close(transform(image, 0), (shares - 0.5) / 2, rtol=0, atol=0.005)
    assert (image == (shares * top).to(dtype)).all()


def test_shrinking_never_blows_a_crop_up_nor_keeps_pixels_it_could_spare() -> None:
    for size, scale in (((224, 224), (0.67, 1.0)), ((64, 128), (0.1, 0.5)), ((128, 64), (0.1, 0.5))):
        transform = PretrainTransform(size=size, scale=scale, mean=(0, 0), std=(1, 1), flip=False)
        for shape in ((600, 600), (500, 1500), (1100, 450), (100, 300)):
            image = coordinates(*shape)
            for counter in range(30):
                _, _, crop_width, crop_height = crop_of(transform(image, counter))  # another route to the same crop
                sides = crop_width * shape[1] / size[1], crop_height * shape[0] / size[0]
                factor = transform.shrink(*shape, counter)
                if factor == 1:
                    assert min(sides) < 2.1
                else:
                    assert factor == pytest.approx(min(sides), rel=0.02)


@pytest.mark.parametrize("size", [(96, 96), (128, 64)])
def test_a_crop_of_a_shrunk_photograph_is_nearly_that_of_the_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    """The same counter shows the same part, mirrored alike; the values differ by what resampling and edges do."""
    for name, photograph in demo_photographs()[:6]:
        path = tmp_path / f"{name}.jpg"
        photograph.save(path, quality=92)
        whole = decode(path)

        def levels(transform: PretrainTransform | HeldOutTransform, picture: Picture, counter: int) -> np.ndarray:
            return transform(picture, counter).numpy() * 255

        plain = {"size": size, "mean": (0, 0, 0), "std": (1, 1, 1)}
        transform, held_out = PretrainTransform(**plain), HeldOutTransform(**plain)
        for counter in range(8):
            picture = decode(path, lambda height, width, c=counter, t=transform: t.shrink(height, width, c))
            assert isinstance(picture, Shrunk)
            truth = levels(transform, whole, counter)
            gap = np.abs(levels(transform, picture, counter) - truth).mean()
            assert gap < 10 and gap < 0.4 * np.abs(levels(transform, whole, counter + 100) - truth).mean(), name
        # Held-out pictures, which are compared over time, are decoded at twice the size.
        gap = np.abs(levels(held_out, decode(path, held_out.shrink), 0) - levels(held_out, whole, 0)).mean()
        assert gap < 3.5, name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "size"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.9, 0.5)}, "scale"),
        ({"ratio": (2, 1)}, "ratio"),
        ({"mean": (0.5,)}, "mean, std"),
        ({"std": (0.5, 0.5, 0)}, "std"),
    ],
)
def test_bad_settings(options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PretrainTransform(**options)


def test_channels_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match=r"5 channels, but a picture file has 3"):
        PretrainTransform(mean=[0.5] * 5, std=[1] * 5)(PHOTO, 0)
    with pytest.raises(UsageError, match=r"3 channels, but the images have 5"):
        PretrainTransform()(torch.zeros(5, 20, 20), 0)
    with pytest.raises(DataError, match=r"\(C, H, W\)"):
        PretrainTransform()(torch.zeros(3, 0, 20), 0)


def test_the_whole_picture_can_be_squeezed_into_the_size() -> None:
    for size in ((300, 200), (50, 70)):
        picture = PHOTO.resize(size, Image.Resampling.BICUBIC)
        expected = torchvision_normalised(picture.resize((96, 96), Image.Resampling.BICUBIC))
        transform = HeldOutTransform(size=96, share=None)
        assert (transform(picture) - expected).abs().mean() < 0.05, size
        assert transform.shrink(picture.height, picture.width) == min(picture.size) / 96 / 2
