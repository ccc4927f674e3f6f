"""Every function that has a meaning, called as networks call it, against the dense function.

Most calls are found by trying forms on a dense tensor; others have a recipe here. A function with neither fails.
"""

import inspect

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from convspark import PatchGrid, VisiblePatches, gather, scatter
from convspark.errors import NotExactError
from convspark.sparse import PerImage
from convspark.sparse.refuse import function_name
from convspark.sparse.registry import MEANINGS

CHANNELS = 8
MASKS = {
    "all": torch.ones(2, 2, 3, dtype=torch.bool),
    "some": torch.tensor([[[1, 0, 0], [1, 1, 0]], [[0, 1, 0], [0, 1, 0]]]).bool(),
    "one": torch.tensor([[[0, 0, 0], [0, 0, 0]], [[0, 1, 0], [0, 0, 0]]]).bool(),
    "as many as images": torch.tensor([[[1, 0, 0], [0, 0, 0]], [[0, 1, 0], [0, 0, 0]]]).bool(),
    "as many as channels": torch.tensor([[[1, 1, 0], [0, 1, 1]], [[0, 1, 1], [0, 1, 1]]]).bool(),
    "none": torch.zeros(2, 2, 3, dtype=torch.bool),
}


TYPES = {"rounded to": torch.float64, "of": torch.float64}


def weights(*shape):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return drawn.to(TYPES["rounded to"]).to(TYPES["of"])


FORMS = (
    lambda f, x: f(x),
    lambda f, x: f(x, 0.5 * x + 1),
    lambda f, x: f(x, 1.5),
    lambda f, x: f(x > 0),
    lambda f, x: f(x > 0, x < 1),
    lambda f, x: f(x, x + 1, x + 2),
    lambda f, x: f(x, 0.5, 1.5),
    lambda f, x: f(x, x > 0, 2.0),
)

