"""Learning rate and weight decay as functions of the step (SparK paper, pre-training recipe)."""

import math
from collections.abc import Sequence

from ..errors import UsageError


class Schedule:
    """Linear warm-up, then a cosine, for the learning rate; a cosine over the whole run for the weight decay.

    With `w` warm-up steps of `n` steps in all, peak rate `p` and cosine `c(x) = (1 + cos(pi x)) / 2`::

        rate(t)  = p (0.005 + 0.995 t / w)                          for t < w
        rate(t)  = p (0.001 + 0.999 c((t - w) / (n - 1 - w)))       for t >= w
        decay(t) = d1 + (d0 - d1) c(t / (n - 1))

    Both are meant to be set *before* step `t` is taken, `t` counted from 0. With `milestones` the rate does not follow
    the cosine: it stays at its peak, and is multiplied by `factor` at each of these steps.

    Args:
        peak_lr: learning rate at the end of the warm-up.
        steps: number of optimiser steps of the whole run.
        warmup_steps: steps of linear warm-up, at most `steps`.
        weight_decay: weight decay at the first and at the last step.
        first_share: learning rate of step 0 as a share of the peak (where there is a warm-up).
        last_share: learning rate of the last step as a share of the peak.
        milestones: steps, in order, from which on the rate is lower.
        factor: what it is multiplied by there.
    """

    def __init__(
        self,
        peak_lr: float,
        steps: int,
        warmup_steps: int = 0,
        weight_decay: tuple[float, float] = (0.04, 0.2),
        first_share: float = 0.005,
        last_share: float = 0.001,
        milestones: Sequence[int] = (),
        factor: float = 0.1,
    ) -> None:
        if steps < 1:
            raise UsageError(f"steps is {steps}: a schedule needs at least 1 step")
        if not 0 <= warmup_steps <= steps:
            raise UsageError(
                f"warmup_steps is {warmup_steps}: expected 0 to {steps}, the steps of the whole run; "
                "lower --warmup-epochs"
            )
        self.peak_lr = peak_lr
        self.steps = steps
        self.warmup_steps = warmup_steps
        self.first_decay, self.last_decay = weight_decay
        self.first_share = first_share
        self.last_share = last_share
        self.milestones = tuple(milestones)
        self.factor = factor

    def learning_rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        if step < self.warmup_steps:
            share = self.first_share + (1 - self.first_share) * step / self.warmup_steps
        elif self.milestones:
            share = self.factor ** sum(step >= milestone for milestone in self.milestones)
        else:
            # A run that ends with its warm-up has no cosine left: its last step is taken at the peak.
            span = max(1, self.steps - 1 - self.warmup_steps)
            share = self.last_share + (1 - self.last_share) * _cosine((step - self.warmup_steps) / span)
        return self.peak_lr * share

    def weight_decay(self, step: int) -> float:
        """The weight decay of step `step` (from 0), for the parameters that have one."""
        return self.last_decay + (self.first_decay - self.last_decay) * _cosine(step / max(1, self.steps - 1))


def _cosine(share: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, share))
