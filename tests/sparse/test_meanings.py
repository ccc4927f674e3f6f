"""Small custom networks, each built around one kind of function, exact in all three senses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import stochastic_depth
from truth import assert_exact

from convspark.sparse import PatchGrid, gather, scatter

SHAPE, GRID = (3, 4, 16, 24), (2, 3)


class Net(nn.Module):
    """A convolution, a function of the map, a convolution."""

    def __init__(self, middle, channels=4):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.middle = middle
        if isinstance(middle, nn.Module):
            self.module = middle
        self.last = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class SqueezeExcite(nn.Module):
    def __init__(self, squeeze):
        super().__init__()
        self.squeeze = squeeze
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return x * torch.sigmoid(self.fc(self.squeeze(x)))[:, :, None, None]


class EfficientChannelAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        gate = x.mean((2, 3)).view(x.shape[0], 1, -1)
        return x * self.conv(gate).view(x.shape[0], -1, 1, 1).sigmoid().expand_as(x)


class LastAxisNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class NormByTorch(nn.Module):
    """`torch.batch_norm` has its arguments in another order than `functional.batch_norm`; so has `instance_norm`."""

    def __init__(self, norm, statistics):
        super().__init__()
        self.norm = norm
        self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.register_buffer("mean", torch.zeros(4) if statistics else None)
        self.register_buffer("variance", torch.ones(4) if statistics else None)

    def forward(self, x):
        x = self.norm(x, self.weight, self.bias, self.mean, self.variance, True, 0.1, 1e-5, False)
        flag = "training" if self.norm is torch.batch_norm else "use_input_stats"
        named = dict(running_mean=self.mean, running_var=self.variance, weight=self.weight, bias=self.bias)
        return self.norm(x, **named, **{flag: True}, momentum=0.1, eps=1e-5, cudnn_enabled=False)


class Rows(nn.Module):
    """Positions as rows of a matrix, and back."""

    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x):
        n, c, h, w = x.shape
        rows = self.norm(self.fc(x.permute(0, 2, 3, 1).reshape(-1, c)))
        return rows.view(n, h, w, c).permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.dims = dims
        self.gamma = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        g = x.norm(p=2, dim=self.dims, keepdim=True)
        return x + self.gamma * x * (g / (g.mean(1, keepdim=True) + 1e-6))


class GlobalContext(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        n, c, h, w = x.shape
        weight = self.attention(x).reshape(n, 1, h * w).softmax(-1).unsqueeze(3)
        context = x.reshape(n, c, h * w).unsqueeze(1) @ weight
        return x + context.view(n, c, 1, 1)


def channel_attention(x):
    n, c, h, w = x.shape
    rows = x.flatten(2)
    return ((rows @ rows.transpose(1, 2) / 100).softmax(-1) @ rows).view(n, c, h, w)


def shuffle_channels(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def transposed_attention(x):
    """Between channels, whose rows are normalised over positions (Restormer, XCiT)."""
    rows = F.normalize(x.flatten(2), dim=-1)
    return ((rows @ rows.transpose(1, 2)).softmax(-1) @ x.flatten(2)).view_as(x)


def efficient_attention(x):
    """By einsum, which sums over positions (Shen et al. 2021)."""
    n, c, h, w = x.shape
    heads = x.reshape(n, 2, c // 2, -1)
    context = torch.einsum("nhci,nhdi->nhcd", heads.softmax(-1), heads)
    return torch.einsum("nhci,nhcd->nhdi", heads.softmax(-2), context).reshape(n, c, h, w)


def pooled_by_einsum(x):
    weighted = torch.einsum("nchw,nhw->nc", x, x[:, 0].sigmoid())
    return x * torch.einsum("nchw->cn", x).transpose(0, 1)[:, :, None, None] + weighted[..., None, None]


class Involution(nn.Module):
    """A kernel for each position, applied to its window (Li et al. 2021)."""

    def __init__(self, stride=1):
        super().__init__()
        self.stride = stride
        self.kernels = nn.Conv2d(4, 2 * 9, 1, stride)

    def forward(self, x):
        kernels = self.kernels(x)
        n, _, h, w = kernels.shape
        windows = F.unfold(x, 3, padding=1, stride=self.stride).view(n, 2, 2, 9, h, w)
        return (kernels.view(n, 2, 1, 9, h, w) * windows).sum(3).view(n, 4, h, w)


def zeros_beside(x):
    """As PyramidNet widens its shortcuts; beside them what differs from channel to channel."""
    scale = torch.arange(2.0, dtype=x.dtype).view(2, 1, 1)
    zeros = torch.zeros(x.size(0), 2, x.size(2), x.size(3), dtype=x.dtype)
    return torch.cat((zeros + scale, x, zeros), 1)[:, 1:5].relu()


def windows_of_a_padded_map(x):
    windows = F.unfold(F.pad(x, (1, 1, 1, 1), "reflect"), 3)
    return windows.view(len(x), 4, 9, *x.shape[2:]).amax(2)


class OfFlatGroups(nn.Module):
    """A convolution along one axis of groups of channels, beside flat positions (ACmix, the head of YOLOv8)."""

    def __init__(self, kernel=1):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, (kernel, 1), padding=(kernel // 2, 0))

    def forward(self, x):
        return self.conv(x.flatten(2).unflatten(1, (2, 2)) + 1).mean(2).view(x.shape)


class Outlook(nn.Module):
    """Weights that each position gives to its window, and windows summed where they overlap (VOLO)."""

    def __init__(self, stride=1):
        super().__init__()
        self.stride, self.weigh = stride, nn.Conv2d(4, 81, 1)

    def forward(self, x):
        n, c, h, w = x.shape
        windows = F.unfold(x, 3, padding=1, stride=self.stride).view(n, c, 9, -1).permute(0, 3, 2, 1)
        weights = self.weigh(F.avg_pool2d(x, self.stride)).flatten(2).mT.unflatten(2, (9, 9)).softmax(-1)
        windows = (weights @ windows).permute(0, 3, 2, 1).reshape(n, c * 9, -1)
        return F.fold(windows, (h, w), 3, padding=1, stride=self.stride)


class BesideImages(nn.Module):
    """A convolution of groups of channels that were put beside the images (EMA attention, blurs, wavelets)."""

    def __init__(self, channels, stride=1):
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, 2, 3, stride, padding=1)

    def forward(self, x):
        n, c, h, w = x.shape
        groups = c // self.channels
        out = self.conv(x.reshape(n * groups, self.channels, h, w))
        return out.reshape(n, groups * 2, *out.shape[2:])[:, :4]


def repeated_beside_positions(x):
    """A fourth axis of channels of pooled values is no map."""
    return x * x.mean((2, 3)).unsqueeze(-1).repeat(1, 1, 4).sum(-1)[..., None, None]


def space_to_depth(x):
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous().view(n, c * 4, h // 2, w // 2)


def depth_to_space(x):
    n, c, h, w = x.shape
    return x.view(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, h * 2, w * 2)


def spread_with_patches_second(x):
    moved = x.transpose(0, 1)
    return moved.mean((2, 3), keepdim=True).expand(moved.shape).transpose(0, 1) + x


def standardise(x):
    var, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, unbiased=False)
    return (x - mean) / (var + 1e-5).sqrt()


def batch_standardise(x):
    mean = x.mean((0, 2, 3), keepdim=True)
    return x - mean + x.mean((0, 2, 3)).view(1, -1, 1, 1)


def halved_in_parts(x):
    """As YOLOv9's ADown: a pooling leaves a map smaller by one, for which the next layers make up."""
    one, other = F.avg_pool2d(x, 2, 1, 0, False, True).chunk(2, 1)
    one = F.conv2d(one, torch.ones(2, 2, 3, 3, dtype=x.dtype), stride=2, padding=1)
    return torch.cat([one, F.max_pool2d(other, 3, 2, 1)], 1)