RECIPES = {
    "where": lambda f, x: f(x > 0, x, 2 * x) if f is torch.where else f(x, x > 0, 2 * x),
    "lerp": lambda f, x: f(x, 2 * x, 0.3),
    "lerp_": lambda f, x: f(x, 2 * x, 0.3),
    "full_like": lambda f, x: f(x, 2.0),
    "clamp": lambda f, x: f(x, min=-0.5, max=0.5),
    "fake_quantize_per_tensor_affine": lambda f, x: f(x, 0.1, 0, -8, 7),
    "real": lambda f, x: f(torch.complex(x, 2 * x)),
    "conj": lambda f, x: f(torch.complex(x, 2 * x)).imag,
    "new_tensor": lambda f, x: x * f(x, [2.0]),
    "prelu": lambda f, x: f(x, torch.full((CHANNELS,), 0.2, dtype=x.dtype)),
    "rrelu": lambda f, x: f(x, 0.1, 0.3, False),
    "threshold": lambda f, x: f(x, 0.1, 2.0),
    "threshold_": lambda f, x: f(x, 0.1, 2.0),
    "erfinv": lambda f, x: f(x.tanh()),
    "log": lambda f, x: f(x.abs() + 1),
    "glu": lambda f, x: f(x, 1),
    "softmax": lambda f, x: f(x, 1),
    "log_softmax": lambda f, x: f(x, dim=1),
    "softmin": lambda f, x: f(x, dim=1),
    "logsumexp": lambda f, x: f(x, 1, keepdim=True),
    "normalize": lambda f, x: f(x, dim=1),
    "cosine_similarity": lambda f, x: f(x, x + 1)[:, None],
    "pairwise_distance": lambda f, x: f(x.movedim(1, -1), 1 + x.movedim(1, -1))[:, None],
    "sum": lambda f, x: f(x, 1, keepdim=True),
    "norm": lambda f, x: f(x, dim=1, keepdim=True),
    "linalg_norm": lambda f, x: f(x, dim=1, keepdim=True),
    "linalg_vector_norm": lambda f, x: f(x, dim=1, keepdim=True),
    "amax": lambda f, x: f(x, 1, keepdim=True),
    "max": lambda f, x: f(x, 1, keepdim=True)[0],
    "var": lambda f, x: f(x, dim=1, keepdim=True),
    "var_mean": lambda f, x: f(x, dim=1, keepdim=True)[0],
    "median": lambda f, x: f(x, 1, True)[0],
    "cummax": lambda f, x: f(x, 1)[0],
    "argmax": lambda f, x: f(x, 1, keepdim=True),
    "prod": lambda f, x: f(x, 1, keepdim=True),
    "all": lambda f, x: f(x > 0, 1, keepdim=True),
    "cumsum": lambda f, x: f(x, 1),
    "sort": lambda f, x: f(x, dim=1)[0],
    "argsort": lambda f, x: f(x, dim=1),
    "topk": lambda f, x: f(x, 3, dim=1)[0],
    "kthvalue": lambda f, x: f(x, 3, 1, True)[0],
    "batch_norm": lambda f, x: (
        f(x, weights(8), weights(8).abs() + 1)
        if f is F.batch_norm
        else f(x, None, None, weights(8), weights(8).abs() + 1, False, 0.1, 1e-5, False)
    ),
    "instance_norm": lambda f, x: (
        f(x, weights(8), weights(8).abs() + 1, use_input_stats=False)
        if f is F.instance_norm
        else f(x, None, None, weights(8), weights(8).abs() + 1, False, 0.1, 1e-5, False)
    ),
    "group_norm": lambda f, x: _over_all(f, x, 2),
    "layer_norm": lambda f, x: f(x.movedim(1, -1), (8,)).movedim(-1, 1),
    "local_response_norm": lambda f, x: f(x, 3),
    "conv1d": lambda f, x: f(x[..., 0], weights(4, 8, 1)) if not hasattr(x, "grid") else None,
    "conv2d": lambda f, x: f(x, weights(4, 8, 3, 3), None, 1, 1),
    "conv_transpose2d": lambda f, x: f(x, weights(8, 4, 2, 2), None, 2),
    "max_pool2d": lambda f, x: f(x, 3, 1, 1),
    "max_pool2d_with_indices": lambda f, x: f(x, 3, 1, 1)[0],
    "avg_pool2d": lambda f, x: f(x, 3, 1, 1),
    "unfold": lambda f, x: f(x, 3, 1, 1).unflatten(2, x.shape[2:]),
    "fold": lambda f, x: f(x.repeat(1, 9, 1, 1).flatten(2), x.shape[2:], 3, 1, 1),
    "pad": lambda f, x: F.avg_pool2d(f(x, (1, 1, 1, 1), value=2.0), 3, 1),
    "interpolate": lambda f, x: f(x, scale_factor=2),
    "linear": lambda f, x: f(x.movedim(1, -1), weights(4, 8)).movedim(-1, 1),
    "matmul": lambda f, x: f(x.movedim(1, -1), weights(8, 4)).movedim(-1, 1),
    "mm": lambda f, x: f(x.movedim(1, -1).flatten(0, -2), weights(8, 4)) if not hasattr(x, "grid") else None,
    "bmm": lambda f, x: f(x.flatten(2).movedim(1, -1), x.flatten(2)) if not hasattr(x, "grid") else None,
    "einsum": lambda f, x: f("bchw,dc->bdhw", x, weights(4, 8)),
    "reshape": lambda f, x: f(x, (x.shape[0], 2, 4, *x.shape[2:])).flatten(1, 2),
    "view": lambda f, x: f(x, x.shape[0], 2, 4, *x.shape[2:]).flatten(1, 2),
    "view_as": lambda f, x: f(x, x + 1),
    "flatten": lambda f, x: f(x.unflatten(1, (2, 4)), 1, 2),
    "unflatten": lambda f, x: f(x, 1, (2, 4)).flatten(1, 2),
    "permute": lambda f, x: f(x, (0, 2, 3, 1)).movedim(-1, 1),
    "transpose": lambda f, x: f(x, 1, 2).transpose(1, 2),
    "movedim": lambda f, x: f(x, 1, -1).movedim(-1, 1),
    "unsqueeze": lambda f, x: f(x, 1).flatten(1, 2),
    "mT": lambda f, x: f(x.movedim(1, -1)).mT.movedim(-1, 1),
    "squeeze": lambda f, x: f(x.unsqueeze(1), 1),
    "cat": lambda f, x: f([x, 2 * x], 1),
    "stack": lambda f, x: f([x, 2 * x], 1).flatten(1, 2),
    "chunk": lambda f, x: f(x, 2, 1)[1],
    "split": lambda f, x: f(x, 3, 1)[2],
    "split_with_sizes": lambda f, x: f(x, [3, 5], 1)[1],
    "unbind": lambda f, x: f(x, 1)[2][:, None],
    "narrow": lambda f, x: f(x, 1, 2, 3),
    "select": lambda f, x: f(x, 1, 2)[:, None],
    "index_select": lambda f, x: f(x, 1, torch.tensor([2, 0])),
    "__getitem__": lambda f, x: f(x, (slice(None), slice(1, 4))),
    "__setitem__": lambda f, x: _written(f, x),
    "expand": lambda f, x: f(x[:, :1], (x.shape[0], 4, *x.shape[2:])),
    "expand_as": lambda f, x: f(x[:, :1], x),
    "repeat_interleave": lambda f, x: f(x, 2, 1),
    "repeat": lambda f, x: f(x, (1, 2, 1, 1)),
    "pixel_shuffle": lambda f, x: f(x, 2),
    "pixel_unshuffle": lambda f, x: f(x.repeat_interleave(2, 2).repeat_interleave(2, 3), 2),
    "channel_shuffle": lambda f, x: f(x, 2),
    "roll": lambda f, x: f(x, 2, 1),
    "flip": lambda f, x: f(x, (1,)),
    "to": lambda f, x: f(x, torch.float32),
    "type": lambda f, x: f(x, torch.float32),
    "type_as": lambda f, x: f(x, x + 1),
    "new_empty": lambda f, x: f(x, (3,)).fill_(0) * 0,
    "new_zeros": lambda f, x: f(x, (3,)),
    "new_full": lambda f, x: f(x, (3,), 2.0),
}
for same in """
    log10 log2 sqrt rsqrt lgamma digamma logit sqrt_ rsqrt_ log_ entr gammaln log2_ log10_ log1p acosh
    """.split():
    RECIPES[same] = lambda f, x: f((x.tanh() + 2) / 4) if "acosh" not in f.__name__ else f(x.abs() + 1.5)
