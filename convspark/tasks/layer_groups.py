"""Layer-wise decay of the learning rate: which layer group each parameter of a network belongs to."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import UsageError
from ..model.stages import Stages

_FEWEST_TO_HALVE, _MOST_HALVED = 4, 2  # blocks of a stage, stages
_FEWEST_FOR_THREES = 6  # blocks of a stage, of a network with LayerNorm
_MOST_STAGES = 12  # stem included; what timm calls stages where there are more are blocks


def layer_groups(
    network: nn.Module, stages: Stages | None = None, group_blocks: Sequence[int] | None = None
) -> tuple[dict[str, int], int]:
    """The group of each parameter, 0 for the stem, and the number of groups; the head is the last.

    The paper's grouping, generalised. Stem, stages and head are groups. Of a network with LayerNorm, the longest stage
    is divided into groups of three blocks; of others, the two longest stages are halved if they have four blocks.
    As in the paper's code, ResNet-50 and ConvNeXt-T have 8 groups, the stem with decay^7, and ConvNeXt-S, B and L have
    14 (decay^13). timm's own grouping goes by block, which gives a ResNet-50's stem a rate 40 times lower.

    Args:
        network: timm's, most of which know their stages and blocks.
        stages: of others: a parameter belongs to the first stage that depends on it, the first stage is the stem's
            group too, and no stage is divided. By default they are found where they are needed.
        group_blocks: of each stage, how many blocks make a group; instead of the rule above.

    Raises:
        UsageError: `group_blocks` for another number of stages, or for a network that does not know its blocks.
    """
    names = [name for name, _ in network.named_parameters()]
    layers = _layers_timm_says(network)
    if group_blocks is not None and (layers is None or min(group_blocks, default=0) < 1):
        raise UsageError(
            f"group_blocks is {list(group_blocks)}: expected a number from 1 for each stage of a timm network that "
            "knows its blocks; leave it out for others"
        )
    if layers is None:
        return _by_stages(network, stages or Stages(network), names)
    return _by_blocks(network, names, *layers, group_blocks)


def decayed_groups(
    network: nn.Module, decay: float, groups: Mapping[str, int], count: int, exclude: frozenset[str] = frozenset()
) -> list[dict[str, Any]]:
    """Optimiser groups with `lr_scale`, decay^(number of later groups), and `decays`, whether weight decay applies."""
    collected: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and name not in exclude:
            decays = parameter.ndim > 1 and not name.endswith("bias") and "gamma" not in name
            collected.setdefault((groups[name], decays), []).append(parameter)
    return [
        {"params": parameters, "decays": decays, "lr_scale": decay ** (count - 1 - group), "weight_decay": 0.0}
        for (group, decays), parameters in sorted(collected.items(), key=lambda item: item[0])
    ]


def _layers_timm_says(network: nn.Module) -> tuple[dict[str, int], dict[str, int]] | None:
    """The stage and the block of each parameter; None where timm does not know, or takes each block for a stage."""
    from timm.models import group_parameters

    def ids(coarse: bool) -> dict[str, int]:
        members_of = group_parameters(network, network.group_matcher(coarse=coarse))  # type: ignore[operator]
        return {name: layer for layer, members in members_of.items() for name in members}

    if not hasattr(network, "group_matcher"):
        return None
    try:
        stage_of, block_of = ids(coarse=True), ids(coarse=False)
    except AssertionError:  # "coarse grouping is not implemented"
        return None
    return (stage_of, block_of) if len(set(stage_of.values())) <= _MOST_STAGES else None


def _by_blocks(
    network: nn.Module,
    names: list[str],
    stage_of: Mapping[str, int],
    block_of: Mapping[str, int],
    group_blocks: Sequence[int] | None,
) -> tuple[dict[str, int], int]:
    head = _head_of(network)
    blocks: dict[int, list[int]] = {}
    for name in names:
        if not name.startswith(head):
            blocks.setdefault(stage_of[name], []).append(block_of[name])
    blocks = {stage: sorted(set(ids)) for stage, ids in blocks.items()}
    counts = {stage: len(ids) for stage, ids in blocks.items()}
    sizes = None if group_blocks is None else _sizes(counts, group_blocks)
    parts = _parts(counts, network) if sizes is None else {s: math.ceil(counts[s] / sizes[s]) for s in counts}
    group_of: dict[tuple[int, int], int] = {}
    group = 0
    for stage in sorted(blocks):
        for place, block in enumerate(blocks[stage]):
            part = place * parts[stage] // counts[stage] if sizes is None else place // sizes[stage]
            group_of[stage, block] = group + part
        group += parts[stage]
    return {n: group if n.startswith(head) else group_of[stage_of[n], block_of[n]] for n in names}, group + 1


def _sizes(counts: Mapping[int, int], group_blocks: Sequence[int]) -> dict[int, int]:
    """Of each stage of so many blocks, how many make a group; the stem is one."""
    stem, *others = sorted(counts)
    if len(group_blocks) != len(others):
        raise UsageError(
            f"group_blocks is {list(group_blocks)}: expected {len(others)} numbers, one for each stage of "
            f"{[counts[stage] for stage in others]} blocks"
        )
    return {stem: counts[stem], **dict(zip(others, group_blocks, strict=True))}


def _parts(blocks: Mapping[int, int], network: nn.Module) -> dict[int, int]:
    """Into how many groups each stage of so many blocks is divided."""
    longest = sorted(blocks, key=lambda stage: blocks[stage], reverse=True)
    parts = dict.fromkeys(blocks, 1)
    if any(isinstance(m, nn.LayerNorm) for m in network.modules()):
        if blocks[longest[0]] >= _FEWEST_FOR_THREES:
            parts[longest[0]] = blocks[longest[0]] // 3
        return parts
    return parts | {stage: 2 for stage in longest[:_MOST_HALVED] if blocks[stage] >= _FEWEST_TO_HALVE}


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
