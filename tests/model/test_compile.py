"""Through torch.compile, a step is one graph for all masks, and computes what it computes without."""

import copy
import re
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.convnext import ConvNeXtBlock
from timm.models.regnet import Bottleneck
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from convspark import PatchGrid, SparK, gather, scatter
from convspark.model.jointly import Jointly
from convspark.sparse import as_patches
from convspark.sparse.compiled import all_shown

SIDE = 32


class ResNetLike(nn.Sequential):
    """Padded 3x3 convs, max-pooling, batch norm, sums and ReLUs in place."""

    def __init__(self):
        stem = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        super().__init__(nn.Sequential(*stem), BasicBlock(8, 16, stride=2, downsample=shortcut))


class ConvNeXtLike(nn.Sequential):
    """Depthwise 7x7 convs, layer norm of permuted axes, Linear layers; the second with global response norm."""

    def __init__(self):
        first = ConvNeXtBlock(8, drop_path=0.0)
        second = ConvNeXtBlock(8, 16, use_grn=True, ls_init_value=None)
        super().__init__(nn.Sequential(nn.Conv2d(3, 8, 4, 4), first), nn.Sequential(nn.Conv2d(8, 8, 2, 2), second))


class EfficientNetLike(nn.Sequential):
    """Depthwise convs with a stride, squeeze-and-excite, SiLU in place."""

    def __init__(self):
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(inplace=True))
        excite = timm.models._efficientnet_blocks.SqueezeExcite
        super().__init__(stem, InvertedResidual(8, 16, 5, stride=2, act_layer=nn.SiLU, se_layer=excite))


class RegNetLike(nn.Sequential):
    """Grouped convs, squeeze-and-excite."""

    def __init__(self):
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        super().__init__(stem, Bottleneck(8, 16, stride=2, bottle_ratio=1, group_size=4, se_ratio=0.25))


def model_of(backbone: nn.Module) -> SparK:
    return SparK(backbone, image_size=SIDE, prove=False, decoder_width=16).train()


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    """Dynamo takes a size for one that changes if it differed in models that the same function ran before."""
    torch._dynamo.reset()


def grids(model: SparK, batch_size: int, count: int) -> list[PatchGrid]:
    shape = model.grid_shape((SIDE, SIDE))
    return [PatchGrid.random(batch_size, shape, generator=torch.Generator().manual_seed(i)) for i in range(count)]


def results(model: SparK, forward: Callable, images: Tensor, grid: PatchGrid) -> list[Tensor]:
    """Loss, prediction, features, gradients and running statistics after one step."""
    model.zero_grad()
    out = forward(images, grid)
    out.loss.backward()
    assert out.grid is grid and all(feature.grid is grid for feature in out.features)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [out.loss, out.prediction, *(f.values for f in out.features), *gradients, *model.buffers()]


@pytest.mark.parametrize(
    "build",
    [ResNetLike, *(pytest.param(b, marks=pytest.mark.slow) for b in (ConvNeXtLike, EfficientNetLike, RegNetLike))],
)
def test_one_graph_for_all_masks_that_computes_the_same(build):
    torch.manual_seed(0)
    model = model_of(build()).double()
    twin = copy.deepcopy(model)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model.forward, fullgraph=True, backend=counter)
    images = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    for grid in grids(model, 2, 5):
        expected, ours = results(twin, twin, images, grid), results(model, compiled, images, grid)
        assert len(ours) == len(expected)
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-8, atol=1e-10)
    assert counter.frame_count == 1


def test_a_function_around_the_engine_is_compiled_too():
    net = ResNetLike().eval()
    images = torch.randn(2, 3, SIDE, SIDE)

    def features(images: Tensor, grid: PatchGrid) -> Tensor:
        return net(gather(images, grid.afresh())).values

    compiled = torch.compile(features, fullgraph=True, backend="eager")
    visible = torch.tensor([[[1, 0, 0, 1]] * 4, [[0, 1, 0, 1]] * 4]).bool()
    for grid in (PatchGrid(visible), PatchGrid(~visible)):
        torch.testing.assert_close(compiled(images, grid), features(images, grid))


