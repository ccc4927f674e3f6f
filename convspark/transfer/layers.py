"""Layer-wise decay of the learning rate: which layer group each parameter of a network belongs to."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..model.backbone import Stages

_LONG_STAGE = 6  # blocks from which on a stage is divided
_VERY_LONG_STAGE = 10  # of a network with LayerNorm: groups of three blocks from here on


def layer_groups(network: nn.Module, stages: Stages | None = None) -> tuple[dict[str, int], int]:
    """The group of each parameter, 0 for the stem, and the number of groups; the head is the last.

    The paper's grouping, generalised. Stem, stages and head are groups. The stage with the most blocks is divided into
    three, or for a ConvNeXt of more than 9 blocks there into groups of three blocks: 8 groups for a ResNet-50, 101 or
    152 and for a ConvNeXt-T, so that the stem has decay^7, and 14 (decay^13) for ConvNeXt-S, B and L. timm's own
    grouping goes by block, which gives a ResNet-50's stem a rate 40 times lower.

    Args:
        network: timm's, which know their blocks; for others, `stages` is needed.
        stages: of the network: a parameter belongs to the first stage that depends on it, the first stage is the stem's
            group too, and no stage is divided.
    """
    names = [name for name, _ in network.named_parameters()]
    if hasattr(network, "group_matcher"):
        return _by_blocks(network, names)
    if stages is None:
        return dict.fromkeys(names, 0), 1
    return _by_stages(network, stages, names)


def decayed_groups(
    network: nn.Module, decay: float, groups: Mapping[str, int], count: int, exclude: frozenset[str] = frozenset()
) -> list[dict[str, Any]]:
    """Optimiser groups with `lr_scale`, decay^(groups behind), and `decays`, whether weight decay applies."""
    collected: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and name not in exclude:
            decays = parameter.ndim > 1 and not name.endswith("bias") and "gamma" not in name
            collected.setdefault((groups[name], decays), []).append(parameter)
    return [
        {"params": parameters, "decays": decays, "lr_scale": decay ** (count - 1 - group), "weight_decay": 0.0}
        for (group, decays), parameters in sorted(collected.items(), key=lambda item: item[0])
    ]


def _by_blocks(network: nn.Module, names: list[str]) -> tuple[dict[str, int], int]:
    from timm.models import group_parameters

    def ids(coarse: bool) -> dict[str, int]:
        found = group_parameters(network, network.group_matcher(coarse=coarse))  # type: ignore[operator]
        return {name: layer for layer, members in found.items() for name in members}

    stage_of, block_of = ids(coarse=True), ids(coarse=False)
    head = _head_of(network)
    blocks: dict[int, list[int]] = {}
    for name in names:
        if not name.startswith(head):
            blocks.setdefault(stage_of[name], []).append(block_of[name])
    blocks = {stage: sorted(set(found)) for stage, found in blocks.items()}
    longest = max(blocks, key=lambda stage: len(blocks[stage]))
    group_of: dict[tuple[int, int], int] = {}
    group = -1
    for stage in sorted(blocks):
        parts = _parts(len(blocks[stage]), network) if stage == longest else 1
        for place, block in enumerate(blocks[stage]):
            group_of[stage, block] = group + 1 + place * parts // len(blocks[stage])
        group += parts
    count = group + 2
    return {n: count - 1 if n.startswith(head) else group_of[stage_of[n], block_of[n]] for n in names}, count


def _parts(blocks: int, network: nn.Module) -> int:
    if blocks < _LONG_STAGE:
        return 1
    has_layer_norm = any(isinstance(m, nn.LayerNorm) for m in network.modules())
    return blocks // 3 if has_layer_norm and blocks >= _VERY_LONG_STAGE else 3


def _head_of(network: nn.Module) -> tuple[str, ...]:
    """Names that the classifier's parameters begin with."""
    config = getattr(network, "pretrained_cfg", None) or {}
    named = config.get("classifier") or "head"
    return (*(f"{name}." for name in ([named] if isinstance(named, str) else named)), "head.")


def _by_stages(network: nn.Module, stages: Stages, names: list[str]) -> tuple[dict[str, int], int]:
    reach = stages.first_stage_of_parameters()
    prefix = next((n for n, m in network.named_modules() if m is stages.backbone), "")
    prefix = f"{prefix}." if prefix else ""
    count = len(stages.strides) + 1
    return {
        n: reach.get(n.removeprefix(prefix), count - 1) if n.startswith(prefix) else count - 1 for n in names
    }, count
