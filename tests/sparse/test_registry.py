"""Every function that has a meaning, called as networks call it, against the dense function on the zero-filled map.

Most calls are found by trying forms on a dense tensor; others have a recipe here. A function with neither fails.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convspark import PatchGrid, VisiblePatches, gather, scatter
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


def weights(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


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
    "lerp_": lambda f, x: f(x.clone(), 2 * x, 0.3),
    "full_like": lambda f, x: f(x, 2.0),
    "clamp": lambda f, x: f(x, min=-0.5, max=0.5),
    "prelu": lambda f, x: f(x, torch.full((CHANNELS,), 0.2, dtype=x.dtype)),
    "rrelu": lambda f, x: f(x, 0.1, 0.3, False),
    "threshold": lambda f, x: f(x, 0.1, 2.0),
    "threshold_": lambda f, x: f(x.clone(), 0.1, 2.0),
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
    "avg_pool2d": lambda f, x: f(x, 3, 1, 1),
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
    "layer_norm": "rms_norm",
    "matmul": "__matmul__",
    "new_zeros": "new_ones",
    "interpolate": "upsample",
    "clamp": "clip",
}.items():
    for other in others.split():
        RECIPES[other] = RECIPES[old]

RANDOM = set(
    """bernoulli bernoulli_ uniform_ normal_ rand_like randn_like empty_like dropout dropout_ alpha_dropout dropout1d
    dropout2d dropout3d feature_alpha_dropout""".split()
)
ELSEWHERE = {  # whose results are no maps of this kind: tested by the files named
    **dict.fromkeys("conv1d conv3d conv_transpose1d conv_transpose3d mm bmm".split(), "test_meanings.py"),
    **dict.fromkeys("max_pool1d max_pool3d avg_pool1d avg_pool3d".split(), "test_neighbourhood.py"),
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


def form_of(func):
    name = func.__name__
    if name in RECIPES:
        return RECIPES[name]
    x = weights(2, CHANNELS, 4, 4)
    for form in FORMS:
        try:
            if isinstance(form(func, x.clone()), Tensor):
                return lambda f, x: form(f, x.clone())
        except (TypeError, RuntimeError, ValueError):
            continue
    return None


@pytest.mark.filterwarnings("ignore:.*upsample.*deprecated")
@pytest.mark.parametrize("label", FUNCTIONS)
def test_function(label):
    func = FUNCTIONS[label]
    name = func.__name__
    if name in ELSEWHERE:
        return
    if name in RANDOM:
        x = gather(weights(2, CHANNELS, 8, 12).sigmoid(), PatchGrid(MASKS["some"]))
        out = func(x) if "dropout" not in name or func is F.dropout else func(x, 0.5, True)
        assert isinstance(out, VisiblePatches) and out.shape == x.shape
        return
    form = form_of(func)
    assert form is not None, f"{label} has no recipe here"
    for patch in (4, 1):
        if patch == 1 and name in ("pixel_unshuffle", "max_pool2d"):
            continue
        images = weights(2, CHANNELS, 2 * patch, 3 * patch)
        for kind, visible in MASKS.items():
            compare(lambda x: form(func, x), images, PatchGrid(visible), f"{kind} visible, patches of {patch}")


def compare(call, images, grid, where):
    zero_filled = scatter(gather(images, grid))
    expected = call(zero_filled)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = gather(images.contiguous(memory_format=layout), grid)
        found = call(x)
        if expected is None or found is None:
            return
        if isinstance(found, PerImage) or not isinstance(found, VisiblePatches):
            assert found.shape == expected.shape and torch.equal(torch.as_tensor(found), expected), where
            continue
        shown = gather(expected, grid).values
        assert found.dtype == expected.dtype, where
        torch.testing.assert_close(found.values, shown, equal_nan=True, msg=lambda text: f"{where}: {text}")
    if not (expected.is_floating_point() and grid.num_visible and isinstance(found, VisiblePatches)):
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