for old, others in {
    "sum": "mean",
    "amax": "amin",
    "max": "min",
    "var": "std",
    "var_mean": "std_mean",
    "median": "nanmedian mode",
    "cummax": "cummin",
    "argmax": "argmin",
    "all": "any",
    "cumsum": "cumprod logcumsumexp",
    "transpose": "swapaxes swapdims",
    "movedim": "moveaxis",
    "cat": "concat concatenate",
    "chunk": "unsafe_chunk tensor_split",
    "split": "unsafe_split",
    "unsafe_split_with_sizes": "",
    "expand": "broadcast_to",
    "repeat": "tile",
    "channel_shuffle": "native_channel_shuffle",
    "view_as": "reshape_as",
    "real": "imag angle",
    "conj": "conj_physical",
    "layer_norm": "rms_norm",
    "matmul": "__matmul__",
    "new_zeros": "new_ones",
    "interpolate": "upsample",
    "clamp": "clip",
    "unsqueeze": "unsqueeze_",
}.items():
    for other in others.split():
        RECIPES[other] = RECIPES[old]

RANDOM = set(
    """bernoulli bernoulli_ uniform_ normal_ exponential_ rand_like randn_like empty_like dropout dropout_ alpha_dropout
    dropout1d dropout2d dropout3d feature_alpha_dropout""".split()
)
ELSEWHERE = {  # whose results are no maps of this kind: tested by the files named
    **dict.fromkeys("conv1d conv3d conv_transpose1d conv_transpose3d mm bmm".split(), "test_meanings.py"),
    **dict.fromkeys("max_pool1d max_pool3d avg_pool1d avg_pool3d".split(), "test_neighbourhood.py"),
    **dict.fromkeys("max_pool1d_with_indices max_pool3d_with_indices".split(), "test_meanings.py"),
    **{f"adaptive_{kind}_pool{d}d": "test_constructs.py" for kind in ("avg", "max") for d in (1, 2, 3)},
    "group_norm": "test_constructs.py",
    **dict.fromkeys(
        "backward grad register_hook retain_grad detach_ requires_grad_ __set__".split(), "test_patches.py"
    ),
}
QUESTIONS = {"convspark.sparse.meanings.query"}


