"""What networks write: spellings of arguments, changes in place, pads, precision; against the dense run, or refused."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from convspark import PatchGrid, gather, scatter
from convspark.errors import NotExactError, UsageError
from convspark.sparse import PerImage

EVERYTHING = PatchGrid(torch.ones(2, 2, 3, dtype=torch.bool))


def images(channels=8, patch=4):
    return torch.randn(
        2, channels, 2 * patch, 3 * patch, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


def as_dense(out):
    """Patches put back, values of images and plain tensors as they are."""
    if isinstance(out, (tuple, list)):
        return [as_dense(part) for part in out]
    if isinstance(out, PerImage):
        return out.values
    return scatter(out) if hasattr(out, "grid") else out


ROWS = {
    "mean by keyword": lambda x: torch.mean(input=x, dim=1, keepdim=True),
    "linear by keyword": lambda x: F.linear(input=x.movedim(1, -1), weight=torch.ones(3, 8).double()).movedim(-1, 1),
    "linear with one row": lambda x: F.linear(x.movedim(1, -1), torch.ones(8).double()).unsqueeze(1),
    "cat by keyword": lambda x: torch.cat(tensors=[x, 2 * x], dim=1),
    "cat along an axis": lambda x: torch.cat([x, 2 * x], axis=1),
    "std along an axis": lambda x: x.std(axis=1, keepdims=True),
    "mean along an axis": lambda x: x.mean(axis=1, keepdims=True),
    "amax along an axis": lambda x: x.amax(axis=1, keepdims=True),
    "max beside mean": lambda x: torch.max(x, 1, keepdim=True)[0] + torch.mean(x, 1, keepdim=True),
    "max by keywords": lambda x: torch.max(input=x, dim=1, keepdim=True).values,
    "stack along an axis": lambda x: torch.stack([x, 2 * x], axis=1).flatten(1, 2),
    "stack along the last but two": lambda x: torch.stack([x, 2 * x], -3).sum(2),
    "roll of channels": lambda x: x.roll(1, 1),
    "roll by keyword": lambda x: torch.roll(x, shifts=1, dims=1),
    "flip of channels": lambda x: x.flip(1),
    "flip by keyword": lambda x: torch.flip(x, dims=[1]),
    "flip of two axes": lambda x: x.unsqueeze(1).flip(1, 2).squeeze(1),
    "norm along channels": lambda x: x.norm(dim=1, keepdim=True),
    "linalg norm": lambda x: torch.linalg.norm(x, dim=1, keepdim=True),
    "softmax by keyword": lambda x: F.softmax(input=x, dim=1),
    "einsum over channels": lambda x: torch.einsum("bchw,dc->bdhw", x, torch.ones(3, 8).double() / 8),
    "mm over channels": lambda x: (x.movedim(1, -1) @ torch.ones(8, 3).double()).movedim(-1, 1),
    "repeat of channels": lambda x: x.repeat(1, 2, 1, 1),
    "tile of channels": lambda x: torch.tile(x, (2, 1, 1)),
    "slice assignment": lambda x: _assigned(x, slice(0, 2), lambda part: part * 3),
    "assigned number": lambda x: _assigned(x, slice(2, 5), lambda part: 1.0),
    "changed slice": lambda x: _changed(x),
    "channels by numbers": lambda x: x[:, [2, 1, 0]],
    "view_as": lambda x: x.flatten(1, 2).view_as(x),
    "reshape_as": lambda x: x.flatten(2).reshape_as(x),
    "cumsum": lambda x: x.cumsum(1),
    "topk": lambda x: x.topk(2, dim=1).values,
    "sort": lambda x: torch.sort(x, dim=1, descending=True)[0],
    "argmax": lambda x: x.argmax(1, keepdim=True).double(),
    "prod": lambda x: x.prod(1, keepdim=True),
    "logsumexp": lambda x: torch.logsumexp(x, 1, True),
    "median": lambda x: x.median(dim=1, keepdim=True).values,
    "expit": lambda x: torch.special.expit(x),
    "cosine similarity": lambda x: F.cosine_similarity(x, x.flip(1), dim=1)[:, None],
    "glu": lambda x: F.glu(x, dim=1),
    "chunk along an axis": lambda x: torch.chunk(x, 2, axis=1)[1],
    "split by keyword": lambda x: x.split(split_size=2, dim=1)[3],
    "tensor_split": lambda x: torch.tensor_split(x, 3, dim=1)[0],
    "narrow": lambda x: x.narrow(dim=1, start=2, length=3),
    "index_select": lambda x: x.index_select(dim=1, index=torch.tensor([3, 0])),
    "permute by keyword": lambda x: x.permute(dims=(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "movedim": lambda x: torch.movedim(x, source=1, destination=-1).movedim(-1, 1),
    "adaptive pool to its own size": lambda x: F.adaptive_avg_pool2d(x, x.shape[2:]),
    "space to depth": lambda x: _space_to_depth(x),
    "pad of channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2), value=3.0),
    "pad by nothing": lambda x: F.pad(x, (0, 0, 0, 0)).mul_(2) + x,
    "einsum with an ellipsis": lambda x: torch.einsum("bc...,dc->bd...", x, torch.ones(3, 8).double() / 8),
    "einsum without a result": lambda x: torch.einsum("bchw,dc", x, torch.ones(3, 8).double() / 8),
    "einsum of two maps": lambda x: torch.einsum("bchw,bchw->bhw", x, x + 1)[:, None],
    "kernel of one position on groups of flat positions": lambda x: F.conv2d(
        x.reshape(len(x), 2, 4, -1), torch.ones(3, 2, 1, 1).double()
    ).reshape(len(x), 12, *x.shape[2:]),
    "kernel along groups of channels": lambda x: F.conv2d(
        x.reshape(len(x), 2, 4, -1), torch.ones(3, 2, 2, 1).double(), stride=(2, 1), padding=(1, 0)
    ).reshape(len(x), 9, *x.shape[2:]),
    "kernel along the channels of each position": lambda x: (
        F.conv1d(x.permute(0, 2, 3, 1).reshape(-1, 1, 8), torch.ones(1, 1, 3).double(), padding=1)
        .reshape(len(x), *x.shape[2:], 8)
        .permute(0, 3, 1, 2)
    ),
    "weights from the left": lambda x: (torch.ones(3, 8).double() @ x.flatten(2)).view(len(x), 3, *x.shape[2:]),
    "crop of nothing": lambda x: (x + 1)[..., : x.shape[2], : x.shape[3]],
    "narrow of everything": lambda x: x.narrow(2, 0, x.shape[2]).narrow(3, 0, x.size(3)),
    "channels by a mask": lambda x: x[:, torch.arange(8) % 3 == 0],
    "matrices transposed": lambda x: x.movedim(1, -1).mT.mT.movedim(-1, 1),
    "unsqueeze in place": lambda x: torch.cat([(x * 2).unsqueeze_(1), x.unsqueeze(1)], 1).sum(1),
    "maxout of a list": lambda x: torch.stack([x, 2 * x, -x], 0).max(0)[0],
    "weights of heads": lambda x: (torch.ones(2, 3, 4).double() @ x.reshape(len(x), 2, 4, -1)).reshape(
        len(x), 6, *x.shape[2:]
    ),
    "queries of all images": lambda x: (
        torch.ones(1, 3, 8).double().expand(len(x), -1, -1) @ x.flatten(2) + x.new_ones(1).expand(len(x), 3, 1)
    ).reshape(len(x), 3, *x.shape[2:]),
    "a plain vector expanded": lambda x: x * torch.arange(8.0).double()[None, :, None, None].expand(x.shape),
    "a plain number expanded beside channels": lambda x: torch.where(
        x > 0, x[:, :1], torch.ones(()).double().expand(len(x), 8, *x.shape[2:])
    ),
    "a plain vector expanded, stacked": lambda x: torch.stack(
        [x, torch.arange(8.0).double()[:, None, None].expand_as(x), torch.ones(8, 1, 1).double().expand(x.shape)], 1
    ).amax(1),
    "distances of channels": lambda x: F.pairwise_distance(x.movedim(1, -1), x.movedim(1, -1) ** 2, keepdim=True).view(
        len(x), 1, *x.shape[2:]
    ),
    "maxout of channels": lambda x: x.view(len(x), 4, 2, *x.shape[2:]).max(2).values,
    "adaptive pool to the size of another map": lambda x: F.adaptive_avg_pool2d(x, F.max_pool2d(x, 2).shape[2:]),
}

POOLED = {
    "mean over positions": lambda x: x.mean(axis=(2, 3)),
    "amax over positions": lambda x: x.amax(axis=(2, 3)),
    "std over positions": lambda x: torch.std(input=x, dim=(2, 3)),
    "any": lambda x: x.isnan().any(),
    "max of all": lambda x: x.max(),
    "largest of flat positions": lambda x: x.flatten(2).amax(-1),
    "flat mean": lambda x: x.flatten(2).mean(-1),
    "mean after mean": lambda x: x.mean(3).mean(2),
    "mean of the last, twice": lambda x: x.mean(-1).mean(-1),
    "mean after mean, axes kept": lambda x: x.mean(2, keepdim=True).mean(3, keepdim=True),
    "amax after amax": lambda x: x.amax(3).amax(2),
    "pooling of flat positions": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 1),
    "convolution of flat positions": lambda x: F.conv1d(x.flatten(2), torch.ones(4, 8, 1).double()).mean(2),
    "group norm": lambda x: F.group_norm(input=x, num_groups=2),
    "instance norm": lambda x: F.instance_norm(x, eps=0.1),
    "largest of flat positions and where": lambda x: x.flatten(2).max(-1)[0],
    "largest of rows, then of them": lambda x: x.max(3, keepdim=True)[0].max(2, keepdim=True).values,
    "logsumexp": lambda x: x.logsumexp((2, 3)),
    "pooled by the log of sums": lambda x: _log_sum(x.flatten(2)),
    "log_softmax of flat positions": lambda x: F.log_softmax(x.flatten(2), -1).unflatten(2, x.shape[2:]),
    "mean by the number of elements": lambda x: x.sum() / x.numel(),
    "average pool of the size": lambda x: F.avg_pool2d(x, x.size()[2:]),
    "largest of the size": lambda x: F.max_pool2d(x, kernel_size=x.shape[-2:]),
    "pooled and repeated": lambda x: torch.cat([x, x.mean((2, 3), keepdim=True).repeat(1, 1, x.size(2), x.size(3))], 1),
    "queries of all images": lambda x: (
        (torch.ones(1, 3, 8).double().expand(len(x), -1, -1) @ x.flatten(2)).softmax(-1) @ x.flatten(2).mT
    ),
    "a plain vector expanded beside an image's": lambda x: (
        x.mean((2, 3)) * torch.arange(8.0).double().expand(len(x), -1)
    ),
    "an image's value repeated for flat positions": lambda x: (
        x.flatten(2) * x.mean((2, 3)).unsqueeze(2).expand(-1, -1, x.flatten(2).shape[2])
    ).mean(2),
    "distances from words": lambda x: (
        x.flatten(2)[:, None].expand(-1, 3, -1, -1)
        - torch.ones(3, 8).double().expand(x.flatten(2).shape[2], -1, -1).permute(1, 2, 0)
    ).mean(-1),
    "einsum by an image's values": lambda x: torch.einsum("bchw,bc->bchw", x, x.mean((2, 3))),
    "einsum by an image's values, expanded": lambda x: torch.einsum(
        "bchw,bck->bkhw", x, x.mean((2, 3))[:, :, None].expand(-1, -1, 3)
    ),
    "gates of branches, stacked": lambda x: (
        torch.stack([x.mean((2, 3)), x.amax((2, 3))], 0).view(2, len(x), -1, 1, 1).softmax(0) * torch.stack([x, -x], 0)
    ).sum(0),
    "groups beside images": lambda x: _grouped(x).mean((2, 3)).view(len(x), -1),
    "gates of groups beside images": lambda x: (_grouped(x) * F.adaptive_avg_pool2d(_grouped(x), 1)).reshape(x.shape),
    "group norm of groups beside images": lambda x: F.group_norm(_grouped(x), 2).reshape(x.shape),
    "deviation of channels beside images": lambda x: x.reshape(len(x) * 8, -1).std(1).view(len(x), 8),
    "norm of channels beside images": lambda x: x.reshape(len(x) * 8, -1).norm(dim=1).view(len(x), 8),
    "softmax of channels beside images": lambda x: F.softmax(x.reshape(len(x) * 8, -1), 1).view(x.shape),
    "variance of complex values": lambda x: (x * _turned(x)).var((2, 3)),
    "deviation of complex values": lambda x: (x * _turned(x)).std((2, 3), correction=0),
    "norm of complex values": lambda x: (x * _turned(x)).norm(dim=(2, 3)),
    "largest of complex values": lambda x: torch.linalg.vector_norm(x * _turned(x), math.inf, (2, 3)),
    "mean of complex values": lambda x: (x * _turned(x)).mean((2, 3)).abs(),
    "how many, in 8 bits": lambda x: (x > 0).sum((2, 3), dtype=torch.int8),
    "any of flat positions": lambda x: x * (x > 1.5).flatten(2).any(2)[..., None, None],
}


def _turned(x):
    """Complex numbers of absolute value 1."""
    return torch.exp(1j * x)


def _grouped(x):
    return x.reshape(2 * len(x), -1, *x.shape[2:])


def _log_sum(flat):
    """As CBAM pools."""
    largest, _ = torch.max(flat, dim=2, keepdim=True)
    return largest + (flat - largest).exp().sum(dim=2, keepdim=True).log()


def _assigned(x, part, value):
    y = x.clone()
    y[:, part] = value(y[:, part])
    return y


def _changed(x):
    y = x.clone()
    y[:, :2] *= 2
    return y


def _space_to_depth(x):
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, w // 2)


def gradient(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(as_dense(function(x)).double().square().sum(), x)[0]


@pytest.mark.parametrize("name", ROWS)
def test_each_position_alone(name):
    """With all visible: the dense run. With some masked: the same at visible positions; gradients too."""
    function, x = ROWS[name], images()
    expected = function(x)
    torch.testing.assert_close(scatter(function(gather(x, EVERYTHING))), expected)
    visible = torch.tensor([[[1, 0, 0], [1, 1, 0]], [[0, 0, 0], [0, 1, 0]]]).bool()
    grid = PatchGrid(visible)
    shown = gather(expected, grid)
    torch.testing.assert_close(function(gather(x, grid)).values, shown.values)
    if name != "argmax":
        ours = gradient(lambda images: function(gather(images, grid)), x)
        theirs = gradient(lambda images: gather(function(images), grid), x)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", POOLED)
def test_over_positions(name):
    """With all visible: the dense run. With a single patch visible: the dense run on an image that is that patch."""
    function, x = POOLED[name], images()
    torch.testing.assert_close(as_dense(function(gather(x, EVERYTHING))), function(x))
    alone = x[:1, :, :4, :4]
    visible = torch.zeros(1, 2, 3, dtype=torch.bool)
    visible[0, 0, 0] = True
    pooled = as_dense(function(gather(x[:1], PatchGrid(visible))))
    expected = function(alone)
    torch.testing.assert_close(pooled[..., :4, :4] if pooled.dim() == 4 else pooled, expected)
    if expected.is_floating_point():
        ours = gradient(lambda x: function(gather(x, PatchGrid(visible))), x[:1])
        torch.testing.assert_close(ours[..., :4, :4], gradient(function, alone))


def bins_of(x, visible, size, pool):
    """(B, C, *size) from a map, bin by bin: of the values at visible positions, 0 where there is none."""
    shown = visible.repeat_interleave(x.shape[2] // visible.shape[1], 1)
    shown = shown.repeat_interleave(x.shape[3] // visible.shape[2], 2)
    rows = []
    for image, seen in zip(x, shown, strict=True):
        for i, j in itertools.product(range(size[0]), range(size[1])):
            part = tuple(
                slice(n * side // k, -(-(n + 1) * side // k))
                for n, side, k in zip((i, j), seen.shape, size, strict=True)
            )
            values = image[:, *part][:, seen[part]]
            rows.append(pool(values) if values.shape[1] else values.sum(1))
    return torch.stack(rows).view(len(x), *size, -1).movedim(-1, 1)


@pytest.mark.parametrize("size", [2, 3, 6, (5, 6)])
@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize(
    ("function", "pool"),
    [(F.adaptive_avg_pool2d, lambda values: values.mean(1)), (F.adaptive_max_pool2d, lambda values: values.amax(1))],
)
def test_pooling_to_bins_is_of_their_visible_positions(function, pool, patch, size):
    x = images(patch=patch)
    torch.testing.assert_close(function(gather(x, EVERYTHING), size).values, function(x, size))
    visible = torch.tensor([[[1, 0, 0], [1, 1, 0]], [[0, 0, 0], [0, 1, 0]]]).bool()
    grid, sizes = PatchGrid(visible), (size, size) if isinstance(size, int) else size
    torch.testing.assert_close(function(gather(x, grid), size).values, bins_of(x, visible, sizes, pool))
    ours = gradient(lambda images: function(gather(images, grid), size), x)
    torch.testing.assert_close(ours, gradient(lambda images: bins_of(images, visible, sizes, pool), x))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_bins_go_back_to_the_size_of_the_map(mode):
    """As pyramid pooling does (PSPNet)."""
    head = nn.Sequential(nn.Conv2d(8, 2, 3, padding=1), nn.ReLU()).double()
    visible = torch.tensor([[[1, 0, 0], [1, 1, 0]], [[0, 0, 0], [0, 1, 0]]]).bool()
    x = images(patch=2)
    bins = [bins_of(x, visible, (k, k), lambda values: values.mean(1)) for k in (2, 3)]
    expected = torch.cat([x, *(F.interpolate(head(b), x.shape[2:], mode=mode) for b in bins)], 1)
    patches = gather(x, PatchGrid(visible))
    pooled = [F.adaptive_avg_pool2d(patches, k) for k in (2, 3)]
    joined = torch.cat([patches, *(F.interpolate(head(b), size=patches.shape[2:], mode=mode) for b in pooled)], 1)
    torch.testing.assert_close(joined.values, gather(expected, PatchGrid(visible)).values)


@pytest.mark.parametrize("order", [(0, 1, 3, 5, 2, 4), (0, 3, 5, 1, 2, 4)])
def test_space_to_depth_of_patches_as_large_as_a_block(order):
    def space_to_depth(x):
        b, c, h, w = x.shape
        return x.view(b, c, h // 2, 2, w // 2, 2).permute(order).reshape(b, c * 4, h // 2, w // 2)

    x = images(patch=2)
    torch.testing.assert_close(scatter(space_to_depth(gather(x, EVERYTHING))), space_to_depth(x))


def test_windows_as_large_as_a_patch_and_back():
    def there_and_back(x):
        b, c, h, w = x.shape
        windows = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 2, 2, c) * 2
        return windows.view(b, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)

    x = images(patch=2)
    torch.testing.assert_close(scatter(there_and_back(gather(x, EVERYTHING))), 2 * x)


def test_bytes_read_as_another_type():
    x = gather(images(), EVERYTHING)
    assert torch.equal(scatter((x.view(torch.int64) < 0).double()), (images() < 0).double())
    with pytest.raises(NotExactError, match="another size"):
        x.view(torch.int32)


PADDED = {
    "relu_ of what was padded": lambda x, conv: _then(F.pad(x, (1, 1, 1, 1)), conv, x.relu_()),
    "ones, then zeros": lambda x, conv: conv(F.pad(F.pad(x, (1, 0, 1, 0), value=1.0), (0, 1, 0, 1))),
    "reflected, then zeros": lambda x, conv: conv(F.pad(F.pad(x, (1, 0, 1, 0), mode="reflect"), (0, 1, 0, 1))),
    "channels and positions together": lambda x, conv: F.conv2d(
        F.pad(x, (1, 1, 1, 1, 1, 0)), torch.ones(2, 9, 3, 3).double()
    ),
    "a map without its first rows and columns": lambda x, conv: F.avg_pool2d(x[:, :, 1:, 1:], 1, 2),
    "a map without its border": lambda x, conv: conv(F.pad(x[..., 1:-1, 2:-1], (3, 3, 2, 2), value=1.0)[..., :-1]),
    "a border cut off what was padded": lambda x, conv: F.avg_pool2d(F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:], 1, 2),
    "a pool that goes on after a circular pad": lambda x, conv: F.avg_pool2d(
        F.pad(x, (1, 0, 1, 0), mode="circular"), 2, 1
    ),
}


def _then(padded, conv, changed):
    return conv(padded) + changed


@pytest.mark.parametrize("name", PADDED)
def test_pads(name):
    conv = nn.Conv2d(8, 8, 3).double()
    x = images()
    expected = PADDED[name](x.clone(), conv)
    torch.testing.assert_close(scatter(PADDED[name](gather(x, EVERYTHING), conv)), expected)
    visible = torch.tensor([[[1, 0, 0], [1, 1, 0]], [[0, 0, 0], [0, 1, 0]]]).bool()
    grid = PatchGrid(visible)
    zero_filled = scatter(gather(x, grid))
    shown = gather(PADDED[name](zero_filled, conv), grid)
    torch.testing.assert_close(PADDED[name](gather(x, grid), conv).values, shown.values)


def test_a_pad_that_crops_before_a_padded_convolution_does_not_see_what_was_cut():
    conv = nn.Conv2d(8, 4, 3, padding=1).double()
    x = images()
    expected = conv(F.pad(x, (-1, 1, -1, 1)))
    torch.testing.assert_close(scatter(conv(F.pad(gather(x, EVERYTHING), (-1, 1, -1, 1)))), expected)


@pytest.mark.parametrize("part", [slice(1, 0), slice(1, 3), slice(-3, None), slice(0, 3), slice(-4, None)])
def test_parts_of_a_map_that_are_no_crop_are_refused(part):
    x = gather(images(), EVERYTHING)
    with pytest.raises(NotExactError, match="takes a part of the patches or positions"):
        x[:, :, 1:, part]


@pytest.mark.parametrize("last", [lambda x: x[:, :, -4:], lambda x: x[..., -9:], lambda x: x[-2:]])
def test_the_last_ones_are_not_those_of_each_patch(last):
    visible = torch.tensor([[[0, 0, 0], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]]]).bool()
    x = gather(images(), PatchGrid(visible))
    with pytest.raises(NotExactError, match="takes a part of the patches or positions"):
        last(x)


@pytest.mark.parametrize(
    ("window", "change"),
    [
        (lambda x: F.pad(x, (1, 1, 1, 1)), lambda x: x[:, :2].mul_(2)),
        (lambda x: F.pad(x[..., 1:, 1:], (2, 1, 2, 1)), lambda x: x[:, :2].mul_(2)),
        (lambda x: F.pad(x, (1, 2, 1, 2))[..., :-1, :-1], lambda x: x[:, :2].mul_(2)),
        (lambda x: x[..., 1:, 1:], lambda x: x.relu_()),  # a view of a dense tensor, which shows the change
    ],
)
def test_a_view_that_was_changed_after_the_pad_is_refused(window, change):
    x = gather(images(), EVERYTHING)
    padded = window(x)
    change(x)
    with pytest.raises(NotExactError, match="changed in place afterwards"):
        F.max_pool2d(padded, 3, 1)


@pytest.mark.parametrize("copied", [lambda x: x.flatten(1), lambda x: x.reshape(len(x), -1), lambda x: x.contiguous()])
@pytest.mark.parametrize("which", ["copy", "source"])
def test_changes_in_place_of_what_is_a_view_only_in_a_dense_network(copied, which):
    x = gather(images(), EVERYTHING)
    y = copied(x)
    changed, other = (y, x) if which == "copy" else (x, y)
    changed.relu_()
    changed + 1
    with pytest.raises(NotExactError, match="out of place"):
        other + 1


@pytest.mark.parametrize("expanded", [lambda x, g: g.expand_as(x), lambda x, g: g.expand(-1, -1, 5, 5)])
@pytest.mark.parametrize("origin", [True, False])
def test_values_of_images_that_are_changed_after_they_were_expanded(expanded, origin):
    x = gather(images(), EVERYTHING)
    pooled = x.mean((2, 3), keepdim=True) if origin else x.mean((2, 3))[:, :, None, None]
    y = expanded(x, pooled)
    pooled.mul_(2)
    with pytest.raises(NotExactError, match="out of place"):
        y + 1


@pytest.mark.parametrize(
    "copied",
    [
        lambda x: x.permute(0, 2, 3, 1).contiguous(),
        lambda x: x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1]),
        lambda x: x.flatten(2).transpose(1, 2).contiguous(),
        lambda x: x.transpose(1, 2).flatten(1),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.flatten(1).view(x.shape).flatten(1),
    ],
)
@pytest.mark.parametrize("which", ["result", "part of the result", "source", "part of the source"])
def test_changes_in_place_of_what_may_be_a_copy_in_a_dense_network(copied, which):
    """Where one was changed, itself or through a view, reading the other is refused; the changed one can be read."""
    x = gather(images(), EVERYTHING)
    early, y = x.transpose(1, 2), copied(x)
    changed, others = (y, [x, early, x[:, :2]]) if "result" in which else (x, [y, y[None]])
    before = changed.values.clone()
    (changed[:] if "part" in which else changed).mul_(2)
    torch.testing.assert_close((changed * 1).values, 2 * before)
    for other in others:
        with pytest.raises(NotExactError, match="out of place"):
            other + 1


@pytest.mark.parametrize("viewed", [lambda x: x.flatten(2), lambda x: x[:, :4], lambda x: x.permute(0, 2, 3, 1)])
def test_changes_in_place_of_what_is_a_view_here_too(viewed):
    x, dense = gather(images(), EVERYTHING), images()
    viewed(x).relu_()
    viewed(dense).relu_()
    torch.testing.assert_close(scatter(x + 1), dense + 1)


def test_a_changed_copy_whose_source_is_gone_is_nothing_to_refuse():
    x = gather(images(), EVERYTHING)
    x = x.flatten(2)
    x.relu_()
    torch.testing.assert_close(x.amax(-1).values, images().flatten(2).relu().amax(-1))


def test_padded_patches_cannot_be_put_back_and_the_error_is_a_users():
    with pytest.raises(UsageError, match="padded"):
        scatter(F.pad(gather(images(), EVERYTHING), (1, 1, 1, 1)))


def test_global_pooling_after_a_pad_is_refused():
    with pytest.raises(NotExactError, match="padded"):
        F.adaptive_avg_pool2d(F.pad(gather(images(), EVERYTHING), (1, 1, 1, 1)), 1)


def test_blocks_of_a_patch_that_cannot_be_told_are_refused():
    x = gather(images(patch=2), EVERYTHING)
    n, c, h, w = x.shape
    with pytest.raises(NotExactError, match="blocks as large as a patch"):
        x.view(n, c, h // 2, 2, w // 2, 2).mean((3, 5))


@pytest.mark.parametrize("count", [3, 6])
def test_a_vector_of_channels_is_one_however_many_patches_there_are(count):
    visible = torch.zeros(1, 2, 3, dtype=torch.bool).flatten()
    visible[:count] = True
    x = gather(images(channels=6)[:1], PatchGrid(visible.view(1, 2, 3)))
    torch.testing.assert_close((x * x.new_ones(6)[:, None, None]).values, x.values)


def test_nothing_visible_takes_all_ways():
    x = gather(images(), PatchGrid(torch.zeros(2, 2, 3, dtype=torch.bool)))
    b, c, h, w = x.shape
    assert x.view(b, c, -1).shape == (0, 8, 16) and x.reshape(b, c, h * w).shape == (0, 8, 16)
    pooled = F.adaptive_avg_pool2d(x, 1)
    assert pooled.view(b, c).shape == (2, 8) and (x * pooled.view(b, c, 1, 1)).shape == x.shape


def test_nothing_visible_shuffled_has_a_gradient():
    x = images().requires_grad_()
    larger = F.pixel_shuffle(gather(x, PatchGrid(torch.zeros(2, 2, 3, dtype=torch.bool))), 2)
    assert larger.shape == (0, 2, 8, 8) and not torch.autograd.grad(scatter(larger).sum(), x)[0].any()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "function", [lambda x: F.group_norm(x, 2), F.instance_norm, lambda x: x.var((2, 3)), lambda x: x.mean((2, 3))]
)
def test_statistics_in_16_bits_are_as_good_as_dense_ones(kind, function):
    x = (images(patch=16) * 30 + 100).to(kind)
    exact = function(x.double())
    dense, ours = (as_dense(function(maps)).double() for maps in (x, gather(x, EVERYTHING)))
    assert ours.isfinite().all()
    assert (ours - exact).abs().mean() <= 1.5 * (dense - exact).abs().mean() + 1e-6


def test_a_group_norm_under_autocast_has_the_type_that_the_dense_one_has():
    x = images().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert F.group_norm(gather(x, EVERYTHING), 2).dtype == F.group_norm(x, 2).dtype


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_convolution_under_autocast_is_in_the_type_that_the_dense_one_is_in(dtype, groups):
    """In float64, which autocast leaves as it is, with all its digits."""
    x, weight = torch.randn(1, 8, 4, 4).to(dtype), torch.randn(8, 8 // groups, 3, 3).to(dtype)
    everything = PatchGrid(torch.ones(1, 2, 2, dtype=torch.bool))
    with torch.autocast("cpu", torch.bfloat16):
        dense, ours = (
            F.conv2d(x, weight, padding=1, groups=groups),
            F.conv2d(gather(x, everything), weight, None, 1, 1, 1, groups),
        )
    torch.testing.assert_close(as_dense(ours), dense)


def test_the_deviation_of_a_single_position_has_a_gradient():
    grid = PatchGrid(torch.tensor([[[True, False]]]))
    x = torch.randn(1, 4, 1, 2, requires_grad=True)
    gather(x, grid).std((2, 3)).values.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_a_grid_first_used_in_inference_mode_can_be_trained_on():
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.GroupNorm(2, 8)).double()
    grid = PatchGrid.random(2, (2, 3), 0.5)
    with torch.inference_mode():
        before = net(gather(images(), grid)).values
    after = net(gather(images(), grid))
    after.values.sum().backward()
    torch.testing.assert_close(before, after.values.detach())


@pytest.mark.parametrize(
    "module",
    [
        nn.Dropout2d(1.0),
        nn.Dropout2d(0.4),
        nn.AlphaDropout(0.4),
        nn.FeatureAlphaDropout(0.4),
        nn.Dropout2d(0.4, inplace=True),
    ],
)
def test_dropout_draws_once_an_image_and_as_the_dense_network(module):
    x = images()
    torch.manual_seed(3)
    expected = module(x.clone())
    torch.manual_seed(3)
    dropped = module(gather(x, EVERYTHING))
    if isinstance(module, nn.AlphaDropout):  # each element draws for itself, in another order
        assert math.isclose(float(dropped.values.mean()), float(expected.mean()), abs_tol=0.2)
    else:
        torch.testing.assert_close(scatter(dropped), expected)


@pytest.mark.parametrize("after", [lambda x: x + 1, lambda x: x.sum(2), lambda x: x.mean(), lambda x: x.relu()])
def test_a_mean_over_some_axes_of_positions_is_no_result(after):
    with pytest.raises(NotExactError, match="some spatial axes and not others"):
        after(gather(images(), EVERYTHING).mean(3))


class Swish(torch.autograd.Function):
    """As memory-efficient implementations write it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s * (1 + x * (1 - s)))


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        x.clamp_(min=0)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x > 0)


