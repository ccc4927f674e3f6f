"""A feature pyramid (FPN) on any convnet's stages, for detection and segmentation."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from ..model.stages import Stages
from .layer_groups import decayed_groups, layer_groups


class Pyramid(nn.Module):
    """Images (B, C, H, W) -> maps of `out_channels` at each stage's stride, and one coarser, by name.

    Args:
        backbone: the network; the module itself, not a copy.
        out_channels: of each map.
        extra: whether a map of twice the deepest stride is added, which torchvision's detectors want.
        norm: whether a batch norm follows each of its convolutions.
    """

    def __init__(self, backbone: nn.Module, out_channels: int = 256, extra: bool = True, norm: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.stages = Stages(backbone)
        self.out_channels = out_channels
        blocks: ExtraFPNBlock | None = LastLevelMaxPool() if extra else None
        norms = nn.BatchNorm2d if norm else None
        self.fpn = FeaturePyramidNetwork(list(self.stages.channels), out_channels, blocks, norms)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.stages(images)
        return self.fpn(OrderedDict((str(i), features) for i, features in enumerate(maps)))


def pyramid_groups(
    network: nn.Module, pyramid: Pyramid, decay: float, group_blocks: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Optimiser groups: the backbone's decayed layer by layer, all else at the full rate.

    Parameters of the backbone after its deepest stage are left out: no gradient reaches them.
    """
    inside, count = layer_groups(pyramid.backbone, pyramid.stages, group_blocks)
    prefix = next(name for name, module in network.named_modules() if module is pyramid.backbone) + "."
    own = [name for name, _ in network.named_parameters()]
    groups = {n: inside[n.removeprefix(prefix)] if n.startswith(prefix) else count - 1 for n in own}
    unreached = frozenset(prefix + name for name in pyramid.stages.untrained)
    return decayed_groups(network, decay, groups, count, unreached)
