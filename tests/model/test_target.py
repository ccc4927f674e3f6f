"""The target and the loss, against the same in NumPy, patch by patch."""

import numpy as np
import pytest
import torch

from convspark.model.target import (
    join_patches,
    paint_prediction,
    patch_statistics,
    reconstruction_loss,
    split_patches,
)

P = (4, 6)


@pytest.fixture
def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rectangular images of five channels, a prediction, and a mask; each image shows another number of patches."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(3, 5, 2 * P[0], 3 * P[1], generator=generator, dtype=torch.float64) * 3 + 1
    prediction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    visible = torch.tensor([[[1, 0, 1], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 0]]]).bool()
    return images, prediction, visible


def each_patch(images: np.ndarray):
    """((image, row, column), pixels (C, P, P)) of every patch."""
    for b, image in enumerate(images):
        for row in range(image.shape[1] // P[0]):
            for column in range(image.shape[2] // P[1]):
                y, x = row * P[0], column * P[1]
                yield (b, row, column), image[:, y : y + P[0], x : x + P[1]]


@pytest.mark.parametrize(("shape", "patch"), [((2, 3, 8, 12), P), ((1, 2, 4, 8, 12), (2, 8, 4))])
def test_split_and_join_are_inverse(shape, patch):
    images = torch.randn(shape)
    assert torch.equal(join_patches(split_patches(images, patch)), images)


def test_split_patches_holds_the_patches(example):
    patches = split_patches(example[0], P)
    for (b, row, column), pixels in each_patch(example[0].numpy()):
        assert np.array_equal(patches[b, :, row, :, column], pixels)


def test_statistics_of_each_patch(example):
    mean, deviation = patch_statistics(example[0], P)
    assert mean.shape == deviation.shape == (3, 1, 2, 1, 3, 1)
    for (b, row, column), pixels in each_patch(example[0].numpy()):
        assert mean[b, 0, row, 0, column, 0].item() == pytest.approx(pixels.mean(), rel=1e-12)
        expected = np.sqrt(pixels.var(ddof=1) + 1e-6)
        assert deviation[b, 0, row, 0, column, 0].item() == pytest.approx(expected, rel=1e-12)


def test_loss(example):
    images, prediction, visible = example
    losses = []
    for (place, pixels), (_, predicted) in zip(each_patch(images.numpy()), each_patch(prediction.numpy()), strict=True):
        if not visible[place]:
            target = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
            losses.append(((predicted - target) ** 2).mean())
    expected = np.sum(losses) / (len(losses) + 1e-8)
    assert reconstruction_loss(images, prediction, visible, P).item() == pytest.approx(expected, rel=1e-12)


def test_visible_patches_carry_no_loss(example):
    images, prediction, visible = example
    prediction.requires_grad_()
    reconstruction_loss(images, prediction, visible, P).backward()
    assert prediction.grad is not None
    for place, gradient in each_patch(prediction.grad.numpy()):
        assert (gradient == 0).all() == bool(visible[place])


def test_loss_without_masked_patches_is_zero(example):
    images, prediction, visible = example
    assert reconstruction_loss(images, prediction, torch.ones_like(visible), P) == 0


def test_loss_of_a_flat_patch_is_finite():
    flat = torch.full((1, 3, *P), 7.0)
    loss = reconstruction_loss(flat, torch.zeros_like(flat), torch.zeros(1, 1, 1, dtype=torch.bool), P)
    assert loss == 0


def test_loss_is_float32_for_half_precision_and_under_autocast(example):
    images, prediction, visible = (t.float() if t.is_floating_point() else t for t in example)
    exact = reconstruction_loss(images, prediction.bfloat16().float(), visible, P)
    with torch.autocast("cpu", torch.bfloat16):
        loss = reconstruction_loss(images, prediction.bfloat16(), visible, P)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, exact)
    half = reconstruction_loss(images.bfloat16(), prediction.bfloat16(), visible, P)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.02)


def test_painting_the_target_gives_the_image_back(example):
    images, prediction, visible = example
    mean, deviation = patch_statistics(images, P)
    target = join_patches((split_patches(images, P) - mean) / deviation)
    torch.testing.assert_close(paint_prediction(images, target, visible, P), images, rtol=1e-12, atol=1e-12)

    painted = paint_prediction(images, prediction, visible, P)
    pairs = zip(each_patch(painted.numpy()), each_patch(images.numpy()), each_patch(prediction.numpy()), strict=True)
    for (place, shown), (_, pixels), (_, predicted) in pairs:
        if visible[place]:
            assert np.array_equal(shown, pixels)
        else:
            expected = predicted * np.sqrt(pixels.var(ddof=1) + 1e-6) + pixels.mean()
            np.testing.assert_allclose(shown, expected, rtol=1e-12)
