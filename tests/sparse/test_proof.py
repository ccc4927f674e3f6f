"""The proof: a verdict on what the engine runs, at the size and in the mode of the run, with the culprit's name."""

import random
from contextlib import nullcontext

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from convspark import SparK, VisiblePatches, gather, scatter
from convspark.errors import NotExactError
from convspark.sparse.proof.oracle import MaskAndMultiply
from convspark.sparse.proof.prove import examine, prove


class Wrapped(nn.Module):
    """A convolution, a function, another convolution."""

    def __init__(self, function, channels=8):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.function = function
        self.head = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x):
        return self.head(self.function(self.stem(x)))


class Gate(nn.Module):
    """Attention over channels and space, as CBAM has it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x):
        both = torch.cat([torch.max(x, 1, keepdim=True)[0], torch.mean(x, 1, keepdim=True)], 1)
        return x * torch.sigmoid(self.conv(both))


class Joined(nn.Module):
    """A kernel for each image: `view` makes one image of all channels, which their order in memory must allow."""

    def forward(self, x):
        n, c, h, w = x.shape
        kernels = x.mean((2, 3)).sigmoid().view(n * c, 1, 1, 1)
        return F.conv2d(x.view(1, n * c, h, w), kernels, groups=n * c).view(n, c, h, w)


class ExternalAttention(nn.Module):
    """Normalised over positions, then over words: a masked position has a share of nothing."""

    def __init__(self):
        super().__init__()
        self.keys, self.values = nn.Linear(8, 5, bias=False), nn.Linear(5, 8, bias=False)

    def forward(self, x):
        shares = self.keys(x.flatten(2).transpose(1, 2)).softmax(1)
        return x + self.values(shares / shares.sum(2, keepdim=True)).transpose(1, 2).reshape(x.shape)


class OfUnitLength(nn.Module):
    """Where a map is 0, as at masked positions before a convolution without a bias, neither value nor slope."""

    def __init__(self):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(8, 8, 1, bias=False), nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x):
        x = self.conv(x)
        return x / x.pow(2).sum(1, keepdim=True).sqrt() * self.scale


EXACT = {
    "CBAM": Gate(),
    "external attention": ExternalAttention(),
    "of unit length": OfUnitLength(),
    "norm along channels": lambda x: x / (1 + x.norm(dim=1, keepdim=True)),
    "linalg norm": lambda x: x / (1 + torch.linalg.norm(x, dim=1, keepdim=True)),
    "cat with zeros": lambda x: torch.cat([x[:, :6], x.new_zeros(x.shape[0], 2, *x.shape[2:])], 1),
    "largest of all": lambda x: x / (1 + x.max().abs()),
    "logsumexp": lambda x: x + x.logsumexp(1, keepdim=True),
    "index_select": lambda x: x.index_select(1, torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])),
    "instance norm with statistics": nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "topk": lambda x: x + x.topk(2, dim=1).values.sum(1, keepdim=True),
    "flip of channels": lambda x: x.flip(1),
    "stack and maximum": lambda x: torch.stack([x, -x], 1).amax(1),
    "slice assignment": lambda x: _assigned(x),
    "mean of one axis after the other": lambda x: x * x.mean(3).mean(2)[:, :, None, None],
    "largest of one axis after the other": lambda x: x * x.amax(2, keepdim=True).amax(3, keepdim=True),
    "deviation of deviations": lambda x: x / (1 + x.std((2, 3), keepdim=True).std(1, keepdim=True)),
    "einsum": lambda x: torch.einsum("bchw,dc->bhwd", x, torch.ones(8, 8).double() / 8).permute(0, 3, 1, 2),
    "a kernel as wide as the grid, made from the map": lambda x: F.conv2d(
        x, x.new_tensor([1.0, 2.0, 3.0]).expand(8, 1, 3, 3), padding=1, groups=8
    ),
    "convolution by keywords": lambda x: F.conv2d(input=x + 1, weight=torch.ones(8, 8, 3, 3).double() / 8, padding=1),
    "convolution of flat positions": lambda x: F.conv1d(x.flatten(2), torch.ones(8, 8, 1).double()).view(x.shape),
    "pooling of flat positions": lambda x: x * F.adaptive_avg_pool1d(x.flatten(2), 1)[..., None],
    "cosine similarity": lambda x: x * F.cosine_similarity(x, x.flip(1), dim=1)[:, None],
    "pad and crop": lambda x: F.avg_pool2d(F.pad(F.pad(x, (1, 1, 1, 1)), (-1, -1, -1, -1)), 3, 1, 1),
    "group norm": nn.GroupNorm(1, 8),
    "a view of a norm as channels of one image": nn.Sequential(nn.BatchNorm2d(8), Joined()),
    "hand-written gradient": lambda x: Swish.apply(x),
    "dropout of channels": nn.Dropout2d(0.3),
    "dropout of whole images, as if they were channels of a volume": nn.Dropout3d(0.3),
    "alpha dropout": nn.AlphaDropout(0.3),
}


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s * (1 + x * (1 - s)))


def _assigned(x):
    y = x.clone()
    y[:, :2] = 2 * y[:, 2:4]
    return y


@pytest.mark.parametrize("name", EXACT)
def test_what_the_engine_runs_exactly_is_proved(name):
    network = Wrapped(EXACT[name])
    proof = examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8))
    assert proof.exact, proof.reason
    assert prove(lambda x: [network(x)], network, 3, (32, 32), (8, 8)).largest < 1e-8


WEIGHT, BESIDE = torch.randn(8, 8).double(), torch.randn(8, 1, 1).double()


def gate(values):
    """One value an image and channel, to multiply by."""
    return values.flatten(1)[:, :8, None, None]


# Each looks at the positions of an image, so that masked ones must not count.
OVER_POSITIONS = {
    "means of bins": lambda x: x * gate(F.adaptive_avg_pool2d(x, 2)),
    "means of bins, not square": lambda x: x * gate(F.adaptive_avg_pool2d(x, (3, 1))),
    "largest of bins that cut patches": lambda x: x * gate(F.adaptive_max_pool2d(-x.abs() - 1, 3)),
    "average over the shape": lambda x: x * F.avg_pool2d(x, x.shape[2:]),
    "largest over the size, by name": lambda x: x * F.max_pool2d(-x.abs() - 1, kernel_size=x.size()[2:]),
    "largest with its place": lambda x: x * gate((-x.abs() - 1).flatten(2).max(-1)[0]),
    "smallest with its place, one axis after the other": lambda x: x * gate((x.abs() + 1).min(3)[0].min(2).values),
    "sum over numel": lambda x: x * (x.exp().sum() / x.numel()),
    "sum over nelement, by images": lambda x: x * (x.mean((2, 3)).exp().sum() / x.mean((2, 3)).nelement()),
    "logsumexp of positions": lambda x: x * torch.logsumexp(x, dim=(2, 3), keepdim=True),
    "softmax of positions": lambda x: x * x.flatten(2).softmax(-1).view(x.shape),
    "log_softmax of positions": lambda x: x + F.log_softmax(x.flatten(2), dim=2).view(x.shape),
    "mean of a mean": lambda x: x * gate(x.exp().mean(-1).mean(-1)),
    "means with NumPy's spelling": lambda x: x * x.exp().mean(2, keepdims=True).mean(axis=3, keepdims=True),
    "gate by einsum": lambda x: torch.einsum("bchw,bc,dc->bdhw", x, x.exp().mean((2, 3)), WEIGHT),
    "means of images, joined": lambda x: x * gate(torch.cat([x.exp().mean((2, 3)), x.mean((2, 3))], 1)),
    "written into a part": lambda x: _assigned_means(x),
    "matrices as large as a map": lambda x: _linear_attention(x),
}

# Each treats positions alone.
OF_EACH_POSITION = {
    "as many bins as positions": lambda x: x * F.adaptive_avg_pool2d(x, 8).mean((2, 3), keepdim=True),
    "pooled to its own size": lambda x: x + F.adaptive_avg_pool2d(x, x.shape[2:]),
    "largest to its own size": lambda x: x * F.adaptive_max_pool2d(x, x.shape[2:]).mean((2, 3), keepdim=True),
    "pooled to no other size": lambda x: x * F.adaptive_avg_pool2d(x, (None, None)).mean((2, 3), keepdim=True),
    "pooled to a size that was read off a map": lambda x: F.interpolate(
        F.adaptive_avg_pool2d(x, F.max_pool2d(x, 2).shape[2:]), scale_factor=2
    ),
    "weights on the left": lambda x: (WEIGHT @ x.flatten(2)).view(x.shape),
    "einsum of three": lambda x: torch.einsum("dc,ec,b...->be...", WEIGHT, WEIGHT, x.sum(1)),
    "einsum of a list": lambda x: torch.einsum("dc,bchw->bdhw", [WEIGHT, x]),
    "einsum with an ellipsis": lambda x: torch.einsum("dc,bc...->bd...", WEIGHT, x),
    "einsum without a result": lambda x: x + torch.einsum("a...,a...->a...", x, x).sum(1, keepdim=True),
    "unsqueeze_": lambda x: x + x.mean(1).unsqueeze_(1),
    "mT": lambda x: (x.flatten(2).mT @ WEIGHT).mT.reshape(x.shape),
    "larger of a plain tensor": lambda x: torch.max(x, BESIDE) + torch.min(BESIDE, other=x),
    "plain tensors as large": lambda x: BESIDE.expand_as(x) * x + x.mean(1, keepdim=True).expand_as(x),
    "plain tensor on the left": lambda x: BESIDE * x + BESIDE[None] * x.mean((2, 3), keepdim=True),
}


def _linear_attention(x):
    rows = x.flatten(2).mT[:, None]  # (images, 1, positions, channels)
    return x + (rows @ (rows.exp().mT @ rows.cos())).mT.reshape(x.shape)


def _assigned_means(x):
    y = x.clone()
    y[:, :2] = x[:, 2:4].exp().mean((2, 3), keepdim=True)
    return y


@pytest.mark.parametrize("name", [*OVER_POSITIONS, *OF_EACH_POSITION])
def test_the_oracle_knows_what_the_engine_knows(name):
    network = Wrapped((OVER_POSITIONS | OF_EACH_POSITION)[name])
    proof = examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8))
    assert proof.exact, proof.reason
    oracle = MaskAndMultiply(SOME)
    oracle(network.double(), torch.randn(2, 3, 32, 32).double())
    assert not oracle.unknown


def with_zeros(function):
    """A wrong meaning: on patches, that of the map with 0 at masked positions."""
    return lambda x: gather(function(scatter(x)), x.grid) if isinstance(x, VisiblePatches) else function(x)


def by_share(function):
    """A wrong meaning: on patches, more where more is masked."""

    def wrong(x):
        return function(x) / (x.grid.visible.double().mean() if isinstance(x, VisiblePatches) else 1)

    return wrong


WRONG = {name: with_zeros(f) for name, f in OVER_POSITIONS.items()}
WRONG |= {name: by_share(f) for name, f in OF_EACH_POSITION.items()}


@pytest.mark.parametrize("name", WRONG)
def test_the_oracle_finds_out_who_counts_masked_positions(name):
    network = Wrapped(WRONG[name])
    proof = examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8))
    assert not proof.exact and proof.dense < 1e-8 and "mask-and-multiply" in (proof.reason or "")


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: [x] * x.shape[-1],
        lambda x: [x.shape[-1]],
        lambda x: [None],
        lambda x: None,
        lambda x: [],
        lambda x: [x.mean(2, keepdims=True)],
        lambda x: [x.mean(2, keepdims=True).mean(2)],
        lambda x: [x > 0],
        lambda x: {"features": x},
        lambda x: x.sum(),
    ],
)
def test_whatever_a_network_returns_there_is_a_verdict(forward):
    for judged in (examine, prove):
        with pytest.raises(NotExactError):
            judged(forward, nn.Identity(), 3, (32, 32), (8, 8))


def test_channels_of_a_signal_that_stand_where_positions_do_are_none():
    """As ECA gates them, with as many channels as there might be positions."""
    network = nn.Sequential(nn.Conv1d(3, 8, 4, 4), ChannelGate())
    assert examine(lambda x: [network(x)], network, 3, (32,), (8,)).exact


class ChannelGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        return x * self.conv(x.mean(-1, keepdim=True).transpose(1, 2)).transpose(1, 2).sigmoid()


def test_gated_linear_units():
    network = Wrapped(nn.GLU(1), channels=4)
    assert examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8)).exact


def test_a_network_that_branches_on_the_size_of_the_run_is_found_out():
    network = Wrapped(lambda x: x * 2 if x.shape[-1] >= 12 else x)
    assert prove(lambda x: [network(x)], network, 3, (32, 32), (8, 8)).largest < 1e-8
    with pytest.raises(NotExactError, match="at 64x64 pixels"):
        prove(lambda x: [network(x)], network, 3, (64, 64), (8, 8))


def test_a_network_for_images_of_one_size_is_told_that_patches_are_of_another():
    network = Wrapped(lambda x: x.reshape(-1, 8, 8, 8))
    with pytest.raises(NotExactError, match=r"images of 16x16 pixels: RuntimeError.* Expected .* images of any size"):
        examine(lambda x: [network(x)], network, 3, (16, 16), (4, 4), images=1)


class FrozenStem(Wrapped):
    """Freezes a part of itself each time that it is put into training mode."""

    def train(self, mode=True):
        self.stem.requires_grad_(False)
        return super().train(mode)


def test_a_network_that_freezes_a_part_for_training_is_proved():
    network = FrozenStem(nn.ReLU())
    assert examine(lambda x: [network(x)], network, 3, (16, 16), (4, 4)).exact
    network.stem.requires_grad_(True)
    examine(lambda x: [network(x)], network, 3, (16, 16), (4, 4))
    assert all(p.requires_grad for p in network.parameters()), "it is left as it was"


def test_a_network_that_is_wrong_in_training_alone_is_found_out():
    class InTraining(nn.Module):
        def forward(self, x):
            return F.adaptive_avg_pool2d(x, 1) + x * x.shape[-1] if self.training else x

    network = Wrapped(InTraining())
    with pytest.raises(NotExactError, match="dense network gives other features"):
        prove(lambda x: [network(x)], network, 3, (32, 32), (8, 8))


def test_what_a_training_step_would_refuse_is_refused_at_the_start():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn(x.shape) if self.training else x

    network = Wrapped(Noise())
    with pytest.raises(NotExactError, match="add"):
        prove(lambda x: [network(x)], network, 3, (32, 32), (8, 8))


def scripted():
    """A function that TorchScript compiled."""

    def swish(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)

    return torch.jit.script(swish)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [scripted, lambda: torch.vmap(lambda x: x * 2), lambda: lambda x: torch.Tensor(x)])
def test_what_leaves_visible_patches_is_named(make):
    function = make()

    class Leaves(nn.Module):
        def forward(self, x):
            return function(x).to(torch.float64)

    network = Wrapped(nn.Identity())
    network.function = Leaves()
    with pytest.raises(NotExactError, match=r"\(Leaves\) returned a plain tensor.* module without\. Take stages"):
        prove(lambda x: [network(x)], network, 3, (32, 32), (8, 8))


SOME = torch.tensor([[[True, False], [True, True]], [[False, False], [False, True]]])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.linalg.svdvals(x),
        lambda x: torch.fft.fft2(x).abs(),
        lambda x: torch.cdist(x.flatten(2), x.flatten(2)),
        lambda x: torch.vmap(lambda one: one * 2)(x),
        lambda x: torch.unique(x),
        lambda x: x[x > 0],
        lambda x: x.flatten(2).logsumexp((1, 2)),
        lambda x: x.unfold(2, 2, 2),
        lambda x: torch.histc(x, bins=3),
        lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True)[1],
        lambda x: x.transpose_(2, 3).unsqueeze_(0),
        lambda x: x.tolist() and x,
    ],
)
def test_the_oracle_runs_whatever_runs_densely(function):
    images = torch.randn(2, 3, 8, 8)
    expected = function(images.clone())
    result = MaskAndMultiply(torch.ones(2, 2, 2, dtype=torch.bool))(function, images)
    torch.testing.assert_close(result, expected)
    assert MaskAndMultiply(SOME)(function, images) is not None


def test_the_oracle_by_hand():
    """A mean counts visible positions, a convolution sees zeros, what is added at masked positions stays there."""
    images, conv = torch.randn(2, 3, 8, 8), nn.Conv2d(3, 3, 3, padding=1)
    shown = SOME.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    zero_filled = images * shown
    means = zero_filled.sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True)
    result = MaskAndMultiply(SOME)(lambda x: conv(x + x.mean((2, 3), keepdim=True)), images)
    torch.testing.assert_close(result, shown * conv(shown * (images + means)))


class InTraining(nn.Module):
    """A function in training alone."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x) if self.training else x