def _over_all(f, x, *args):
    return None if hasattr(x, "grid") else f(x, *args)


def _written(f, x):
    y = x.clone()
    f(y, (slice(None), slice(0, 2)), 3 * x[:, 2:4])
    return y


FUNCTIONS = {
    f"{function_name(func)} {number}": func
    for number, func in enumerate(MEANINGS)
    if callable(func) and MEANINGS[func].__module__ not in QUESTIONS
}
ON_MAPS = {label: func for label, func in FUNCTIONS.items() if func.__name__ not in {*RANDOM, *ELSEWHERE}}


def plain(result):
    """Patches put back, anything else without its grid."""
    if isinstance(result, VisiblePatches):
        return scatter(result)
    return result.values if isinstance(result, PerImage) else result


def name_of(func):
    """A function's name; of one that reads an attribute, the attribute's name."""
    return func.__self__.__name__ if func.__name__ == "__get__" else func.__name__


def form_of(func):
    """How to call it on a tensor (B, C, H, W); it may change that tensor in place."""
    name = name_of(func)
    if name in RECIPES:
        return RECIPES[name]
    x = weights(2, CHANNELS, 4, 4)
    for form in FORMS:
        try:
            if isinstance(form(func, x.clone()), Tensor):
                return form
        except (TypeError, RuntimeError, ValueError):
            continue
    return None


@pytest.mark.filterwarnings("ignore:.*upsample.*deprecated")
@pytest.mark.parametrize("label", ON_MAPS)
def test_function(label):
    func = ON_MAPS[label]
    form = form_of(func)
    assert form is not None, f"{label} has no recipe here"
    for patch in (4, 1):
        if patch == 1 and func.__name__ in ("pixel_unshuffle", "max_pool2d"):
            continue
        images = weights(2, CHANNELS, 2 * patch, 3 * patch)
        for kind, visible in MASKS.items():
            where = f"{kind} visible, patches of {patch}"
            compare(lambda x: form(func, x.clone()), images, PatchGrid(visible), where)


@pytest.mark.parametrize("label", [label for label, func in FUNCTIONS.items() if func.__name__ in RANDOM])
def test_random_function(label):
    func = FUNCTIONS[label]
    x = gather(weights(2, CHANNELS, 8, 12).sigmoid(), PatchGrid(MASKS["some"]))
    out = func(x) if "dropout" not in func.__name__ or func is F.dropout else func(x, 0.5, True)
    assert isinstance(out, VisiblePatches) and out.shape == x.shape


