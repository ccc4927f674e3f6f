"""PatchGrid: which patches of each image are visible, and the index tables that follow from it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..errors import UsageError
from .plans import Plan, Sizes, image_cells, image_rows
from .rows import Around, FromPatches, IntoImages, OutOfImages, Sums, without_inference

T = TypeVar("T")


class PatchGrid:
    """Which patches of each image of a batch are visible, with cached index tables.

    Args:
        visible: bool `(B, *shape)`, True = visible. Counts may differ from image to image and may be 0.

    Attributes:
        batch_size: B.
        shape: patches along each spatial axis, (h, w) for pictures, (d, h, w) for volumes.
        cells: (N,) int64, the visible patches as positions in the flattened `(B, *shape)`, in order.
        slots: (B * prod(shape),) int64, the row of each patch among the visible ones, N where masked.
        visible_per_image: their number where it is known to be the same in each image, else None.
        process_group: processes over whose visible positions batch norms take their statistics; None: this one alone.
    """

    process_group: ProcessGroup | None = None

    def __init__(self, visible: Tensor):
        if not isinstance(visible, Tensor):
            raise UsageError(
                f"visible must be a bool tensor (B, h, w), True = visible, but is a {type(visible).__name__}. "
                "torch.as_tensor makes one of an array or a list."
            )
        if visible.dtype != torch.bool or visible.dim() < 2:
            raise UsageError(
                f"visible must be a bool tensor (B, h, w), True = visible, but is {visible.dtype} of shape "
                f"{tuple(visible.shape)}. Convert it with mask.bool(), or ~mask.bool() if True means masked."
            )
        cells = visible.flatten().nonzero().squeeze(1)
        self._fill(cells, visible.shape[0], tuple(visible.shape[1:]), None)

    def _fill(self, cells: Tensor, batch_size: int, shape: tuple[int, ...], per_image: int | None) -> None:
        self.cells = cells
        self.batch_size = batch_size
        self.shape = shape
        self.visible_per_image = per_image
        slots = cells.new_full((batch_size * math.prod(shape),), cells.shape[0])
        self.slots = slots.scatter(0, cells, torch.arange(cells.shape[0], device=cells.device))
        self.image = cells // math.prod(shape)
        self._tables: dict[object, object] = {}

    @classmethod
    def random(
        cls,
        batch_size: int,
        shape: Sequence[int],
        mask_ratio: float = 0.6,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        *,
        first: int = 0,
        total: int | None = None,
    ) -> PatchGrid:
        """Draw round(prod(shape) * (1 - mask_ratio)) visible patches in each image, uniformly.

        Images from `first` on of a batch of `total` get what they would get in that batch.

        The numbers are drawn on the generator's device, then moved, so that a CPU generator gives the same masks on
        every machine. Nothing waits for the device: the number of visible patches is known beforehand.
        """
        if not 0 <= mask_ratio <= 1:
            raise UsageError(f"mask_ratio must lie between 0 and 1, but is {mask_ratio}.")
        patches = math.prod(shape)
        keep = round(patches * (1 - mask_ratio))
        draw_on = generator.device if generator is not None else device
        total = first + batch_size if total is None else total
        score = torch.rand(total, patches, generator=generator, device=draw_on)[first : first + batch_size]
        chosen = score.topk(keep, dim=1).indices.sort(dim=1).values  # (B, keep)
        chosen = chosen + torch.arange(batch_size, device=chosen.device)[:, None] * patches
        cells = chosen.flatten().to(device, non_blocking=True)  # or else the host would wait for the copy
        return cls.from_cells(cells, batch_size, tuple(shape), keep)

    @classmethod
    def from_cells(
        cls, cells: Tensor, batch_size: int, shape: tuple[int, ...], visible_per_image: int | None = None
    ) -> PatchGrid:
        """Make a grid from sorted positions (N,) in the flattened `(B, *shape)`; needs no `nonzero`."""
        grid = cls.__new__(cls)
        grid._fill(cells, batch_size, shape, visible_per_image)
        return grid

    @property
    def visible(self) -> Tensor:
        """bool `(B, *shape)`, True = visible."""
        return (self.slots < self.num_visible).view(self.batch_size, *self.shape)

    @property
    def num_visible(self) -> int:
        """N, the number of visible patches in the whole batch."""
        return self.cells.shape[0]

    @property
    def device(self) -> torch.device:
        return self.cells.device

    def counts(self) -> Tensor:
        """(B,) int64, the visible patches of each image."""

        return self.cached("counts", lambda: _counts(self.image, self.batch_size))

    def to(self, device: torch.device | str) -> PatchGrid:
        if self.device == torch.device(device):
            return self
        return self._again(self.cells.to(device))

    def afresh(self) -> PatchGrid:
        """The same grid with its index tables yet to be built.

        For a function that `torch.compile` traces: tables that it stored in a grid from outside would become results of
        the graph. What that function returns may then not have this grid.
        """
        return self._again(self.cells)

    def _again(self, cells: Tensor) -> PatchGrid:
        grid = PatchGrid.from_cells(cells, self.batch_size, self.shape, self.visible_per_image)
        return grid if self.process_group is None else grid.across(self.process_group)

    def across(self, group: ProcessGroup | None) -> PatchGrid:
        """The same grid, its index tables shared, as one process's part of a group's batch."""
        grid = copy.copy(self)
        grid.process_group = group
        return grid

    def __repr__(self) -> str:
        h_w = "×".join(map(str, self.shape))
        return f"PatchGrid({self.batch_size} images of {h_w} patches, {self.num_visible} visible)"

    # ---------------------------------------------------------------- index tables

    def cached(self, key: object, build: Callable[[], T]) -> T:
        """The plan under `key`, built on first use: layers that need the same table share it."""
        if key not in self._tables:
            self._tables[key] = without_inference(build)
        return self._tables[key]  # type: ignore[return-value]

    def around(self, reach: Sizes) -> Around:
        """The block of patches up to `reach` patches away from each visible one."""

        def build() -> Around:
            slots = self.slots.to(torch.int32).view(self.batch_size, *self.shape)
            pads = [n for r in reversed(reach) for n in (r, r)]
            blocks = torch.nn.functional.pad(slots, pads, value=self.num_visible + 1)
            for axis, r in enumerate(reach, start=1):
                blocks = blocks.unfold(axis, 2 * r + 1, 1)
            slots = blocks.flatten(0, len(reach)).index_select(0, self.cells).flatten(1)
            count, device = self.num_visible, self.device
            return Around(slots, count, lambda: torch.arange(count, dtype=torch.int32, device=device))

        return self.cached(("around", reach), build)

    def copy(self, plan: Plan, outside: float = 0.0) -> FromPatches:
        """What a plan sees, cell by cell; `outside` is what lies outside the image."""
        return self.cached((plan, outside), lambda: FromPatches(self.around(plan.reach), plan, outside))

    def into_images(self, patch: Sizes, before: Sizes | None = None, after: Sizes | None = None) -> IntoImages:
        """Visible patches, each of `patch` positions, into images of zeros, padded by so many positions."""
        none = (0,) * len(patch)
        before, after = before or none, after or none
        sides = tuple(h * p + b + a for h, p, b, a in zip(self.shape, patch, before, after, strict=True))

        def build() -> IntoImages:
            place = self.cached("place", lambda: self.cells % math.prod(self.shape))
            rows = image_rows(self.shape, patch, before, sides, self.device).index_select(0, place)
            index = torch.add(rows, self.image[:, None], alpha=math.prod(sides)).flatten()
            around = self.cached("whole images", self._whole_images)
            entries = image_cells, self.shape, patch, before, sides, self.device
            positions, one_more = math.prod(patch), Around(around.slots, around.patches + 1, around.own)
            return IntoImages(Sums(around, positions, *entries), Sums(one_more, positions, *entries), index)

        return self.cached(("images", patch, before, after), build)

    def out_of_images(self, patch: Sizes) -> OutOfImages:
        """Visible patches, each of `patch` positions, out of images."""
        return self.into_images(patch).reversed()

    def _whole_images(self) -> Around:
        # Nothing here may hold the grid, which holds it: its tables would stay until Python looks for such circles.
        batch, per_image, visible, image = self.batch_size, self.visible_per_image, self.num_visible, self.image

        def first() -> Tensor:
            return _first(image, batch, visible, per_image).to(torch.int32)

        slots = self.slots.to(torch.int32).view(batch, math.prod(self.shape))
        return Around(slots, visible, first)

    def first_patches(self) -> Tensor:
        """(B,) a visible patch of each image, the first, or one of another image where it has none."""
        return self.cached(
            "first patches", lambda: _first(self.image, self.batch_size, self.num_visible, self.visible_per_image)
        )


def _first(image: Tensor, batch_size: int, visible: int, per_image: int | None) -> Tensor:
    """(N,) the image of each visible patch -> (B,) the first patch of each image."""
    if per_image is not None:
        return torch.arange(batch_size, device=image.device) * per_image
    counts = _counts(image, batch_size)
    return (counts.cumsum(0) - counts).clamp(max=max(visible - 1, 0))


def _counts(image: Tensor, batch_size: int) -> Tensor:
    """(N,) the image of each visible patch -> (B,) how many each image has."""
    return image.new_zeros(batch_size).index_add(0, image, torch.ones_like(image))
