"""Layers of densify and decoders for any number of spatial dimensions, and how they are initialised."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm

from ..sparse.faster import offered, registered
from ..sparse.synchronised import synchronised_batch_norm
from ..sparse.tensor import GridTensor
from .jointly import in_force

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class BatchNorm(_BatchNorm):
    """BatchNorm of maps of any number of spatial dimensions, over the batches of a process group where there is one."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor, group: ProcessGroup | None = None) -> Tensor:
        if not self.training:
            return super().forward(input)
        normalise = self._kernel(input) if group is None else partial(synchronised_batch_norm, group=group)
        if normalise is None:
            return super().forward(input)
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        statistics = (self.running_mean, self.running_var, self.weight, self.bias)
        return normalise(input, *statistics, self.momentum, self.eps)

    def _kernel(self, input: Tensor) -> Callable[..., Tensor] | None:
        """A faster way than PyTorch's to normalise a plain tensor as usual; for visible patches the engine has one."""
        is_usual = self.momentum is not None and self.running_mean is not None and input.numel() > self.num_features
        if torch.compiler.is_compiling() or not is_usual or isinstance(input, GridTensor):
            return None
        if any(mode.group is not None for mode in in_force()):  # they see PyTorch's, and normalise over all processes
            return None
        return offered(registered().batch_norms, input)


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
