"""What the decoder has to predict: each patch's pixels, standardised by the patch's own mean and deviation.

For ablations also the pixels as they are (`raw`), and the visible patches too (`everywhere`).

All functions work on images of any number of spatial dimensions, written (B, C, H, W) in the comments.
Patches are a *view* of the image, (B, C, h, P, w, P): no pixel is moved to compute a loss.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from .strides import Sides

VARIANCE_EPS = 1e-6
"""Added to a patch's variance (unbiased, in squared units of the normalised image) before its root."""

COUNT_EPS = 1e-8
"""Added to the number of masked patches, as in the paper's code; a batch without any has loss 0."""


def split_patches(images: Tensor, patch_size: Sides) -> Tensor:
    """(B, C, H, W) -> (B, C, h, P, w, P), the inverse of `join_patches`; each side must be divisible by the patch's."""
    shape = list(images.shape[:2])
    for side, p in zip(images.shape[2:], patch_size, strict=True):
        shape += [side // p, p]
    return images.reshape(shape)


def join_patches(patches: Tensor) -> Tensor:
    """(B, C, h, P, w, P) -> (B, C, H, W), the inverse of `split_patches`."""
    shape = list(patches.shape[:2])
    for cells, side in zip(patches.shape[2::2], patches.shape[3::2], strict=True):
        shape.append(cells * side)
    return patches.reshape(shape)


def per_patch(cells: Tensor) -> Tensor:
    """(B, h, w) -> (B, 1, h, 1, w, 1): one value a patch, broadcastable to what `split_patches` gives."""
    shape = [cells.shape[0], 1]
    for side in cells.shape[1:]:
        shape += [side, 1]
    return cells.reshape(shape)


def patch_statistics(images: Tensor, patch_size: Sides) -> tuple[Tensor, Tensor]:
    """Mean and deviation sqrt(unbiased variance + 1e-6) over all P x P x C values of each patch.

    Both (B, 1, h, 1, w, 1), in the units of the normalised images.
    """
    patches = split_patches(images, patch_size)
    within = (1, *range(3, patches.ndim, 2))
    variance, mean = torch.var_mean(patches, dim=within, keepdim=True)  # unbiased
    return mean, (variance + VARIANCE_EPS).sqrt()


def reconstruction_loss(
    images: Tensor,
    prediction: Tensor,
    visible: Tensor,
    patch_size: Sides,
    group: ProcessGroup | None = None,
    *,
    raw: bool = False,
    everywhere: bool = False,
) -> Tensor:
    """Squared error to the standardised patches, mean within a patch, averaged over the masked patches.

    images, prediction: (B, C, H, W), the images normalised and not masked; visible: (B, h, w) bool.
    raw: to the patches as they are; everywhere: averaged over all patches.
    Returns a scalar of at least float32, also under autocast: half precision loses small patch variances.
    With a process group, the mean of the processes' losses is the loss of their joint batch, however many masked
    patches each has.
    Source: Tian et al., arXiv 2301.03580.
    """
    with torch.autocast(images.device.type, enabled=False):
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        prediction = prediction.to(images.dtype)
        target = split_patches(images, patch_size)
        if not raw:
            with torch.no_grad():
                mean, deviation = patch_statistics(images, patch_size)
                target = (target - mean) / deviation
        error = (split_patches(prediction, patch_size) - target).square()
        within = (1, *range(3, error.ndim, 2))
        counted = (torch.ones_like(visible) if everywhere else ~visible).to(error.dtype)
        count, processes = counted.sum(), 1
        if group is not None:
            processes = dist.get_world_size(group)
            dist.all_reduce(count, group=group)
        return (error.mean(within) * counted).sum() / ((count + COUNT_EPS) / processes)


def paint_prediction(
    images: Tensor, prediction: Tensor, visible: Tensor, patch_size: Sides, *, raw: bool = False
) -> Tensor:
    """The picture that a prediction stands for, (B, C, H, W): prediction x deviation + mean of the true patch.

    Visible patches are copied from the image. The statistics of masked patches are the true ones, which only
    someone who has the whole image can know: a way to look at a prediction, not a way to complete a picture. A `raw`
    prediction is the picture itself.
    """
    painted = split_patches(prediction, patch_size).to(images.dtype)
    if not raw:
        mean, deviation = patch_statistics(images, patch_size)
        painted = painted * deviation + mean
    return join_patches(torch.where(per_patch(visible), split_patches(images, patch_size), painted))