MIDDLES = {
    "squeeze by mean": lambda: SqueezeExcite(lambda x: x.mean((2, 3))),
    "squeeze by pooling": lambda: SqueezeExcite(lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1)),
    "squeeze by maximum": lambda: SqueezeExcite(lambda x: F.adaptive_max_pool2d(x, 1).flatten(1)),
    "squeeze over flat positions": lambda: SqueezeExcite(lambda x: x.flatten(2).mean(-1)),
    "squeeze by sum": lambda: SqueezeExcite(lambda x: x.sum([2, 3]) / 10),
    "squeeze of deviations": lambda: SqueezeExcite(lambda x: x.std((2, 3)) + x.amin((2, 3))),
    "eca": EfficientChannelAttention,
    "global context": GlobalContext,
    "channel attention": lambda: channel_attention,
    "channel attention of normalised rows": lambda: transposed_attention,
    "efficient attention": lambda: efficient_attention,
    "pooled by einsum": lambda: pooled_by_einsum,
    "normalised over positions": lambda: lambda x: F.normalize(x, p=1, dim=(2, 3)) + F.normalize(x, 3.0, dim=1),
    "involution": Involution,
    "windows of a padded map": lambda: windows_of_a_padded_map,
    "involution with a stride": lambda: Involution(stride=2),
    "outlook attention": Outlook,
    "outlook attention with a stride": lambda: Outlook(stride=2),
    "convolution of groups beside images": lambda: BesideImages(2),
    "convolution of groups beside images with a stride": lambda: BesideImages(2, stride=2),
    "channels beside images, one by one": lambda: BesideImages(1),
    "convolution of groups of flat positions": OfFlatGroups,
    "convolution along groups beside flat positions": lambda: OfFlatGroups(3),
    "gate by view": lambda: lambda x: x * x.mean(1).view(len(x), 1, *x.shape[2:]).sigmoid(),
    "pooled values with a further axis": lambda: repeated_beside_positions,
    "zeros of its own beside channels": lambda: zeros_beside,
    "norm over channels": LastAxisNorm,
    "positions as rows": Rows,
    "grn": lambda: GlobalResponseNorm((2, 3)),
    "local response norm": lambda: nn.LocalResponseNorm(3),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
    "batch norm of torch": lambda: NormByTorch(torch.batch_norm, statistics=True),
    "instance norm of torch": lambda: NormByTorch(torch.instance_norm, statistics=False),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "batch norm in evaluation": lambda: nn.BatchNorm2d(4).eval(),
    "prelu": lambda: nn.PReLU(4),
    "activations": lambda: lambda x: F.gelu(x) + F.silu(x) * F.hardswish(x) - F.softplus(x) + x.clamp(-1, 1).exp(),
    "in-place": lambda: lambda x: F.relu(x.tanh() + 1).mul(2).add_(x) * 2,
    "channel shuffle": lambda: shuffle_channels,
    "chunks": lambda: lambda x: torch.cat([part.sigmoid() for part in x.chunk(2, 1)][::-1], 1),
    "split and index": lambda: lambda x: torch.cat([x[:, 1:], x[:, :1] * 2], 1),
    "expand with patches second": lambda: spread_with_patches_second,
    "stack": lambda: lambda x: torch.stack([x, x.relu()], 1).sum(1),
    "depth and space": lambda: lambda x: depth_to_space(space_to_depth(x)),
    "depth to space": lambda: lambda x: F.avg_pool2d(depth_to_space(x.repeat(1, 4, 1, 1)), 2),
    "pixel shuffle": lambda: lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2),
    "every second position": lambda: lambda x: torch.cat([x[..., ::2, 1::2], x[..., 1::2, ::2]], 1)[:, :4],
    "nearest": lambda: lambda x: F.interpolate(x, scale_factor=2.0),
    "softmax over channels": lambda: lambda x: x.softmax(1),
    "standardise each image": lambda: standardise,
    "standardise the batch": lambda: batch_standardise,
    "blur": lambda: lambda x: F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), _blur(x), groups=4, stride=2),
    "same padding": lambda: lambda x: F.conv2d(F.pad(x, (0, 1, 0, 1)), _blur(x), groups=4, stride=2),
    "pooling": lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
    "pooling that says where": lambda: lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0],
    "unpadded pooling, blur": lambda: (
        lambda x: F.conv2d(F.pad(F.max_pool2d(x, 2, 1), (1, 2, 1, 2), mode="reflect"), _blur(x), groups=4, stride=2)
    ),
    "unpadded pooling, halved in parts": lambda: halved_in_parts,
    "global pooling added": lambda: lambda x: x + F.adaptive_avg_pool2d(x, 1),
    "transposed conv": lambda: nn.ConvTranspose2d(4, 4, 2, 2),
    "transposed conv with neighbours": lambda: nn.ConvTranspose2d(4, 4, 4, 2, 1),
    "transposed conv in groups": lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1, groups=2),
    "bilinear": lambda: lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "bilinear to a size, corners aligned": lambda: (
        lambda x: F.interpolate(x, size=(x.shape[2] * 2, x.shape[3] * 2), mode="bilinear", align_corners=True)
    ),
    "bicubic, smaller": lambda: lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True),
    "area": lambda: lambda x: F.interpolate(x, scale_factor=0.5, mode="area"),
    "nearest by a half": lambda: lambda x: F.interpolate(x, scale_factor=1.5),
    "mask by value": lambda: lambda x: torch.where(x > 0, x, 0.1 * x) + x.masked_fill(x < 0, 0.5),
}