def compare(call, images, grid, where):
    zero_filled = scatter(gather(images, grid))
    expected = call(zero_filled)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = gather(images.contiguous(memory_format=layout), grid)
        result = call(x)
        if expected is None or result is None:
            return
        if isinstance(result, PerImage) or not isinstance(result, VisiblePatches):
            assert result.shape == expected.shape and torch.equal(torch.as_tensor(result), expected), where
            continue
        shown = gather(expected, grid).values
        assert result.dtype == expected.dtype, where
        torch.testing.assert_close(result.values, shown, equal_nan=True, msg=lambda text: f"{where}: {text}")
    if not (expected.is_floating_point() and grid.num_visible and isinstance(result, VisiblePatches)):
        return
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    mine = call(gather(ours, grid)).values
    truth = gather(call(scatter(gather(theirs, grid))), grid).values
    if not (mine.requires_grad and truth.requires_grad):
        assert mine.requires_grad == truth.requires_grad, where
        return
    slope = weights(*mine.shape).to(mine.dtype)
    try:
        (b,) = torch.autograd.grad(truth, theirs, slope, allow_unused=True)
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        return  # torch has no derivative of it
    (a,) = torch.autograd.grad(mine, ours, slope, allow_unused=True)
    a, b = (torch.zeros_like(images) if slope is None else slope for slope in (a, b))
    torch.testing.assert_close(a, b, equal_nan=True, msg=lambda text: f"{where}, gradients: {text}")


# ------------------------------------------------------------------------------------------------ over images

OVER_IMAGES = {
    **dict.fromkeys(
        "sum mean amax amin var std norm linalg_vector_norm logsumexp".split(),
        lambda f, x: f(x, dim=(2, 3), keepdim=True),
    ),
    "linalg_norm": lambda f, x: f(x.flatten(2), dim=2),
    "var_mean": lambda f, x: torch.cat(f(x, dim=(2, 3), keepdim=True), 1),
    "std_mean": lambda f, x: torch.cat(f(x, dim=(2, 3), keepdim=True), 1),
    "max": lambda f, x: f(x.flatten(2), 2)[0] + f(x),
    "min": lambda f, x: f(x.flatten(2), 2)[0] + f(x),
    "any": lambda f, x: f(x > 2, (2, 3)),
    "softmax": lambda f, x: f(x.flatten(2), 2).unflatten(2, x.shape[2:]),
    "log_softmax": lambda f, x: f(x.flatten(2), 2).unflatten(2, x.shape[2:]),
    "group_norm": lambda f, x: f(x, 2, weights(8), weights(8)),
    "instance_norm": lambda f, x: (
        f(x, weight=weights(8)) if f is F.instance_norm else f(x, weights(8), None, None, None, True, 0.1, 1e-5, False)
    ),
    "normalize": lambda f, x: f(x, dim=(2, 3)),
    "batch_norm": lambda f, x: (
        f(x, None, None, weights(8), training=True)
        if f is F.batch_norm
        else f(x, weights(8), None, None, None, True, 0.1, 1e-5, False)
    ),
    **dict.fromkeys(["adaptive_avg_pool2d", "adaptive_max_pool2d"], lambda f, x: f(x, 1)),
    **dict.fromkeys(["adaptive_avg_pool1d", "adaptive_max_pool1d"], lambda f, x: _first(f(x.flatten(2), 1))),
    **dict.fromkeys(["matmul", "bmm", "__matmul__"], lambda f, x: f(x.flatten(2), x.flatten(2).transpose(1, 2))),
}
OVER_CHANNELS_ALONE = {  # refused over positions
    **dict.fromkeys(
        """median nanmedian mode cummax cummin argmax argmin prod all cumsum cumprod logcumsumexp sort argsort softmin
        cosine_similarity glu""".split(),
        lambda f, x: f(*(2 if name_of(f) == "cosine_similarity" else 1) * [x], dim=2),
    ),
    **dict.fromkeys(["topk", "kthvalue"], lambda f, x: f(x, 2, dim=2)),
    "pairwise_distance": lambda f, x: f(x, x + 1),
    **dict.fromkeys(["layer_norm", "rms_norm"], lambda f, x: f(x, x.shape[1:])),
    "local_response_norm": lambda f, x: f(x.movedim(1, -1), 3),
}
REDUCING = {
    label: func
    for label, func in FUNCTIONS.items()
    if MEANINGS[func].__module__.rpartition(".")[2] in ("reduce", "norm") or func.__name__ in OVER_IMAGES
}