def test_changes_in_place_reach_whoever_holds_the_tensor():
    def changed(images: Tensor, grid: PatchGrid) -> Tensor:
        patches = gather(images, grid.afresh())
        other = patches.view(patches.shape)
        patches += as_patches(torch.ones_like(patches.values), patches.grid)
        patches.mul_(2)
        return (other + patches).relu_().values

    images, grid = torch.randn(2, 3, 8, 8), PatchGrid.random(2, (2, 2))
    compiled = torch.compile(changed, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, grid), 4 * (gather(images, grid).values + 1).relu())


@pytest.mark.parametrize(
    "function",
    [lambda x: 1 - x, lambda x: 1 / x, lambda x: 2**x, lambda x: 2 // x, lambda x: 2 % x, lambda x: torch.ones(1) - x],
)
def test_numbers_on_the_left(function):
    def changed(images: Tensor, grid: PatchGrid) -> Tensor:
        return function(gather(images, grid.afresh())).values

    compiled = torch.compile(changed, fullgraph=True, backend="eager")
    for _ in range(2):
        images, grid = torch.randn(2, 3, 8, 8), PatchGrid.random(2, (2, 2))
        torch.testing.assert_close(compiled(images, grid), changed(images, grid))


def by_image(rows: Tensor) -> Tensor:
    return rows.flatten(1)[:, :4, None, None]


def changed(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :2] = 0
    return y


WEIGHT = torch.randn(4, 4, dtype=torch.float64)

# What returns several tensors, is written in Python, or is read off a tensor as a property.
ONE_AS_ANOTHER = {
    "chunk": lambda x: torch.stack(x.chunk(2, 1), 1).amax(1),
    "chunk, by name": lambda x: torch.cat(torch.chunk(x, chunks=2, dim=1)[::-1], 1),
    "unsafe_chunk": lambda x: torch.cat(x.unsafe_chunk(2, 1), 1),
    "split": lambda x: torch.cat(x.split([1, 3], dim=1), 1),
    "torch.split": lambda x: torch.stack(torch.split(x, 2, 1), 1)[:, 0],
    "split_with_sizes": lambda x: torch.cat(x.split_with_sizes([1, 3], 1), 1),
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "torch.unbind": lambda x: torch.unbind(x, 1)[2].unsqueeze(1),
    "tensor_split": lambda x: torch.cat(x.tensor_split(2, 1), 1),
    "unpacked": lambda x: (lambda a, b: a * b.sigmoid())(*x.chunk(2, 1)),
    "sum of parts": lambda x: sum(x.split(2, 1)),
    "unflatten": lambda x: x.unflatten(1, (2, 2))[:, 0],
    "torch.unflatten": lambda x: torch.unflatten(x, 1, (2, -1)).mean(2),
    "cat of a list": lambda x: torch.cat([x, x.relu(), x.new_zeros(x.shape)], 1),
    "var_mean": lambda x: torch.var_mean(x, dim=1, keepdim=True)[0],
    "var_mean of images": lambda x: x * torch.var_mean(x, (2, 3), keepdim=True)[0],
    "std_mean of images": lambda x: x * torch.std_mean(x, (2, 3), keepdim=True)[1],
    "std": lambda x: x.std(1, keepdim=True),
    "std of images": lambda x: x * by_image(x.std((2, 3))),
    "var of images": lambda x: x * x.var((2, 3), keepdim=True),
    "max": lambda x: x.max(1, keepdim=True)[0] - x.min(dim=1, keepdim=True).values,
    "max of images": lambda x: x * by_image(torch.max(x.flatten(2), dim=-1)[0]),
    "larger of two": lambda x: torch.max(x, -x),
    "topk": lambda x: x.topk(2, dim=1).values,
    "kthvalue": lambda x: x.kthvalue(2, 1, True)[0],
    "sort": lambda x: torch.sort(x, dim=1, descending=True)[0] * x.argsort(1),
    "median": lambda x: x.median(1, keepdim=True)[0],
    "cummax": lambda x: x.cummax(1).values,
    "norm": lambda x: x * x.norm(dim=(2, 3), keepdim=True) / torch.norm(x, dim=1, keepdim=True),
    "softmax of images": lambda x: x * x.flatten(2).softmax(-1).view(x.shape),
    "log_softmax of images": lambda x: F.log_softmax(x.flatten(2), dim=2).view(x.shape),
    "logsumexp of images": lambda x: x * x.logsumexp((2, 3), keepdim=True),
    "einsum": lambda x: torch.einsum("bchw,bc,dc->bdhw", x, x.mean((2, 3)), WEIGHT),
    "matrices": lambda x: (WEIGHT @ x.flatten(2)).mT.mT.reshape(x.shape),
    "expand_as": lambda x: x.mean(1, keepdim=True).expand_as(x) * x.mean((2, 3), keepdim=True).expand_as(x),
    "broadcast_to": lambda x: torch.broadcast_to(x.mean(1, keepdim=True), x.shape),
    "rows of twice the number": lambda x: x.reshape(2 * len(x), 2, *x.shape[2:]).relu().view(x.shape),
    "bins": lambda x: x * F.adaptive_avg_pool2d(x, 2).mean((2, 3), keepdim=True),
    "pooling over the shape": lambda x: x * F.avg_pool2d(x, x.shape[2:]),
    "power": lambda x: x**2,
    "padded channels": lambda x: F.pad(x, (0, 0, 0, 0, 2, 1))[:, 1:5],
    "padded values of images": lambda x: x * by_image(F.pad(x.mean((2, 3))[:, None], (1, 0), "circular")[:, 0, :4]),
    "in place": lambda x: (x * 1).add_(x).relu_().clamp_(0, 1),
    "a border cut off": lambda x: x + F.interpolate(F.avg_pool2d(x[:, :, 1:, 1:], 1, 2), scale_factor=2),
    "the largest, and where": lambda x: x + F.interpolate(F.max_pool2d(x, 2, return_indices=True)[0], scale_factor=2),
    "in a tuple": lambda x: torch.cat((x, x * 2), 1).sum(1, keepdim=True) * x,
    "in a tuple by keyword": lambda x: torch.stack(tensors=(x, x * 2), dim=1).sum(1),
    "hardswish": lambda x: F.hardswish(x) + nn.Hardswish(inplace=True)(x * 2),
    "hardsigmoid in a tuple": lambda x: torch.stack((F.hardsigmoid(x), x * 2), 1).sum(1),
    "sigmoid": lambda x: F.sigmoid(x),
    "tanh": lambda x: F.tanh(x),
}


def eagerly_and_compiled(*functions: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What they return, and what they return compiled as one graph.

    For each function: the patches plus each image's mean of its result, which must be patches, or else it is refused.
    """

    def beside_means(images: Tensor, grid: PatchGrid) -> list[Tensor]:
        x = gather(images, grid.afresh())
        with all_shown():  # as the stages of a backbone are called
            means = [function(x).mean((2, 3)).mean(1)[:, None, None, None] for function in functions]
            return [scatter(x + mean) for mean in means]  # type: ignore[arg-type]

    images, grid = torch.randn(2, 4, 8, 8, dtype=torch.float64), PatchGrid(SEEN)
    compiled = torch.compile(beside_means, fullgraph=True, backend="eager")
    return beside_means(images, grid), compiled(images, grid)


def test_a_part_of_a_batch_draws_as_the_whole_batch_would():
    """A mode is in force then, which Dynamo has not left where it reads an attribute or calls a method in Python."""

    def drawn(images: Tensor, grid: PatchGrid) -> Tensor:
        x = gather(images, grid.afresh())
        x = x + x.new_zeros(x.shape) + x.norm(dim=1, keepdim=True)
        return F.dropout(x, 0.5).values

    images, grid = torch.randn(2, 4, 8, 8), PatchGrid(SEEN)
    compiled, results = torch.compile(drawn, fullgraph=True, backend="aot_eager"), []  # "eager" runs in the mode again
    for function in (drawn, compiled):
        torch.manual_seed(0)
        with Jointly(2, 2, 4):
            results.append(function(images, grid))
    torch.testing.assert_close(*results)


SEEN = torch.tensor([[[1, 0], [1, 1]], [[0, 1], [1, 1]]]).bool()


@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.slow), 6], ids=["all", "some"])
def test_functions_compute_the_same(share):
    """Traced together: gathering takes most of the time."""
    names = list(ONE_AS_ANOTHER)[::share]
    functions = [ONE_AS_ANOTHER[name] for name in names]
    for name, one, other in zip(names, *eagerly_and_compiled(*functions), strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat((x, x), 1),
        lambda x: torch.stack(tensors=(x, x), dim=1).sum(1),
        lambda x: abs(x),
        lambda x: pow(x, 2),
        changed,
        lambda x: F.leaky_relu_(x * 1),
    ],
    ids=["cat", "stack", "abs", "pow", "part", "leaky_relu_"],
)
def test_what_dynamo_takes_out_of_the_patches_is_refused_where_it_meets_them(function):
    """Or is right, or cannot be traced: versions of Dynamo differ in what they take."""
    images, grid = torch.randn(2, 4, 8, 8), PatchGrid(SEEN)

    def alone(x, grid):
        return scatter(function(gather(x, grid.afresh())))

    def beside_means(x, grid):
        x = gather(x, grid.afresh())
        return scatter(x + function(x).mean((2, 3)).mean(1)[:, None, None, None])  # type: ignore[arg-type]

    for run, refused in ((beside_means, "more than one row"), (alone, "under torch")):
        try:
            compiled = torch.compile(run, fullgraph=True, backend="eager")(images, grid)
        except Exception as error:
            if not re.search(f"{refused}|does not know how to trace", str(error)):
                raise
        else:
            torch.testing.assert_close(compiled, run(images, grid))


class Absolute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return abs(x)


@pytest.mark.slow
def test_a_stage_that_dynamo_took_out_of_the_patches_is_refused_in_words():
    model = model_of(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 2, 2), Absolute()))
    images, grid = torch.randn(2, 3, SIDE, SIDE), grids(model, 2, 1)[0]
    try:
        loss = torch.compile(model.forward, fullgraph=True, backend="eager")(images, grid).loss
    except Exception as error:
        if "under torch.compile also" not in str(error):
            raise
    else:  # a Dynamo that shows it
        torch.testing.assert_close(loss, model(images, grid).loss)


class Sometimes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.picked(len(x)) * 2

    def picked(self, rows: int) -> Tensor:
        return (torch.rand(rows, 1, 1, 1) < 0.5).float()


class Graded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(x.shape[0]).view(-1, 1, 1, 1)


def test_a_factor_for_each_row_that_is_not_drawn_is_refused():
    compiled = torch.compile(lambda x, grid: Graded()(gather(x, grid.afresh())).values, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="more than one row"):
        compiled(torch.ones(4, 3, 8, 8), PatchGrid.random(4, (2, 2), 0.5))


@pytest.mark.parametrize("drop", [torchvision.ops.StochasticDepth(0.5, "row"), Sometimes()])
def test_stochastic_depth_by_rows_drops_whole_images(drop):

    def dropped(images: Tensor, grid: PatchGrid) -> Tensor:
        return drop(gather(images, grid.afresh())).values

    compiled = torch.compile(dropped, fullgraph=True, backend="eager")
    kept = torch.zeros(32)
    for _ in range(5):
        grid = PatchGrid.random(32, (2, 2), 0.5)
        rows = compiled(torch.ones(32, 3, 8, 8), grid).reshape(32, 2, -1)  # two patches an image
        assert (rows == rows[:, :1, :1]).all()
        kept += rows[:, 0, 0]
    assert set(kept.tolist()) <= {0.0, 2.0, 4.0, 6.0, 8.0, 10.0} and 0 < kept.mean() < 10


def test_what_is_refused_says_why():
    def rolled(images: Tensor, grid: PatchGrid) -> Tensor:
        return gather(images, grid.afresh()).roll(1, 2).values

    compiled = torch.compile(rolled, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"roll .*cannot run on visible patches"):
        compiled(torch.randn(2, 3, 8, 8), PatchGrid.random(2, (2, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "name", ["resnet50", "convnext_tiny", "efficientnet_b0", "regnety_016", "mobilenetv3_small_100", "shufflenet"]
)
def test_networks_of_timm_are_one_graph(name, bf16):
    network = torchvision.models.shufflenet_v2_x0_5() if name == "shufflenet" else timm.create_model(name)
    model = SparK(network, image_size=224, prove=False, decoder="lean").train()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model.forward, fullgraph=True, backend=counter)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = compiled(torch.randn(2, 3, 224, 224), PatchGrid.random(2, (7, 7))).loss
        loss.backward()
        assert loss.isfinite()
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_inductor_computes_the_same():
    torch.manual_seed(0)
    model = model_of(ConvNeXtLike())
    twin = copy.deepcopy(model)
    images = torch.randn(2, 3, SIDE, SIDE)
    compiled = torch.compile(model.forward, fullgraph=True)
    for grid in grids(model, 2, 3):
        for one, other in zip(results(model, compiled, images, grid), results(twin, twin, images, grid), strict=True):
            torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-3, atol=1e-5)
