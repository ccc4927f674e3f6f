"""Functions that treat every element alone: exact on visible patches as they stand.

A function is listed here only because it is known to be element by element; nothing is assumed of others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .. import axes as lay
from ..registry import Refusal, meaning, name_of
from ..tensor import GridTensor, PerImage, as_same_kind, before_change, repeat_per_patch
from .operands import along, dense_batch, joined_layout, named, require_plain, tensors_in, unpadded, with_rows_of
from .random import is_row_noise, one_an_image

_ARITHMETIC = """
    add sub mul div pow remainder fmod floor_divide true_divide subtract multiply divide maximum minimum fmax
    fmin addcmul addcdiv lerp atan2 arctan2 hypot xlogy copysign
"""
_UNARY = """
    abs absolute acos acosh asin asinh atan arctan atanh ceil clamp clamp_min clamp_max clip cos cosh deg2rad digamma
    erf erfc erfinv exp exp2 expm1 fix floor frac lgamma log log10 log1p log2 logit neg negative positive
    nan_to_num reciprocal relu round rsqrt sigmoid sign sgn sin sinc sinh sqrt square tan tanh trunc
"""
_LOGIC = """
    eq ne lt le gt ge not_equal less less_equal greater greater_equal isclose isnan isinf isfinite logical_and
    logical_or logical_xor logical_not bitwise_and bitwise_or bitwise_xor bitwise_not
"""
_INPLACE = """
    add_ sub_ mul_ div_ pow_ clamp_ clamp_min_ clamp_max_ exp_ neg_ reciprocal_ relu_ round_ floor_ ceil_ rsqrt_
    sigmoid_ sqrt_ square_ tanh_ addcmul_ addcdiv_ lerp_ mul_ abs_ log_ masked_fill_ copy_ zero_ fill_
    remainder_ sin_ cos_ sign_ trunc_ nan_to_num_ clip_ log1p_ expm1_ erf_ log2_ log10_ atan_ exp2_ frac_ fmod_
    floor_divide_ true_divide_ subtract_ multiply_ divide_ absolute_ negative_
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
            *named(
                "expit logit erf erfc log1p expm1 xlog1py xlogy entr gammaln digamma i0e ndtr log_ndtr", torch.special
            ),
            *named("conj conj_physical angle", torch, Tensor),
            *named("complex polar real imag fake_quantize_per_tensor_affine", torch),
            *(vars(torch._C.TensorBase)[name].__get__ for name in ("real", "imag")),
            *named("heaviside logaddexp logaddexp2 float_power signbit isreal isposinf isneginf", torch, Tensor),
            torch.bernoulli,
            Tensor.bernoulli_,
            Tensor.uniform_,
            Tensor.normal_,
            Tensor.exponential_,
            torch.dropout,
            torch.dropout_,
            functional.dropout,
            functional.sigmoid,  # to which torch.compile does not look inside
            functional.tanh,
        ]
    )
)
def elementwise(func, *args, **kwargs):
    """Meaning of a function that treats every element alone: `meaning(torch.special.erfcx)(elementwise)`."""
    operands = tensors_in((*args, *kwargs.values()))
    first = operands[0]
    if len(operands) == 1 and isinstance(first, GridTensor):
        unpadded(first)
        out = _run(func, args, kwargs)
        return first if out is first else as_same_kind(out, first, first.axes)
    if func in _PRELU:
        return _prelu(func, *args, **kwargs)
    grid = next(o.grid for o in operands if isinstance(o, GridTensor))
    rank = max([o.dim() for o in operands if isinstance(o, GridTensor)])
    if any(is_row_noise(o, grid, rank) for o in operands):
        args = tuple(one_an_image(a, grid) if is_row_noise(a, grid, rank) else a for a in args)
        operands = tensors_in((*args, *kwargs.values()))
    leader, layout = joined_layout(operands)
    if func in _IN_PLACE and not isinstance(args[0] if args else first, type(leader)):
        raise Refusal("it writes visible patches into a tensor that has no patches")
    args = tuple(with_rows_of(arg, leader) for arg in args)
    out = _run(func, args, {key: with_rows_of(arg, leader) for key, arg in kwargs.items()})
    return first if out is first else as_same_kind(out, leader, layout)


