"""The paper's decoder: a UNet from the deepest densified map to the image, doubling its sides block by block."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from .norms import CONV, CONV_TRANSPOSE, BatchNorm, initialise
from .strides import Sides


class UpBlock(nn.Module):
    """(B, c, s, s) -> (B, c', 2s, 2s): transposed conv, two 3x3 convs with BatchNorm, ReLU6 between them.

    Args:
        in_width, out_width: c and c'.
        factor: what each side is multiplied by: 2 in the paper; 1 on an axis that need not grow.
    """

    def __init__(self, in_width: int, out_width: int, factor: Sides):
        super().__init__()
        dims = len(factor)
        kernel = tuple(f + 2 for f in factor)  # with a padding of 1, a side of n becomes exactly n * f
        self.up = CONV_TRANSPOSE[dims](in_width, in_width, kernel, stride=factor, padding=1)
        self.conv1 = CONV[dims](in_width, in_width, kernel_size=3, padding=1, bias=False)
        self.norm1 = BatchNorm(in_width)
        self.act = nn.ReLU6()
        self.conv2 = CONV[dims](in_width, out_width, kernel_size=3, padding=1, bias=False)
        self.norm2 = BatchNorm(out_width)

    def forward(self, x: Tensor, group: ProcessGroup | None = None) -> Tensor:
        x = self.act(self.norm1(self.conv1(self.up(x)), group))
        return self.norm2(self.conv2(x), group)


class Decoder(nn.Module):
    """Up-blocks of width W, W/2, …, then a 1x1 conv to the image's channels.

    Args:
        width: W, the channels of the deepest map; must be divisible by 2^(number of blocks).
        ways: what each block multiplies the sides by, on the way from each stage to the next finer one and to the
            image, as `upsampling` gives them; in the paper, for a stride of 32, five times (2, 2).
        out_channels: channels of the image.
    """

    projection_kernel = 3
    """Side of the convs that project the stages to the width of their block, the deepest stage's apart."""

    def __init__(self, width: int, ways: Sequence[Sequence[Sides]], out_channels: int):
        super().__init__()
        factors = [factor for way in ways for factor in way]
        widths = [width >> i for i in range(len(factors) + 1)]
        steps = zip(pairwise(widths), factors, strict=True)
        self.blocks = nn.ModuleList(UpBlock(wide, narrow, factor) for (wide, narrow), factor in steps)
        self.head = CONV[len(factors[0])](widths[-1], out_channels, kernel_size=1)
        self.apply(initialise)

    @staticmethod
    def count_blocks(ways: Sequence[Sequence[Sides]]) -> int:
        """How many blocks, each halving the width, a decoder has for these `ways`."""
        return sum(map(len, ways))

    def forward(self, maps: Sequence[Tensor | None], group: ProcessGroup | None = None) -> Tensor:
        """Decode to (B, out_channels, H, W).

        maps[i], (B, W/2^i, ...), is added to the input of block i; None where the backbone has no such stage.
        maps[0], the deepest, must be there. group: processes to share the norms' statistics with.
        """
        return self.head(climb(self.blocks, maps, group))


def climb(blocks: nn.ModuleList, maps: Sequence[Tensor | None], group: ProcessGroup | None = None) -> Tensor:
    """Through all blocks, the maps added to their inputs on the way; maps[len(blocks)] is added at the end."""
    x = maps[0]
    if x is None:
        raise ValueError("maps[0] is None: the decoder starts from the deepest map")
    for i, block in enumerate(blocks, start=1):
        x = block(x, group)
        skip = maps[i] if i < len(maps) else None
        x = x if skip is None else x + skip
    return x
