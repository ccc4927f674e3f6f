"""Densify: from the features of a stage at visible positions to a full map that a dense decoder can read."""

import re
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ..errors import UsageError
from ..sparse import VisiblePatches, scatter
from .norms import CONV, BatchNorm

_PER_POSITION_NORM = re.compile(r"layer_?norm|rms_?norm|simple_?norm", re.IGNORECASE)
_BATCH_NORM = re.compile(r"batch_?norm", re.IGNORECASE)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a (N, C, ...) map, position by position."""

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        last = input.ndim - 1
        # (N, C, p, p) -> (N, p, p, C) and back
        x = input.permute(0, *range(2, last + 1), 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, last, *range(1, last))


class Densify(nn.Module):
    """Norm over visible positions, mask token at masked ones, projection to the decoder's width.

    Args:
        channels: C of the stage.
        width: channels of the decoder's input at this stage.
        norm: "batch" or "layer".
        deepest: the deepest stage is projected by 1x1, and not at all if C is the width.
        dims: number of spatial dimensions, 2 or 3.
        kernel: side of the projection's conv for the other stages, 3 in the paper.
        learned_token: whether masked positions get a learned vector, or zeros.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        norm: str,
        deepest: bool,
        dims: int = 2,
        kernel: int = 3,
        learned_token: bool = True,
    ):
        super().__init__()
        self.norm = ChannelNorm(channels) if norm == "layer" else BatchNorm(channels)
        token = nn.Parameter(torch.empty(1, channels, *[1] * dims))
        nn.init.trunc_normal_(token, std=0.02, a=-0.02, b=0.02)
        self.mask_token = token if learned_token else None
        if deepest and channels == width:
            self.project = nn.Identity()
        else:
            kernel = 1 if deepest else kernel
            self.project = CONV[dims](channels, width, kernel_size=kernel, padding=kernel // 2)

    def forward(self, features: VisiblePatches | Tensor, group: ProcessGroup | None = None) -> Tensor:
        """(N, C, p, p) at visible patches -> (B, width, H, W) everywhere; dense maps have nothing to fill.

        group: processes to share a batch norm's statistics with, of dense maps; patches know theirs.
        """
        if not isinstance(features, VisiblePatches):
            shared = (group,) if isinstance(self.norm, BatchNorm) else ()
            return self.project(self.norm(features, *shared))
        x = self.norm(features)
        # The token takes the features' type, so that under autocast one map has one type.
        token = x.values.new_zeros(1, x.shape[1]) if self.mask_token is None else self.mask_token.to(x.dtype).flatten(1)
        if not self._projects_positions():
            return self.project(scatter(x, fill=token.view(1, -1, *[1] * (x.ndim - 2))))
        # Visible ones are enough, and one that is masked, as all of them are alike.
        project: Any = self.project
        token = F.linear(token, project.weight.flatten(1), project.bias)
        return scatter(project(x), fill=token.view(1, -1, *[1] * (x.ndim - 2)))

    def _projects_positions(self) -> bool:
        """Whether the projection is the conv that was made here, and of one position: others see the whole map."""
        project: Any = self.project
        is_watched = project._forward_hooks or project._forward_pre_hooks
        return type(project) in CONV.values() and max(project.kernel_size) == 1 and not is_watched


def choose_norm(requested: str, modules: Iterable[nn.Module]) -> str:
    """What was requested; for "auto", "layer" if most norms of `modules` are LayerNorms, else "batch".

    Norms are recognised by class name: LayerNorm comes in as many classes as there are memory layouts.
    """
    if requested in ("batch", "layer"):
        return requested
    if requested != "auto":
        raise UsageError(f"densify_norm={requested!r}: expected 'auto', 'batch' or 'layer'")
    names = [type(module).__name__ for module in modules]
    per_position = sum(bool(_PER_POSITION_NORM.search(name)) for name in names)
    batch = sum(bool(_BATCH_NORM.search(name)) for name in names)
    return "layer" if per_position > batch else "batch"