def _blur(x):
    return torch.ones(4, 1, 3, 3, dtype=x.dtype) / 9


@pytest.mark.parametrize("name", MIDDLES)
def test_small_network_is_exact(name):
    torch.manual_seed(0)
    assert_exact(Net(MIDDLES[name]()), SHAPE, GRID)


@pytest.mark.parametrize(
    "name",
    [
        "squeeze by mean",
        "eca",
        "global context",
        "norm over channels",
        "grn",
        "positions as rows",
        "batch norm",
        "pooled by einsum",
        "involution",
        "convolution of groups beside images",
        "channels beside images, one by one",
        "convolution of groups of flat positions",
        "depth to space",
        "gate by view",
    ],
)
def test_small_network_is_exact_where_a_patch_is_one_position(name):
    """At p = 1 shapes say little: axes of positions look like axes that were added."""
    torch.manual_seed(0)
    assert_exact(Net(MIDDLES[name]()), (3, 4, 3, 4), (3, 4))


def test_as_many_patches_as_images():
    """N = B must not turn per-image values into per-patch ones."""
    from convspark import PatchGrid, gather, scatter
    from convspark.sparse.proof.oracle import MaskAndMultiply

    net = Net(SqueezeExcite(lambda x: x.mean((2, 3)))).double()
    images = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    visible = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]).bool().view(3, 2, 2)
    torch.testing.assert_close(scatter(net(gather(images, PatchGrid(visible)))), MaskAndMultiply(visible)(net, images))