def _first(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("label", REDUCING)
def test_over_the_visible_positions_of_images(label):
    """Over a rectangle of visible patches: what the dense function makes of images cut to that rectangle."""
    func = REDUCING[label]
    name = func.__name__
    if name in OVER_CHANNELS_ALONE:
        with pytest.raises(NotExactError):
            OVER_CHANNELS_ALONE[name](func, gather(weights(2, CHANNELS, 8, 12), PatchGrid(MASKS["some"])))
        return
    form = OVER_IMAGES[name]
    for patch in (4, 2):
        images = weights(2, CHANNELS, 2 * patch, 3 * patch)
        for columns in (range(3), range(1, 3), range(2, 3)):
            visible = torch.zeros(2, 2, 3, dtype=torch.bool)
            visible[:, :, columns] = True
            part = (..., slice(columns[0] * patch, columns[-1] * patch + patch))
            ours, theirs = images.clone().requires_grad_(), images[part].clone().requires_grad_()
            expected, result = form(func, theirs), form(func, gather(ours, PatchGrid(visible)))
            result = plain(result)[part] if isinstance(result, VisiblePatches) else plain(result)
            torch.testing.assert_close(result, expected)
            if expected.requires_grad:
                slope = weights(*expected.shape)
                (a,), (b,) = torch.autograd.grad(result, ours, slope), torch.autograd.grad(expected, theirs, slope)
                torch.testing.assert_close(a[part], b)
                assert (a.abs().sum() - a[part].abs().sum()).abs() <= 1e-9


# ------------------------------------------------------------------------------------------------ spellings


class Keywords(TorchFunctionMode):
    """Calls of one function with all arguments by keyword, if PyTorch takes them so."""

    def __init__(self, func):
        self.func, self.names, self.taken = func, None, False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not self.func:
            return func(*args, **kwargs)
        kept = int(hasattr(func, "__objclass__") or func.__module__ == "torch._tensor")  # a method's own tensor
        for names in [self.names] if self.names else spellings(func):
            try:
                out = func(*args[:kept], **dict(zip(names[kept : len(args)], args[kept:], strict=True)), **kwargs)
            except (TypeError, ValueError):  # PyTorch does not take it so, or has fewer names
                continue
            self.names, self.taken = names, len(args) > kept
            return out
        return func(*args, **kwargs)


def spellings(func):
    """Names of a function's arguments, in each of its forms."""
    try:
        return [list(inspect.signature(func).parameters)]
    except ValueError:  # written in C++
        pass
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{func.__name__}")
    named = [[a.name for a in schema.arguments if not a.kwarg_only] for schema in schemas]
    return [["input" if name == "self" else name for name in names] for names in named]


@pytest.mark.filterwarnings("ignore")
def test_by_keyword():
    images, grid = weights(2, CHANNELS, 8, 12), PatchGrid(MASKS["some"])
    zero_filled, taken = scatter(gather(images, grid)), []
    for label, func in ON_MAPS.items():
        form, mode = form_of(func), Keywords(func)
        with mode:
            expected = form(func, zero_filled.clone())
        if expected is None or not mode.taken:
            continue
        taken.append(label)
        with mode:
            result = form(func, gather(images, grid))
        if isinstance(result, VisiblePatches):
            result, expected = result.values, gather(expected, grid).values
            torch.testing.assert_close(
                result, expected, equal_nan=True, msg=lambda text, label=label: f"{label}: {text}"
            )
    assert len(taken) > 250, taken


@pytest.mark.filterwarnings("ignore")
def test_after_a_pad():
    """Refused, but for what makes tensors of its own, which is what the dense function makes of the padded map.

    Convolutions, poolings and pads, which take it, are no functions of this kind: see test_neighbourhood.py.
    """
    images, compared, divided = weights(2, CHANNELS, 8, 12), [], set()
    for label, func in ON_MAPS.items():
        form = form_of(func)
        try:
            result = form(func, F.pad(gather(images, PatchGrid(MASKS["all"])), (1, 1, 1, 1)))
        except NotExactError:
            continue
        expected = form(func, F.pad(images, (1, 1, 1, 1)))
        if getattr(result, "pending", None) is not None:  # a part that is padded too, for what reads it
            result, expected = scatter(F.max_pool2d(result, 3, 1)), F.max_pool2d(expected, 3, 1)
            torch.testing.assert_close(result, expected, msg=lambda text, label=label: f"{label}: {text}")
            divided.add(func.__name__)
        elif result is not None and expected is not None:
            torch.testing.assert_close(plain(result), expected, msg=lambda text, label=label: f"{label}: {text}")
            compared.append(func)
    assert compared == [Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full]
    assert divided == {"chunk", "split", "tensor_split", "unsafe_chunk", "unsafe_split", "split_with_sizes"}


IN_PLACE = {
    label: func
    for label, func in ON_MAPS.items()
    if (func.__name__.endswith("_") and not func.__name__.endswith("__"))
    or (func.__name__.startswith("__i") and func.__name__ != "__invert__")
}


VIEWS = {  # and what of them is compared
    "channels": (lambda x: x[:, :4], lambda x: x.amax((2, 3))),
    "flat positions": (lambda x: x.flatten(2), lambda x: x.amax(2)),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), lambda x: x.amax((1, 2))),
    "flat images, of which visible patches make a copy": (lambda x: x.flatten(1), lambda x: x.amax(1)),
}


