"""The lean decoder: the paper's idea (hierarchical, skips by addition, coarse to fine) at a fraction of its cost."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from .decoder import climb
from .norms import CONV, BatchNorm, initialise
from .strides import Sides

MOST_AT_ONCE = 4
"""Pixels along each axis that one position of the head paints, at most."""


class Grow(nn.Module):
    """(B, c, *s) -> (B, c', *(s * factor)): a 1x1 conv to all the new positions' channels, then laid out in space.

    The same function as a transposed conv whose kernel is its stride, at a matrix product's speed.
    """

    def __init__(self, in_width: int, out_width: int, factor: Sides, bias: bool = True):
        super().__init__()
        self.factor = factor
        self.conv = CONV[len(factor)](in_width, out_width * math.prod(factor), kernel_size=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        # Channels last, as the 1x1 conv gives and the next conv wants them: copies, also of gradients, move whole runs
        # of channels. (B, s, s, f*f*c') -> (B, s, s, f, f, c') -> (B, s, f, s, f, c') -> (B, s*f, s*f, c')
        x = self.conv(x).movedim(1, -1)
        (batch, *sides, _), dims = x.shape, len(self.factor)
        x = x.reshape(batch, *sides, *self.factor, -1)
        order = [n for axis in range(dims) for n in (1 + axis, 1 + dims + axis)]
        x = x.permute(0, *order, -1).reshape(batch, *(s * f for s, f in zip(sides, self.factor, strict=True)), -1)
        return x.movedim(-1, 1)


class LeanBlock(nn.Module):
    """(B, c, s, s) -> (B, c', 2s, 2s): 1x1 conv and pixel shuffle, BatchNorm, ReLU6, 3x3 conv, BatchNorm.

    Args:
        in_width, out_width, factor: as for `UpBlock`.
    """

    def __init__(self, in_width: int, out_width: int, factor: Sides):
        super().__init__()
        self.up = Grow(in_width, out_width, factor, bias=False)
        self.norm1 = BatchNorm(out_width)
        self.act = nn.ReLU6()
        self.conv = CONV[len(factor)](out_width, out_width, kernel_size=3, padding=1, bias=False)
        self.norm2 = BatchNorm(out_width)

    def forward(self, x: Tensor, group: ProcessGroup | None = None) -> Tensor:
        return self.norm2(self.conv(self.act(self.norm1(self.up(x), group))), group)


class LeanDecoder(nn.Module):
    """Lean blocks of width W, W/2, … up to the finest stage or to a stride of 4, where each position paints its pixels.

    Where the paper's decoder spends two fifths of its work on growing the map from a stride of 4 to the image, and most
    of a block's on convs at its wider width, this one halves the width before it convolves and never sees full
    resolution. Arguments as for `Decoder`.
    """

    projection_kernel = 1
    block = LeanBlock

    def __init__(self, width: int, ways: Sequence[Sequence[Sides]], out_channels: int):
        super().__init__()
        factors, painted = _divide(ways)
        widths = [width >> i for i in range(len(factors) + 1)]
        steps = zip(pairwise(widths), factors, strict=True)
        self.blocks = nn.ModuleList(self.block(wide, narrow, factor) for (wide, narrow), factor in steps)
        last, dims = widths[-1], len(painted)
        self.conv = CONV[dims](last, last, kernel_size=3, padding=1, bias=False)
        self.norm = BatchNorm(last)
        self.act = nn.ReLU6()
        self.head = Grow(last, out_channels, painted)
        self.apply(initialise)

    @staticmethod
    def count_blocks(ways: Sequence[Sequence[Sides]]) -> int:
        """How many blocks, each halving the width, a decoder has for these `ways`."""
        return len(_divide(ways)[0])

    def forward(self, maps: Sequence[Tensor | None], group: ProcessGroup | None = None) -> Tensor:
        """As `Decoder.forward`; one more map may follow those of the blocks, which the head starts from."""
        x = climb(self.blocks, maps, group)
        return self.head(self.act(self.norm(self.conv(x), group)))


def _divide(ways: Sequence[Sequence[Sides]]) -> tuple[list[Sides], Sides]:
    """The factors of the blocks, and what the head does at once: the end of the way from the finest stage."""
    *coarse, last = ways
    blocks = list(last)
    painted: Sides = (1,) * len(last[0])
    while blocks:
        more = tuple(p * f for p, f in zip(painted, blocks[-1], strict=True))
        if max(more) > max(MOST_AT_ONCE, max(blocks[-1])):
            break
        painted = more
        blocks.pop()
    return [factor for way in coarse for factor in way] + blocks, painted
