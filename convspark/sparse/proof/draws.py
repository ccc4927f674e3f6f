"""What makes a dense run and one on visible patches comparable: float64, and the same random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import axes as lay
from ..grid import PatchGrid
from ..tensor import VisiblePatches, as_patches, gather, scatter

# By name, as a network calls them. Of these, each element of a tensor draws for itself:
_BY_ELEMENT = set(
    """rand_like randn_like bernoulli bernoulli_ uniform_ normal_ exponential_ dropout dropout_ alpha_dropout
    alpha_dropout_""".split()
)
_FILLED = {"rand": Tensor.uniform_, "randn": Tensor.normal_}  # what is made from a shape is filled afterwards
# Of these, images and channels do, or nothing of the map.
_OTHERS = set(
    """dropout1d dropout2d dropout3d feature_dropout feature_alpha_dropout randint randint_like randperm normal poisson
    multinomial random_ geometric_ cauchy_ log_normal_ gumbel_softmax""".split()
)


class SameDraws(TorchFunctionMode):
    """A mode under which draw k of a dense run and draw k of a run on visible patches take the same numbers.

    Each draw takes one number from the global generator and is seeded by it, so that a checkpoint repeats it. What is
    drawn for elements of patches is drawn for the whole map and cut out of it; what is drawn for rows, one number a
    patch, is drawn for images. Where a network goes to float32, it stays in float64.

    Args:
        grid: of a run on visible patches; None of a dense one.
        as_they_come: leave the random numbers alone.

    Attributes:
        draws: in order: names of functions and the shapes that a dense network has.
    """

    def __init__(self, grid: PatchGrid | None = None, as_they_come: bool = False):
        super().__init__()
        self.grid, self.as_they_come = grid, as_they_come
        self.draws: list[tuple[str, tuple[int, ...]]] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.float:
            return args[0].double()
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        args = tuple([torch.float64 if a is torch.float32 else a for a in args])
        name = "" if self.as_they_come else getattr(func, "__name__", "")
        if name in _FILLED and "generator" not in kwargs:
            return self._draw(_FILLED[name], _seeded(func, *args, **kwargs))
        if name == "rrelu":
            return self._rrelu(*args, **kwargs)
        if name in _BY_ELEMENT and args and isinstance(args[0], Tensor):
            return self._draw(func, *args, **kwargs)
        if name in _BY_ELEMENT or name in _OTHERS:
            self.draws.append((name, ()))
            return _seeded(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _draw(self, func: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        whole, cut = self._whole(x)
        self.draws.append((func.__name__, tuple(whole.shape)))
        version = whole._version
        out = _seeded(func, whole, *args, **kwargs)
        if whole._version != version:  # it was drawn in place
            return x.copy_(cut(out))
        return x if out is whole else cut(out)

    def _rrelu(
        self, input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training=False, inplace=False
    ) -> Tensor:
        """PyTorch's own draws for negative elements alone, so that what masked ones are would change the others."""
        if not training:
            return torch.nn.functional.rrelu(input, lower, upper, training, inplace)
        slope = self._draw(Tensor.uniform_, torch.empty_like(input), lower, upper)
        out = torch.where(input >= 0, input, slope * input)
        return input.copy_(out) if inplace else out

    def _whole(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """What a dense network has in place of x, contiguous, and how to cut x out of it."""
        if isinstance(x, VisiblePatches):
            return _whole_map(x)
        grid = self.grid
        if grid is not None and x.dim() > 1 and type(x) is Tensor and x.shape[0] == x.numel() == grid.num_visible > 1:
            images = x.new_zeros(grid.batch_size, *x.shape[1:]).index_copy(0, grid.image, x)
            # The engine takes what an image's first patch has (random.py). The others get another image's number, which
            # shows where a network multiplies each patch by its own: on the way back, say.
            first = torch.diff(grid.image, prepend=grid.image[:1] - 1) > 0
            rows = torch.where(first, grid.image, (grid.image + 1) % grid.batch_size)
            return images, lambda values: values.index_select(0, rows)
        return x.clone(memory_format=torch.contiguous_format), lambda values: values


def _seeded(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    devices = {x.device for x in args if isinstance(x, Tensor) and x.device.type == "cuda"}
    seed = int(torch.randint(2**31, ()))
    with torch.random.fork_rng(list(devices)):
        torch.manual_seed(seed)
        return func(*args, **kwargs)


def _whole_map(x: VisiblePatches) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The map that visible patches are cut out of, its axes in their order, 0 where masked."""
    factors = [factor for axis in x.axes for factor in axis or ((lay.PLAIN, 1),)]
    roles = [role for role, _ in factors]
    if sorted(map(str, (r for r in roles if r != lay.PLAIN))) != [*map(str, range(len(x.grid.shape))), lay.PATCH]:
        return x, lambda values: values
    ranks = [lay.PATCH, lay.PLAIN, *range(len(x.grid.shape))]
    order = sorted(range(len(roles)), key=lambda at: ranks.index(roles[at]))
    back = sorted(range(len(roles)), key=order.__getitem__)
    times = {lay.PLAIN: 1, **dict(enumerate(x.grid.shape))}
    small = [size for _, size in factors]
    large = [x.grid.batch_size if role == lay.PATCH else size * times[role] for role, size in factors]
    wide = iter(large)
    shape = [math.prod(next(wide) for _ in axis or (0,)) for axis in x.axes]
    dims = len(x.grid.shape)

    def apart(values: Tensor, sizes: list[int]) -> Tensor:  # to (rows, channels, *positions)
        split = values.reshape(sizes).permute(order)
        return split.reshape(split.shape[0], -1, *split.shape[-dims:])

    def together(values: Tensor, sizes: list[int], shape: Any) -> Tensor:
        return values.reshape([sizes[at] for at in order]).permute(back).reshape(shape)

    whole = together(scatter(as_patches(apart(x.values, small), x.grid)), large, shape).contiguous()

    def cut(values: Tensor) -> Tensor:
        patches = gather(apart(values, large), x.grid).values
        return as_patches(together(patches, small, x.shape), x.grid, x.axes)

    return whole, cut
