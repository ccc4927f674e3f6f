"""The decoder and the densify step: shapes, cost, initialisation, and what they compute."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convspark import PatchGrid, gather
from convspark.errors import UsageError
from convspark.model.decoder import Decoder
from convspark.model.densify import Densify, choose_norm
from convspark.model.layers import BatchNorm


def test_cost_is_the_published_one():
    """12.2 GMAC an image at 224 px and W = 768, the projections of a ResNet-50's stages included."""
    with torch.device("meta"):
        decoder = Decoder(768, [[(2, 2)]] * 5, out_channels=3)
        stages = zip((2048, 1024, 512, 256), range(4), strict=True)
        projections = [Densify(c, 768 >> i, "batch", deepest=i == 0).project for c, i in stages]
        maps = [torch.empty(1, c, 7 << i, 7 << i) for i, c in enumerate((2048, 1024, 512, 256))]
        with FlopCounterMode(display=False) as counter:
            out = decoder([project(x) for project, x in zip(projections, maps, strict=True)])
    assert out.shape == (1, 3, 224, 224)
    assert counter.get_total_flops() / 2 == pytest.approx(12.2e9, rel=0.01)


@pytest.mark.parametrize("dims", [2, 3])
def test_each_block_doubles_the_side(dims):
    decoder = Decoder(16, [[(2,) * dims]] * 3, out_channels=5)
    maps = [torch.randn(2, 16, *[2] * dims), None, torch.randn(2, 4, *[8] * dims)]
    assert decoder(maps).shape == (2, 5, *[16] * dims)


@pytest.mark.parametrize("factors", [[(1, 2)], [(7, 7)], [(2, 1), (3, 5)], [(1, 2, 2), (2, 1, 3)]])
def test_each_block_multiplies_each_side_by_its_factor(factors):
    decoder = Decoder(16, [factors], out_channels=3)
    sides = (3, 4, 5)[: len(factors[0])]
    expected = [side * math.prod(factor[axis] for factor in factors) for axis, side in enumerate(sides)]
    assert decoder([torch.randn(2, 16, *sides)]).shape == (2, 3, *expected)


def test_a_skip_is_added_to_the_input_of_its_block():
    torch.manual_seed(0)
    decoder = Decoder(8, [[(2, 2)]] * 2, out_channels=3)
    deep, skip = torch.randn(2, 8, 4, 4), torch.randn(2, 4, 8, 8)
    expected = decoder.head(decoder.blocks[1](decoder.blocks[0](deep) + skip))
    assert torch.equal(decoder([deep, skip]), expected)
    assert not torch.equal(decoder([deep, None]), expected)
    with pytest.raises(ValueError, match="deepest"):
        decoder([None, skip])


def test_initialisation_of_the_decoder():
    torch.manual_seed(0)
    decoder = Decoder(256, [[(2, 2)]] * 2, out_channels=3)
    block = decoder.blocks[0]
    for convolution in (block.conv1, block.conv2):
        assert convolution.bias is None
        assert convolution.weight.std().item() == pytest.approx(0.02, rel=0.02)
    # Kaiming: sqrt(2 / fan), 256 channels seen through 4 x 4 weights
    assert block.up.weight.std().item() == pytest.approx((2 / (256 * 16)) ** 0.5, rel=0.02)
    for module in decoder.modules():
        if isinstance(module, BatchNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all()
        elif getattr(module, "bias", None) is not None:
            assert (module.bias == 0).all()


def test_initialisation_of_densify():
    torch.manual_seed(0)
    densify = Densify(4096, 8, "batch", deepest=False)
    assert densify.mask_token.shape == (1, 4096, 1, 1)
    assert densify.mask_token.abs().max() <= 0.02
    # a normal of deviation 0.02 cut at one deviation: 0.5396 of it is left
    assert densify.mask_token.std().item() == pytest.approx(0.5396 * 0.02, rel=0.03)
    torch.manual_seed(1)
    project = Densify(16, 8, "layer", deepest=False).project
    torch.manual_seed(1)
    Densify(16, 16, "layer", deepest=True)  # draws the mask token alone
    plain = nn.Conv2d(16, 8, 3, padding=1)
    assert torch.equal(project.weight, plain.weight) and torch.equal(project.bias, plain.bias)


@pytest.mark.parametrize(
    ("channels", "width", "deepest", "kernel"), [(6, 8, True, 1), (8, 8, True, None), (8, 8, False, 3)]
)
def test_projection(channels, width, deepest, kernel):
    project = Densify(channels, width, "layer", deepest).project
    if kernel is None:
        assert isinstance(project, nn.Identity)
    else:
        assert project.kernel_size == (kernel, kernel) and project.bias is not None


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_densify(norm):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2, 8, 4, 6, generator=generator, dtype=torch.float64)
    visible = torch.tensor([[[1, 0, 1], [0, 0, 1]], [[0, 0, 0], [0, 1, 0]]]).bool()
    densify = Densify(8, 8, norm, deepest=True).double()
    with torch.no_grad():
        densify.norm.weight.uniform_(0.5, 1.5, generator=generator)
        densify.norm.bias.uniform_(-1, 1, generator=generator)
    out = densify(gather(images, PatchGrid(visible)))

    mask = visible.repeat_interleave(2, 1).repeat_interleave(2, 2)
    rows = images.movedim(1, -1)[mask]  # (visible positions, C)
    over = 0 if norm == "batch" else 1
    eps = 1e-5 if norm == "batch" else 1e-6
    scaled = (rows - rows.mean(over, keepdim=True)) / (rows.var(over, keepdim=True, correction=0) + eps).sqrt()
    expected = densify.mask_token.detach().expand_as(images).movedim(1, -1).clone()
    expected[mask] = (scaled * densify.norm.weight + densify.norm.bias).detach()
    torch.testing.assert_close(out, expected.movedim(-1, 1), rtol=1e-10, atol=1e-12)


class LayerNormOfSomeoneElse(nn.Module):
    pass


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ([nn.BatchNorm2d(3)], "batch"),
        ([nn.LayerNorm(3)], "layer"),
        ([LayerNormOfSomeoneElse()], "layer"),
        ([nn.SyncBatchNorm(3), nn.BatchNorm1d(3), nn.LayerNorm(3)], "batch"),
        ([nn.GroupNorm(3, 3)], "batch"),
        ([], "batch"),
    ],
)
def test_norm_follows_the_backbone(modules, expected):
    assert choose_norm("auto", modules) == expected
    assert choose_norm("layer", modules) == "layer"
    assert choose_norm("batch", modules) == "batch"


def test_unknown_norm():
    with pytest.raises(UsageError, match="densify_norm='group': expected 'auto', 'batch' or 'layer'"):
        choose_norm("group", [])