def dropped_blocks(x):
    return x * (1 - F.max_pool2d((torch.rand_like(x[:, :1]) < 0.1).to(x), 3, 1, 1))


RANDOM = {
    "dropout": nn.Dropout(0.3),
    "dropout in place": nn.Sequential(nn.Identity(), nn.Dropout(0.3, inplace=True)),
    "dropout of channels": nn.Dropout2d(0.3),
    "dropout of whole images, as if they were channels of a volume": nn.Dropout3d(0.3),
    "alpha dropout": nn.AlphaDropout(0.3),
    "alpha dropout of channels": nn.FeatureAlphaDropout(0.3),
    "rrelu": nn.RReLU(),
    "rrelu in place": nn.RReLU(inplace=True),
    "noise": InTraining(lambda x: x + 0.1 * torch.randn_like(x)),
    "noise in place": InTraining(lambda x: x + torch.empty_like(x).normal_(0, 0.1)),
    "noise of channels": InTraining(lambda x: x + torch.randn(1, x.shape[1], 1, 1)),
    "bernoulli": InTraining(lambda x: x * torch.bernoulli(torch.full_like(x, 0.5))),
    "drop block": InTraining(dropped_blocks),
    "dropout, channels last": InTraining(lambda x: F.dropout(x.permute(0, 2, 3, 1), 0.5).permute(0, 3, 1, 2)),
    "dropout of flat positions": InTraining(lambda x: F.dropout(x.flatten(2), 0.5).view(x.shape)),
    "dropout without channels": InTraining(lambda x: x * F.dropout(x.mean(1), 0.5)[:, None]),
    "dropout of images": InTraining(lambda x: x * F.dropout(x.mean((2, 3)), 0.5)[:, :, None, None]),
    "stochastic depth, timm's": timm.layers.DropPath(0.5),
    "stochastic depth, torchvision's": torchvision.ops.StochasticDepth(0.5, "row"),
    "stochastic depth of the batch": torchvision.ops.StochasticDepth(0.5, "batch"),
    "stochastic depth by rand": InTraining(lambda x: x * (torch.rand(x.shape[0], 1, 1, 1) < 0.5)),
    "a layer left out": InTraining(lambda x: x if torch.rand(1) < 0.5 else x * 2),
}


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_random_is_proved_in_training_with_the_same_draws(name):
    network = Wrapped(RANDOM[name]).train()
    proof = examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8))
    assert proof.exact and proof.unmatched is None, proof.reason
    assert prove(lambda x: [network(x)], network, 3, (64, 64), (8, 8)).unmatched is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.dropout(x, 0.5 if type(x) is torch.Tensor else 0.4),
        lambda x: x + torch.randn_like(x) * x.shape[-1],
        lambda x: x * (torch.rand(x.shape[0], 1, 1, 1) + torch.arange(x.shape[0]).view(-1, 1, 1, 1)),
    ],
    ids=["otherwise on patches", "noise by size", "rows that are not drawn"],
)
def test_what_is_random_and_wrong_is_found(function):
    network = Wrapped(InTraining(function)).train()
    proof = examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8))
    assert not proof.exact and "function (InTraining)" in (proof.reason or "")


