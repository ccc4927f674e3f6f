"""Layers of densify and decoders for any number of spatial dimensions, and how they are initialised."""

from functools import partial

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm

from ..sparse.faster import offered, registered
from ..sparse.synchronised import synchronised_batch_norm
from ..sparse.tensor import GridTensor

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class BatchNorm(_BatchNorm):
    """BatchNorm of maps of any number of spatial dimensions, over the batches of a process group where there is one."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor, group: ProcessGroup | None = None) -> Tensor:
        normalise = None
        if self.training:
            if group is not None:
                normalise = partial(synchronised_batch_norm, group=group)
            elif not isinstance(input, GridTensor):  # of visible patches, the engine asks
                normalise = offered(registered().batch_norms, input)
        if normalise is None:
            return super().forward(input)
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        statistics = (self.running_mean, self.running_var, self.weight, self.bias)
        return normalise(input, *statistics, self.momentum, self.eps)


def initialise(module: nn.Module) -> None:
    """The paper's initialisation of a decoder's layers; norms keep PyTorch's (1, 0)."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
