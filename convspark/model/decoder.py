"""The light decoder: a UNet from the deepest densified map to the image, doubling its sides block by block."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm

from ..sparse.synchronised import synchronised_batch_norm
from .strides import Sides

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class BatchNorm(_BatchNorm):
    """BatchNorm of maps of any number of spatial dimensions, over the batches of a process group where one is given."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor, group: ProcessGroup | None = None) -> Tensor:
        if group is None or not self.training:
            return super().forward(input)
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        statistics = (self.running_mean, self.running_var, self.weight, self.bias)
        return synchronised_batch_norm(input, *statistics, self.momentum, self.eps, group)


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
        factors: what each block multiplies the sides by, one number for each spatial axis; in the paper, for a
            stride of 32, five times (2, 2).
        out_channels: channels of the image.
    """

    def __init__(self, width: int, factors: Sequence[Sides], out_channels: int):
        super().__init__()
        widths = [width >> i for i in range(len(factors) + 1)]
        steps = zip(pairwise(widths), factors, strict=True)
        self.blocks = nn.ModuleList(UpBlock(wide, narrow, factor) for (wide, narrow), factor in steps)
        self.head = CONV[len(factors[0])](widths[-1], out_channels, kernel_size=1)
        self.apply(_initialise)

    def forward(self, maps: Sequence[Tensor | None], group: ProcessGroup | None = None) -> Tensor:
        """Decode to (B, out_channels, H, W).

        maps[i], (B, W/2^i, ...), is added to the input of block i; None where the backbone has no such stage.
        maps[0], the deepest, must be there. group: processes to share the norms' statistics with.
        """
        x = maps[0]
        if x is None:
            raise ValueError("maps[0] is None: the decoder starts from the deepest map")
        for i, block in enumerate(self.blocks):
            skip = maps[i] if 0 < i < len(maps) else None
            x = block(x if skip is None else x + skip, group)
        return self.head(x)


def _initialise(module: nn.Module) -> None:
    """The paper's initialisation; norms keep PyTorch's (1, 0)."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
