"""How masks are drawn: each patch by itself, in blocks, from a file, or by a function of the user's."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..sparse import PatchGrid
from ..trust import named_code
from .strides import times

ASPECT = 0.3
"""Sides of a block are at most 1 / 0.3 times as long as one another (BEiT, Bao et al. 2022, algorithm 1)."""

FEWEST = 4
"""Patches of a block, where as many are still to be masked."""

MaskFunction = Callable[[int, tuple[int, ...], float, torch.Generator], Tensor]
"""(images, patches along each axis, mask ratio, generator) -> bool (images, *patches), True = visible."""


Masks = Callable[..., PatchGrid]
"""Draws the masks of some images of a batch; its arguments are those of `PatchGrid.random`."""


def masks_named(name: str) -> Masks:
    """The way of drawing that a setting names.

    Args:
        name: `random`; `blocks`; a .npy file of masks (K, h, w), nonzero = visible, of which every image gets one; or
            package.module:function, a `MaskFunction`.

    Raises:
        UsageError: none of these, or a file or a function that cannot be used.
    """
    if name in KINDS:
        return KINDS[name]
    if name.endswith(".npy"):
        return _MasksOfFunction(masks_of(name), name)
    if ":" in name:
        function = named_code(name, "masks")
        if not callable(function):
            raise UsageError(f"masks is {name!r}, a {type(function).__name__}: expected a function")
        return _MasksOfFunction(cast("MaskFunction", function), name)
    raise UsageError(f"masks is {name!r}: expected random, blocks, a .npy file, or package.module:function")


def blocks(images: int, shape: tuple[int, ...], mask_ratio: float, generator: torch.Generator) -> Tensor:
    """Mask rectangles until round(patches * (1 - mask_ratio)) are visible; each may lie anywhere, over others too."""
    seeds = torch.randint(1 << 62, (images,), generator=generator, device=generator.device).tolist()
    return torch.from_numpy(np.stack([_block_mask(np.random.default_rng(seed), shape, mask_ratio) for seed in seeds]))


def _block_mask(draw: np.random.Generator, shape: tuple[int, ...], mask_ratio: float) -> np.ndarray:
    visible = np.ones(shape, bool)
    remaining = visible.size - round(visible.size * (1 - mask_ratio))
    while remaining > 0:
        area = draw.uniform(min(FEWEST, remaining), remaining + 1)
        stretch = draw.uniform(math.log(ASPECT), -math.log(ASPECT), len(shape)) / 2
        sides = np.exp(stretch - stretch.mean()) * area ** (1 / len(shape))
        sides = np.clip(np.round(sides).astype(int), 1, shape)
        corner = [draw.integers(most - side + 1) for side, most in zip(sides, shape, strict=True)]
        block = tuple(slice(at, at + side) for at, side in zip(corner, sides, strict=True))
        hit = np.zeros(shape, bool)
        hit[block] = visible[block]
        hit = hit.flatten().nonzero()[0][:remaining]  # of the last block a part, so that all images keep as many
        visible.flat[hit] = False
        remaining -= len(hit)
    return visible


def masks_of(file: str) -> MaskFunction:
    """A function that draws from the masks of a .npy file (K, h, w), nonzero = visible."""
    try:
        stored = np.load(Path(file), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"masks is {file!r}, which cannot be read as a .npy file: {error}") from None
    if stored.ndim < 3 or stored.dtype.kind not in "biu" or not len(stored):
        raise UsageError(
            f"masks is {file!r}, {stored.dtype} of shape {stored.shape}: expected whole numbers or bool (K, h, w), "
            "K masks of h x w patches, nonzero where visible"
        )
    known = torch.from_numpy(stored != 0)
    if not _show_and_hide(known):
        raise UsageError(f"masks is {file!r}: each mask must leave at least one patch visible and mask at least one")

    def draw(images: int, shape: tuple[int, ...], mask_ratio: float, generator: torch.Generator) -> Tensor:
        if tuple(known.shape[1:]) != shape:
            raise UsageError(
                f"masks is {file!r}, masks of {times(known.shape[1:])} patches: expected {times(shape)}, as the images "
                "have; (size / patch_size) is the number"
            )
        return known[torch.randint(len(known), (images,), generator=generator, device=generator.device).cpu()]

    return draw


def _show_and_hide(masks: Tensor) -> bool:
    """Whether each of some masks (N, h, w) leaves a patch visible, and masks one."""
    flat = masks.flatten(1)
    return bool((flat.any(1) & ~flat.all(1)).all())


class _MasksOfFunction:
    """Masks that a function draws for the whole batch, even for a part of it: the same on any number of processes.

    Args:
        name: for messages.
        same: whether it leaves equally many patches visible in all images.
    """

    def __init__(self, function: MaskFunction, name: str, same: bool = False) -> None:
        self._function, self._name, self._same = function, name, same

    def __call__(
        self,
        batch_size: int,
        shape: tuple[int, ...],
        mask_ratio: float,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        *,
        first: int = 0,
        total: int | None = None,
    ) -> PatchGrid:
        total = first + batch_size if total is None else total
        generator = torch.default_generator if generator is None else generator
        try:
            visible = self._function(total, shape, mask_ratio, generator)
        except TypeError as error:
            raise UsageError(
                f"masks is {self._name!r}, which cannot be called with (images, shape, mask_ratio, generator): {error}"
            ) from error
        if not isinstance(visible, Tensor) or visible.dtype != torch.bool or visible.shape != (total, *shape):
            kind = f"{visible.dtype} {tuple(visible.shape)}" if isinstance(visible, Tensor) else type(visible).__name__
            raise UsageError(
                f"masks is {self._name!r}, which gave {kind}: expected a bool tensor {(total, *shape)}, True = visible"
            )
        if not self._same and not _show_and_hide(visible):
            raise UsageError(
                f"masks is {self._name!r}, which left an image all visible or all masked: expected at least one "
                "visible patch and one masked in each"
            )
        cells = visible[first : first + batch_size].flatten().nonzero().squeeze(1)
        per_image = round(math.prod(shape) * (1 - mask_ratio)) if self._same else None
        cells = cells.to(device, non_blocking=True)  # or else the host would wait for the copy
        return PatchGrid.from_cells(cells, batch_size, shape, per_image)


KINDS: dict[str, Masks] = {"random": PatchGrid.random, "blocks": _MasksOfFunction(blocks, "blocks", same=True)}
"""Ways by which as many patches of each image are visible as the mask ratio says."""
