"""Methods of tensors that are written in Python: Dynamo asks for them as for attributes, and then calls them."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ..registry import meaning
from .operands import named

_METHODS = {method.__get__: method for method in named("norm split unflatten", Tensor)}


@meaning(*_METHODS)
def bind(func, args, kwargs):
    return partial(_METHODS[func], args[0])