@pytest.mark.parametrize("function", [Swish, Reversal, InPlace])
def test_hand_written_gradients(function):
    conv = nn.Conv2d(8, 8, 3, padding=1).double()
    grid = PatchGrid(torch.tensor([[[1, 0, 0], [1, 1, 0]], [[0, 0, 0], [0, 1, 0]]]).bool())
    x = images()
    ours = gradient(lambda x: conv(function.apply(conv(gather(x, grid)))), x)
    mask = scatter(gather(torch.ones_like(x), grid))
    theirs = gradient(lambda x: mask * conv(mask * function.apply(conv(mask * x))), x)
    torch.testing.assert_close(ours, theirs)


def test_gradient_hooks_get_patches():
    seen = []
    grid = PatchGrid.random(2, (2, 3), 0.5)
    x = gather(images().requires_grad_(), grid) * 2
    x.register_hook(lambda grad: seen.append(grad.grid is grid) or 3 * grad)
    x.sum().backward()
    assert seen == [True]


def test_leaving_by_as_subclass_is_refused():
    with pytest.raises(NotExactError, match="as_subclass"):
        gather(images(), EVERYTHING).as_subclass(torch.Tensor)


def test_networks_are_left_as_they_were():
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Dropout2d(0.5))
    before = copy.deepcopy(net.state_dict())
    net(gather(images().float(), EVERYTHING))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