def test_numbers_drawn_for_positions_are_not_those_of_images_where_patches_have_one():
    def of_positions(x):
        return x * (torch.rand(x.shape[0], *x.shape[2:]) < 0.7)[:, None]

    def of_images(x):
        return x * (torch.rand(x.shape[0], 1, 1) < 0.7)[:, None]

    for draw, words in ((of_positions, "draws uniform_ for each position of a map"), (of_images, None)):
        network = nn.Sequential(nn.Conv2d(3, 8, 8, 8), InTraining(draw), nn.Conv2d(8, 8, 3, 1, 1)).train()
        with pytest.raises(NotExactError, match=words) if words else nullcontext():
            proof = examine(lambda x, network=network: [network(x)], network, 3, (32, 32), (8, 8))
            assert proof.exact and proof.unmatched is None


class ShakenBack(torch.autograd.Function):
    """Shake-shake: on the way back, a gradient of patches is a plain tensor, and each row gets its own number."""

    @staticmethod
    def forward(ctx, x):
        return x * torch.rand(x.shape[0], 1, 1, 1)

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.rand(grad.shape[0], 1, 1, 1)


def test_numbers_drawn_for_each_row_on_the_way_back_are_found_out():
    network = Wrapped(InTraining(ShakenBack.apply)).train()
    proof = examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8))
    assert not proof.exact and "other gradients" in (proof.reason or "")