@pytest.mark.parametrize("kind", VIEWS)
@pytest.mark.parametrize("label", IN_PLACE)
def test_in_place_before_and_after_a_view(label, kind):
    """As in the dense run, or refused where visible patches have a copy."""
    func, images = IN_PLACE[label], weights(2, CHANNELS, 8, 12).sigmoid()
    form, (view, compared) = form_of(func), VIEWS[kind]

    def through_a_view(x):
        form(func, view(x))
        return x.amax((2, 3))

    def under_a_view(x):
        seen = view(x)
        form(func, x)
        return compared(seen)

    for run in (through_a_view, under_a_view):
        expected = run(images.clone())
        try:
            result = run(gather(images, PatchGrid(MASKS["all"])).clone())
        except NotExactError:
            assert "copy" in kind
            continue
        torch.testing.assert_close(plain(result), expected)


# ------------------------------------------------------------------------------------------------ 16 bits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("label", {**ON_MAPS, **REDUCING})
def test_in_16_bits_as_good_as_the_dense_function(label, kind, monkeypatch):
    func = FUNCTIONS[label]
    monkeypatch.setitem(TYPES, "rounded to", kind)
    for form in (form_of(func) if label in ON_MAPS else None, OVER_IMAGES.get(func.__name__)):
        if form is None:
            continue
        monkeypatch.setitem(TYPES, "of", torch.float64)
        many = form is OVER_IMAGES.get(func.__name__)  # patches: sums of many show the type that they are summed in
        grid = PatchGrid(torch.ones(2, 8, 8, dtype=torch.bool) if many else MASKS["all"])
        images = 4 * weights(2, CHANNELS, *(n * 4 for n in grid.shape)) + 8
        exact = form(func, images.clone())
        monkeypatch.setitem(TYPES, "of", kind)
        try:
            dense = form(func, images.to(kind))
        except (RuntimeError, NotImplementedError):  # PyTorch has no such kernel
            continue
        result = form(func, gather(images.to(kind), grid))
        if exact is None or result is None or not exact.is_floating_point():
            continue
        assert result.dtype == dense.dtype
        result = plain(result)
        ours, theirs = ((out.double() - exact).nan_to_num(posinf=0, neginf=0).abs().mean() for out in (result, dense))
        assert ours <= 1.5 * theirs + 0.1 * torch.finfo(kind).eps * exact.nan_to_num(posinf=0, neginf=0).abs().mean()
        assert not (result.isfinite() ^ dense.isfinite()).any()