KERNEL = torch.randn(8, 8, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SMOOTH = {
    "average pool": lambda x: F.avg_pool2d(x**2, 3, 1, 1),
    "largest": lambda x: F.max_pool2d(x**2, 3, 2, 1),
    "put back and cut out": lambda x: F.interpolate(x**2, scale_factor=2, mode="bilinear"),
    "convolution of reflected maps": lambda x: F.conv2d(F.pad(x**2, (1, 1, 1, 1), mode="reflect"), KERNEL),
    "mean": lambda x: x * x.mean((2, 3), keepdim=True),
}
NOT_TWICE = {
    "convolution": lambda x: F.conv2d(x, KERNEL, padding=1),
    "strided": lambda x: F.conv2d(x, KERNEL, padding=1, stride=4),
    "norm": lambda x: x.norm(dim=(2, 3)),
}


def second(function, x, own):
    """Gradient of a gradient penalty: of the function, and of the images themselves beside it."""
    x = x.clone().requires_grad_()
    out = as_dense(function(own(x))).pow(3).sum() + x.pow(3).sum()
    (slope,) = torch.autograd.grad(out, x, create_graph=True)
    return torch.autograd.grad(slope.square().sum(), x)[0]


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_of_gradients(name):
    expected = second(SMOOTH[name], images(), lambda x: x)
    torch.testing.assert_close(second(SMOOTH[name], images(), lambda x: gather(x, EVERYTHING)), expected)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", NOT_TWICE)
def test_gradients_of_gradients_that_are_not_known_are_refused(name, checkpointed):
    function = NOT_TWICE[name]
    x = images().requires_grad_()
    patches = gather(x, EVERYTHING)
    out = as_dense(checkpoint(function, patches, use_reentrant=False) if checkpointed else function(patches))
    (slope,) = torch.autograd.grad(out.pow(3).sum() + x.pow(3).sum(), x, create_graph=True)
    torch.testing.assert_close(slope, torch.autograd.grad(function(x).pow(3).sum() + x.pow(3).sum(), x)[0])
    with pytest.raises(NotExactError, match="gradient of a gradient"):
        torch.autograd.grad(slope.square().sum(), x)
