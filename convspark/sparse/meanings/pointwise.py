"""Functions that treat every element alone: exact on visible patches as they stand.

A function is listed here only because it is known to be element by element; nothing is assumed of others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .. import axes as lay
from ..registry import Refusal, meaning
from ..tensor import GridTensor, PerImage, as_same_kind
from .operands import dense_batch, joined_layout, named, require_plain, tensors_in, unpadded, with_rows_of
from .random import is_row_noise, one_an_image

_ARITHMETIC = """
    add sub mul div pow remainder fmod floor_divide true_divide subtract multiply divide maximum minimum fmax
    fmin addcmul addcdiv lerp atan2 hypot xlogy copysign
"""
_UNARY = """
    abs absolute acos acosh asin asinh atan atanh ceil clamp clamp_min clamp_max clip cos cosh deg2rad digamma
    erf erfc erfinv exp exp2 expm1 fix floor frac lgamma log log10 log1p log2 logit neg negative positive
    nan_to_num reciprocal relu round rsqrt sigmoid sign sgn sin sinc sinh sqrt square tan tanh trunc
"""
_LOGIC = """
    eq ne lt le gt ge isnan isinf isfinite logical_and logical_or logical_xor logical_not bitwise_and bitwise_or
    bitwise_not
"""
_INPLACE = """
    add_ sub_ mul_ div_ pow_ clamp_ clamp_min_ clamp_max_ exp_ neg_ reciprocal_ relu_ round_ floor_ ceil_ rsqrt_
    sigmoid_ sqrt_ square_ tanh_ addcmul_ addcdiv_ lerp_ mul_ abs_ log_ masked_fill_ copy_ zero_ fill_
    remainder_
"""
_OPERATORS = """
    __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ __truediv__ __rtruediv__
    __itruediv__ __div__ __rdiv__ __idiv__ __floordiv__ __rfloordiv__ __pow__ __rpow__ __ipow__ __mod__ __rmod__
    __neg__ __pos__ __abs__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __and__ __or__ __xor__ __invert__
"""
_ACTIVATIONS = """
    celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish prelu relu relu6 rrelu
    selu silu softplus softshrink softsign tanhshrink threshold
"""
_ACTIVATIONS_INPLACE = "celu_ elu_ hardtanh_ leaky_relu_ relu_ selu_ threshold_"
_NN = getattr(torch._C, "_nn")  # where functional.gelu and others really live  # noqa: B009
_LIKE = "zeros_like ones_like empty_like full_like rand_like randn_like"


@meaning(
    *dict.fromkeys(
        [
            *named(_ARITHMETIC, torch, Tensor),
            *named(_UNARY, torch, Tensor),
            *named(_LOGIC, torch, Tensor),
            *named(_INPLACE, Tensor),
            *named(_OPERATORS, Tensor),
            *named(_ACTIVATIONS, functional),
            *named(_ACTIVATIONS_INPLACE, functional, torch),
            *named("where masked_fill", torch, Tensor),
            *named("rsub prelu celu hardshrink selu threshold", torch),
            *named(_LIKE, torch),
            torch.relu_,
            *named("gelu hardtanh leaky_relu silu log_sigmoid softplus softshrink", _NN),
            torch.bernoulli,
            Tensor.bernoulli_,
            Tensor.uniform_,
            Tensor.normal_,
            torch.dropout,
            torch.dropout_,
            functional.dropout,
        ]
    )
)
def elementwise(func, args, kwargs):
    """Meaning of a function that treats every element alone: `meaning(torch.special.expit)(elementwise)`."""
    operands = tensors_in((*args, *kwargs.values()))
    first = operands[0]
    if len(operands) == 1 and isinstance(first, GridTensor):
        out = _run(func, args, kwargs)
        unpadded(first)
        return first if out is first else as_same_kind(out, first, first.axes)
    if func in _PRELU:
        return _prelu(func, args, kwargs)
    grid = next(o.grid for o in operands if isinstance(o, GridTensor))
    if any(is_row_noise(o, grid) for o in operands):
        args = tuple(one_an_image(a, grid) if is_row_noise(a, grid) else a for a in args)
        operands = tensors_in((*args, *kwargs.values()))
    leader, layout = joined_layout(operands)
    args = tuple(with_rows_of(arg, leader) for arg in args)
    out = _run(func, args, {key: with_rows_of(arg, leader) for key, arg in kwargs.items()})
    if out is first:
        if not isinstance(first, type(leader)):
            raise Refusal("it writes visible patches into a tensor that has no patches")
        return first
    return as_same_kind(out, leader, layout)


def _run(func, args, kwargs):
    if torch.compiler.is_compiling():
        if func in _IN_PLACE and isinstance(args[0], GridTensor):
            # Dynamo forgets the class of a tensor that a method changes in place: it changes a view of it instead.
            func(args[0].values, *args[1:], **kwargs)
            return args[0]
        # A number on the left is a method's second argument, and Dynamo gets lost in what wraps these methods.
        func = _REVERSED.get(getattr(func, "__name__", ""), func)
    return func(*args, **kwargs)


_REVERSED = {
    "__rsub__": torch.rsub,
    "__rdiv__": lambda x, other: torch.reciprocal(x) * other,  # __rtruediv__ is the same function
    "__rfloordiv__": lambda x, other: torch.floor_divide(other, x),
    "__rmod__": lambda x, other: torch.remainder(other, x),
    "__rpow__": lambda x, other: torch.pow(other, x),
}

_IN_PLACE = {
    *named(_INPLACE, Tensor),
    *named(" ".join(name for name in _OPERATORS.split() if name.startswith("__i") and name != "__invert__"), Tensor),
    *named("bernoulli_ uniform_ normal_", Tensor),
}

_PRELU = {functional.prelu, torch.prelu, Tensor.prelu}


def _prelu(func, args, kwargs):
    """Its weight runs along axis 1, whatever the number of axes."""
    x = unpadded(args[0])
    require_plain(x, [1] if x.dim() > 1 else [], "a weight along this axis")
    return as_same_kind(func(*args, **kwargs), x, x.axes)


@meaning(*named("glu", functional, _NN))
def glu(func, args, kwargs):
    x = unpadded(args[0])
    dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    dim = dim + x.dim() if dim < 0 else dim
    require_plain(x, [dim], "splitting this axis")
    out = func(*args, **kwargs)
    return as_same_kind(out, x, (*x.axes[:dim], lay.plain_axis(out.shape[dim]), *x.axes[dim + 1 :]))


@meaning(*named("dropout1d dropout2d dropout3d feature_alpha_dropout alpha_dropout", functional))
def feature_dropout(func, args, kwargs):
    x = args[0]
    training = kwargs.get("training", args[2] if len(args) > 2 else func is not functional.alpha_dropout)
    share = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    if not training or share == 0:
        return x
    if isinstance(x, PerImage):
        return dense_batch(func, x, args, kwargs)
    raise Refusal("it would drop whole channels patch by patch where the dense network drops them image by image")