@pytest.mark.parametrize("drawn", [lambda x: x * random.random(), lambda x: _more_often_on_images(x)])
def test_draws_that_cannot_be_matched_are_proved_in_evaluation_and_said(drawn):
    network = Wrapped(InTraining(drawn)).train()
    proof = examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8))
    assert proof.exact and proof.unmatched
    assert prove(lambda x: [network(x)], network, 3, (32, 32), (8, 8)).unmatched


def _more_often_on_images(x):
    for _ in range(2 if type(x) is torch.Tensor else 1):
        factor = torch.rand(1)
    return x * factor


def test_checkpoints_are_proved_with_their_random_numbers():
    inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))

    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    network = Wrapped(Saving()).train()
    assert examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8)).exact


def test_a_checkpoint_that_leaves_early_leaves_mask_and_multiply_as_well():
    """Once all that was saved is there again, it ends the second run by an exception."""
    inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8))
    network = Wrapped(lambda x: checkpoint(inner, x, use_reentrant=False))
    network.inner = inner
    proof = examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8))
    assert proof.exact, proof.reason


class Remembered(nn.Module):
    """Takes another tensor for its buffer at each step."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        return x - self.mean.view(1, -1, 1, 1)


def test_buffers_that_a_network_replaces_are_its_own_again():
    network = Wrapped(Remembered())
    before = network.function.mean
    proof = examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8), run_size=(40, 40))
    assert proof.exact, proof.reason
    assert network.function.mean is before and before.dtype == torch.float32 and not before.any()


class Begun(nn.Module):
    """Takes its shift from its first batch, as ActNorm does, and keeps a kernel."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(8))
        self.begun, self.kernel = False, None

    def forward(self, x):
        if not self.begun:
            self.begun, self.shift.data = True, -x.detach().mean((0, 2, 3))
            self.kernel = torch.ones(8, 1, 3, 3, dtype=x.dtype)
        return F.conv2d(x + self.shift.view(1, -1, 1, 1), self.kernel, padding=1, groups=8)