def _run(func, args, kwargs):
    if func in _IN_PLACE or kwargs.get("inplace") or any([arg is True for arg in args]):  # F.relu(x, True)
        before_change(args[0] if args else kwargs["input"])
    if func in _WHERE and len(args) + len(kwargs) < 2:
        raise Refusal("it returns places among all visible positions")
    if torch.compiler.is_compiling():
        if func in _IN_PLACE and isinstance(args[0], GridTensor):
            # Dynamo forgets the class of a tensor that a method changes in place: it changes a view of it instead.
            func(args[0].values, *args[1:], **kwargs)
            return args[0]
        # A number on the left is a method's second argument, and Dynamo gets lost in what wraps these methods.
        func = _REVERSED.get(name_of(func), func)
    return func(*args, **kwargs)


_REVERSED = {
    "__rsub__": torch.rsub,
    "__rdiv__": lambda x, other: torch.reciprocal(x) * other,  # __rtruediv__ is the same function
    "__rfloordiv__": lambda x, other: torch.floor_divide(other, x),
    "__rmod__": lambda x, other: torch.remainder(other, x),
    "__rpow__": lambda x, other: torch.pow(other, x),
    "pow": torch.pow,  # so is `x ** 2` named
}

_IN_PLACE = {
    *named(_INPLACE, Tensor),
    *named(" ".join(name for name in _OPERATORS.split() if name.startswith("__i") and name != "__invert__"), Tensor),
    *named("bernoulli_ uniform_ normal_ exponential_", Tensor),
    *named(_ACTIVATIONS_INPLACE, functional, torch),
    torch.dropout_,
}

_WHERE = {*named("where", torch, Tensor)}

_PRELU = {functional.prelu, torch.prelu, Tensor.prelu}


def _prelu(func, input, weight):
    """Its weight runs along axis 1, whatever the number of axes."""
    x = unpadded(input)
    require_plain(x, [1] if x.dim() > 1 else [], "a weight along this axis")
    return as_same_kind(func(x, weight), x, x.axes)


@meaning(*named("glu", functional, _NN))
def glu(func, input, dim=-1):
    """Half of the channels by the sigmoid of the other half."""
    return along(input, dim, func)


@meaning(functional.dropout1d, functional.dropout2d, functional.dropout3d)
def dropout_of_channels(func, input, p=0.5, training=True, inplace=False):
    """Whole channels of an image, drawn once an image as in the dense network.

    dropout3d of maps (B, C, H, W) drops whole images: it takes them for the channels of one volume.
    """
    return _drop_channels(func, input, p, training, inplace)


@meaning(functional.feature_alpha_dropout)
def alpha_dropout_of_channels(func, input, p=0.5, training=False, inplace=False):
    """The same, to the value that keeps mean and variance (Klambauer et al. 2017)."""
    return _drop_channels(func, input, p, training, inplace, dropped=_ALPHA)


@meaning(functional.alpha_dropout)
def alpha_dropout(func, input, p=0.5, training=False, inplace=False):
    """Element by element."""
    return elementwise(func, input, p, training, inplace)


_ALPHA = -1.7580993408473766  # SELU's value at minus infinity, where units are dropped to


def _drop_channels(func, input, p, training, inplace, dropped=0.0):
    x = unpadded(input)
    if not training or p == 0:
        return x
    if isinstance(x, PerImage):
        return dense_batch(func, x, p, training, inplace)
    if not lay.is_canonical(x.axes):
        raise Refusal("its axes are not (patches, channels, *positions)")
    channels = 1 if func is functional.dropout3d and x.dim() == 4 else x.shape[1]
    keep = x.new_empty(x.grid.batch_size, channels, *[1] * (x.dim() - 2)).bernoulli_(1 - p)
    keep = repeat_per_patch(keep, x.grid)
    if p == 1:
        out = x * 0
    elif dropped == 0:
        out = x * (keep / (1 - p))
    else:
        a = ((1 - p) * (1 + p * dropped**2)) ** -0.5
        out = a * torch.where(keep > 0, x, dropped) - a * dropped * p
    if inplace:
        before_change(x)
        x.copy_(out)
        return x
    return as_same_kind(out, x, x.axes)
