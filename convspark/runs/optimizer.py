"""Parameter groups, optimisers and the learning rate that fits the length of a run."""

import math
from typing import Any, Literal

import torch
from torch import nn

from ..errors import UsageError

OptimizerKind = Literal["lamb", "adamw"]

# Never decayed, whatever their shape: mask tokens are (1, C, 1, 1), layer scales may be (C, 1, 1).
_NOT_DECAYED = ("mask_token", "gamma")


def parameter_groups(module: nn.Module, exclude: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Two optimiser groups: with and without weight decay.

    Without are vectors and scalars (norms, layer scales), biases and mask tokens. The groups carry `decays`, which
    says whether the group has a weight decay.

    Args:
        module: whose parameters that require gradients are grouped.
        exclude: parameter names to leave out (those that pre-training does not touch).
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad or name in exclude:
            continue
        is_plain = parameter.ndim <= 1 or name.endswith("bias") or any(key in name for key in _NOT_DECAYED)
        (plain if is_plain else decayed).append(parameter)
    groups = [{"params": decayed, "decays": True}, {"params": plain, "decays": False}]
    return [{**group, "weight_decay": 0.0} for group in groups if group["params"]]


def build_optimizer(
    groups: list[dict[str, Any]],
    kind: OptimizerKind = "lamb",
    betas: tuple[float, float] = (0.9, 0.95),
    gradient_clip: float = 5.0,
) -> torch.optim.Optimizer:
    """The optimiser of a pre-training run; rates and decays are set before each step by whoever drives it.

    LAMB is timm's with the paper's settings: eps 1e-6, bias correction, averaged gradients, the global gradient norm
    clipped inside the optimiser, no trust ratio for parameters without weight decay. AdamW leaves the clipping to
    the caller.

    Raises:
        UsageError: for another `kind`.
    """
    if kind == "lamb":
        from timm.optim.lamb import Lamb

        return Lamb(groups, lr=0.0, betas=betas, eps=1e-6, weight_decay=0.0, max_grad_norm=gradient_clip)
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=1e-8, weight_decay=0.0)
    raise UsageError(f"optimizer is {kind!r}: expected 'lamb' or 'adamw'")


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Set the learning rate of every group, times its `lr_scale` if it has one, and the decay of those that decay."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def default_learning_rate(steps: int) -> float:
    """The peak learning rate of a run of so many optimiser steps: 3.2e-3 from 4,000 steps on, more for shorter runs.

    LAMB moves each layer by a share of that layer's own size, so that what a rate achieves depends on how many steps
    there are, and hardly on the size of the batch. 3.2e-3 is the paper's peak, at a batch of 4096; its own rule for
    others is linear in the batch (2e-4 for each 256 images), with which small batches hardly move: recipes that want
    it set `base_learning_rate`. Found by trial, `docs/learning-rate.md`.
    """
    return min(3.2e-3 * max(1.0, math.sqrt(4000 / steps)), 2e-2)