class DropPath(nn.Module):
    """Stochastic depth as many networks write it."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):
        keep = 1 - self.share
        return x.div(keep) * (torch.rand((x.shape[0], 1, 1, 1), dtype=x.dtype) < keep)


class Sometimes(nn.Module):
    """The same under names that say nothing; what draws is a method, a function, or another module."""

    def __init__(self, share, how):
        super().__init__()
        self.share, self.how = share, how
        self.gate = Gate(share)

    def forward(self, x):
        drawn = {"method": self.picked, "function": picked, "submodule": lambda x, _: self.gate(x)}[self.how]
        return x * drawn(x, 1 - self.share)

    def picked(self, x, keep):
        return (torch.rand(len(x), *[1] * (x.dim() - 1)) < keep).to(x) / keep


class Gate(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.keep = 1 - share

    def forward(self, x):
        return torch.empty(x.size(0), 1, 1, 1).bernoulli_(self.keep) / self.keep


def picked(x, keep):
    return torch.rand(x.shape[0], 1, 1, 1).lt(keep).to(x) / keep


class Graded(nn.Module):
    """A factor for each row that nobody drew."""

    def forward(self, x):
        return x * torch.arange(1.0, len(x) + 1).view(-1, 1, 1, 1)


def test_a_factor_for_each_row_that_is_not_drawn_is_refused():
    from convspark import PatchGrid, gather
    from convspark.errors import NotExactError

    patches = gather(torch.rand(2, 4, 8, 8), PatchGrid(torch.rand(2, 2, 2) < 2))
    with pytest.raises(NotExactError, match="more than one row"):
        nn.Sequential(nn.Dropout(0.1), Graded())(patches)


def test_a_scale_of_as_many_channels_as_patches_beside_stochastic_depth_is_none_itself():
    from convspark import PatchGrid, gather

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.drop = nn.Parameter(torch.arange(4.0)), Sometimes(0.0, "method")

        def forward(self, x):
            return self.drop(x * self.scale[:, None, None])

    images, visible = torch.rand(2, 4, 8, 8), torch.tensor([[[1, 0], [0, 1]], [[1, 1], [0, 0]]]).bool()
    with torch.no_grad():
        result = Scaled()(gather(images, PatchGrid(visible)))
    torch.testing.assert_close(result.values, gather(images * torch.arange(4.0)[:, None, None], result.grid).values)


def test_a_scale_of_as_many_groups_as_patches_beside_stochastic_depth_is_none_itself():
    from convspark import PatchGrid, gather

    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = Sometimes(0.0, "method")
            self.register_buffer("scale", torch.arange(4.0).view(4, 1, 1, 1))

        def forward(self, x):
            x = self.drop.picked(x, 1.0) * x
            return (x.unflatten(1, (4, 2)) * self.scale).flatten(1, 2)

    images, visible = torch.rand(2, 8, 8, 8), torch.tensor([[[1, 0], [0, 1]], [[1, 1], [0, 0]]]).bool()
    result = Grouped()(gather(images, PatchGrid(visible)))
    torch.testing.assert_close(result.values, gather(Grouped()(images), result.grid).values)


@pytest.mark.parametrize("form", ["torchvision", "own", "module", "method", "function", "submodule"])
def test_stochastic_depth_by_rows_drops_whole_images(form):
    """Its noise is a plain tensor made from a shape; all patches of an image must share the image's draw."""
    from convspark import PatchGrid, gather

    def drop_path(x, share):
        keep = 1 - share
        noise = keep + torch.rand((x.shape[0], 1, 1, 1), dtype=x.dtype)
        return x.div(keep) * noise.floor_()

    drop = {
        "own": drop_path,
        "torchvision": lambda x, share: stochastic_depth(x, share, "row"),
        "module": lambda x, share: DropPath(share)(x),
        **{how: lambda x, share, how=how: Sometimes(share, how)(x) for how in ("method", "function", "submodule")},
    }[form]
    visible = torch.rand(64, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    visible[5] = False
    patches = gather(torch.rand(64, 4, 16, 24) + 1, PatchGrid(visible))
    torch.manual_seed(0)
    scales = (drop(patches, 0.25) / patches).values.flatten(1).round(decimals=4)
    assert all(len(scales[patches.grid.image == image].unique()) <= 1 for image in range(64))
    torch.testing.assert_close(scales.unique(), torch.tensor([0, 1.3333]))
    kept = torch.stack([drop(patches, 0.25).values.flatten(1)[:, 0] > 0 for _ in range(50)]).float().mean()
    assert abs(kept - 0.75) < 0.03


@pytest.mark.parametrize("dims", [1, 3])
def test_a_pooling_that_says_where_of_signals_and_volumes(dims):
    class Largest(nn.Module):
        def forward(self, x):
            return getattr(F, f"max_pool{dims}d")(x, 3, 2, 1, return_indices=True)[0]

    conv = getattr(nn, f"Conv{dims}d")
    assert_exact(nn.Sequential(conv(2, 4, 3, 1, 1), Largest()), (3, 2, *[8] * dims), (2,) * dims)


def test_volumes():
    net = nn.Sequential(
        nn.Conv3d(2, 4, 3, 2, 1),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.MaxPool3d(3, 2, 1),
        nn.Conv3d(4, 4, (3, 1, 3), 1, (1, 0, 1)),
    )
    assert_exact(net, (3, 2, 8, 16, 16), (2, 2, 4))


def test_signals():
    net = nn.Sequential(nn.Conv1d(2, 4, 7, 2, 3), nn.InstanceNorm1d(4), nn.GELU(), nn.AvgPool1d(2))
    assert_exact(net, (3, 2, 64), (8,))


@pytest.mark.parametrize("norm", [torch.batch_norm, F.batch_norm], ids=["torch", "functional"])
def test_batch_norm_of_one_position(norm):
    """Its variance is 0: what is left is the shift, and the statistics move."""
    from convspark import PatchGrid, gather

    visible = torch.zeros(1, 2, 2, dtype=torch.bool)
    visible[0, 1, 1] = True
    weight, bias, mean, variance = torch.rand(4), torch.rand(4), torch.zeros(4), torch.ones(4)
    images = torch.randn(1, 4, 2, 2)
    order = (weight, bias, mean, variance) if norm is torch.batch_norm else (mean, variance, weight, bias)
    rest = (True, 0.25, 1e-5, False) if norm is torch.batch_norm else (True, 0.25, 1e-5)
    out = norm(gather(images, PatchGrid(visible)), *order, *rest)
    torch.testing.assert_close(out.values.flatten(), bias)
    torch.testing.assert_close(mean, images[0, :, 1, 1] / 4)
    torch.testing.assert_close(variance, torch.full((4,), 0.75))


WIDE = {"dtype": torch.float32}


def test_instance_norm_of_one_patch_in_evaluation():
    norm = nn.InstanceNorm2d(4, track_running_stats=True).eval()
    norm.running_var.uniform_(0.5, 2)
    images = torch.randn(1, 4, 4, 4, requires_grad=True)
    slope = torch.randn(1, 4, 4, 4)
    out = scatter(norm(gather(images, PatchGrid(torch.ones(1, 1, 1, dtype=torch.bool)))))
    (ours,) = torch.autograd.grad((out * slope).sum(), images)
    torch.testing.assert_close(ours, slope / (norm.running_var.view(-1, 1, 1) + norm.eps).sqrt())


@pytest.mark.parametrize(
    "function",
    [
        *(
            lambda x, f=f, dim=dim: f(x, dim, True, **WIDE)
            for f in (torch.sum, torch.mean)
            for dim in (1, (2, 3), (1, 2, 3))
        ),
        *(
            lambda x, f=f, at=at: f(f(x, at, True, **WIDE), 5 - at, True)
            for f in (torch.sum, torch.mean)
            for at in (2, 3)
        ),
        *(lambda x, dim=dim: x.norm(dim=dim, keepdim=True, **WIDE) for dim in (1, (2, 3))),
        *(lambda x, dim=dim: torch.linalg.vector_norm(x, dim=dim, keepdim=True, **WIDE) for dim in (1, (2, 3))),
        lambda x: x.softmax(1, **WIDE),
        lambda x: x.flatten(2).softmax(2, **WIDE).view(x.shape),
        lambda x: (x / 300).prod(1, keepdim=True, **WIDE),
        lambda x: x.cumsum(1, **WIDE),
    ],
)
def test_reductions_in_another_type(function):
    """Of values whose sums overflow in float16."""
    images = (600 + 300 * torch.rand(2, 130, 8, 8)).half()
    x = gather(images, PatchGrid(torch.ones(2, 2, 2, dtype=torch.bool)))
    ours, dense = function(x), function(images)
    assert ours.dtype == dense.dtype == torch.float32
    torch.testing.assert_close(scatter(x.float() * 0 + ours), images.float() * 0 + dense, rtol=1e-4, atol=1e-6)