def test_a_network_that_has_not_begun_has_not_begun_afterwards():
    network = Wrapped(Begun())
    prove(lambda x: [network(x)], network, 3, (40, 40), (8, 8))
    begun = network.function
    assert (begun.begun, begun.kernel) == (False, None) and not begun.shift.any()
    assert network(torch.zeros(2, 3, 16, 16)).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_what_a_single_image_has_not_is_compared_on_two():
    network = Wrapped(lambda x: x / (1 + x.mean((2, 3), keepdim=True).var(0, keepdim=True)))
    proof = examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8), run_size=(40, 40))
    assert proof.exact, proof.reason


def test_a_network_is_left_as_it_was():
    network = timm.create_model("resnet10t").eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    states = []
    for proved in (True, False):
        torch.manual_seed(0)
        SparK(network, image_size=160, decoder_width=32, prove=proved)
        states.append(torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training and all(p.grad is None for p in network.parameters())
    assert before.keys() == network.state_dict().keys()
    assert torch.equal(*states)  # which the decoder's weights moved, and the proof did not


class Patchify(nn.Module):
    """Patches of 32 pixels to single positions; notes how many of them its norm sees in training, and sets a buffer."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 32, 32), nn.BatchNorm2d(8)
        self.register_buffer("calls", torch.zeros(()))
        self.counts = []

    def forward(self, x):
        self.calls = self.calls + 1
        out = self.stem(x)
        if self.training and isinstance(out, VisiblePatches):
            self.counts.append(out.shape[0])
        return self.norm(out)


@pytest.mark.parametrize("size", [(64, 64), (32, 64), (96, 96)])
def test_batch_norms_see_several_positions_however_few_patches_an_image_has(size):
    network = Patchify()
    SparK(network, image_size=size, decoder_width=32)
    assert min(network.counts) >= 4  # over two, a network amplifies roundings up to what counts as a mistake
    assert network.calls.dtype == torch.float32


def test_autocast_around_it_changes_no_verdict():
    with torch.autocast("cpu", torch.bfloat16):
        SparK(Patchify(), image_size=64, decoder_width=32)


def test_a_network_without_values_cannot_be_proved():
    with pytest.raises(NotExactError, match=r"device meta.*weights first"):
        SparK(Patchify().to("meta"), image_size=64)
