"""Convolutions by operators that read the neighbours of visible patches where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..sparse.convolve import Gradients
from ..sparse.plans import Plan
from ..sparse.tensor import flat_rows, from_rows
from .linear import column_sums


@dataclass(frozen=True, eq=False)
class ReadsNeighbours:
    """A convolution by the operator `operator`, and by `operator`_input_gradient and `operator`_weight_gradient.

    Attributes:
        around: int32 (N, block) which patch lies where around each; N or more where none is visible.
        plan: what each tap sees.
    """

    operator: ClassVar[str]

    around: Tensor
    plan: Plan

    def forward(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = self._operator()(flat_rows(values), weight, bias, self.around, *self.plan.sizes)
        return from_rows(rows, self.plan.out)

    def gradients(self, grad: Tensor, values: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> Gradients:
        rows, rest = flat_rows(grad).contiguous(), (self.around, *self.plan.sizes)
        to_values = to_weight = None
        if wanted[0]:
            to_values = from_rows(self._operator("_input_gradient")(rows, weight, *rest), self.plan.patch)
        if wanted[1]:
            to_weight = self._operator("_weight_gradient")(rows, flat_rows(values), *rest)
        return to_values, to_weight, column_sums(rows) if wanted[2] else None

    def _operator(self, gradient: str = "") -> Any:
        return getattr(torch.ops.convspark, self.operator + gradient)
