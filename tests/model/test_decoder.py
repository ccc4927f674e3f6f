"""The decoder and the densify step: shapes, cost, initialisation, and what they compute."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from convspark import PatchGrid, gather, scatter
from convspark.errors import UsageError
from convspark.model.decoder import Decoder
from convspark.model.densify import Densify, choose_norm
from convspark.model.lean_decoder import Grow, LeanDecoder
from convspark.model.norms import BatchNorm


def decoding_macs(kind: type[Decoder] | type[LeanDecoder]) -> float:
    """Multiplications of a decoder of width 768 and the projections of a ResNet-50's stages, an image at 224 px."""
    with torch.device("meta"):
        decoder = kind(768, [[(2, 2)]] * 3 + [[(2, 2)] * 2], out_channels=3)
        stages = zip((2048, 1024, 512, 256), range(4), strict=True)
        kernel = kind.projection_kernel
        projections = [Densify(c, 768 >> i, "batch", deepest=i == 0, kernel=kernel).project for c, i in stages]
        maps = [torch.empty(1, c, 7 << i, 7 << i) for i, c in enumerate((2048, 1024, 512, 256))]
        with FlopCounterMode(display=False) as counter:
            out = decoder([project(x) for project, x in zip(projections, maps, strict=True)])
    assert out.shape == (1, 3, 224, 224)
    return counter.get_total_flops() / 2


def test_cost_is_the_published_one():
    """12.2 GMAC an image at 224 px and W = 768, the projections of a ResNet-50's stages included."""
    assert decoding_macs(Decoder) == pytest.approx(12.2e9, rel=0.01)


def test_the_lean_decoder_costs_less_than_a_quarter():
    assert decoding_macs(LeanDecoder) < 12.2e9 / 4


@pytest.mark.parametrize("dims", [2, 3])
def test_each_block_doubles_the_side(dims):
    decoder = Decoder(16, [[(2,) * dims]] * 3, out_channels=5)
    maps = [torch.randn(2, 16, *[2] * dims), None, torch.randn(2, 4, *[8] * dims)]
    assert decoder(maps).shape == (2, 5, *[16] * dims)


@pytest.mark.parametrize("kind", [Decoder, LeanDecoder])
@pytest.mark.parametrize("factors", [[(1, 2)], [(7, 7)], [(2, 1), (3, 5)], [(2, 2)] * 4, [(1, 2, 2), (2, 1, 3)]])
def test_each_block_multiplies_each_side_by_its_factor(kind, factors):
    decoder = kind(16, [factors], out_channels=3)
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


@pytest.mark.parametrize(
    ("ways", "blocks", "painted"),
    [
        ([[(2, 2)], [(2, 2)], [(2, 2)], [(2, 2), (2, 2)]], 3, (4, 4)),  # strides 32, 16, 8, 4
        ([[(2, 2)], [(2, 2)], [(2, 2)], [(2, 2)]], 3, (2, 2)),  # 16, 8, 4, 2
        ([[(2, 2)] * 5], 3, (4, 4)),  # 32 alone
        ([[(2, 2)]], 0, (2, 2)),
        ([[(7, 7)]], 0, (7, 7)),
        ([[(2, 1)], [(2, 2), (3, 3)]], 2, (3, 3)),
    ],
)
def test_the_lean_head_paints_up_to_four_pixels_a_side(ways, blocks, painted):
    decoder = LeanDecoder(64, ways, out_channels=3)
    assert LeanDecoder.count_blocks(ways) == len(decoder.blocks) == blocks
    assert decoder.head.factor == painted


@pytest.mark.parametrize("factor", [(2, 2), (3, 1), (1, 2, 3)])
def test_growing_is_a_transposed_convolution_whose_kernel_is_its_stride(factor):
    torch.manual_seed(0)
    grow, sides = Grow(6, 5, factor).double(), (3, 4, 2)[: len(factor)]
    x = torch.randn(2, 6, *sides, dtype=torch.float64)
    # (f*f*c', c, 1, 1) -> (c, c', f, f)
    weight = grow.conv.weight.view(*factor, 5, 6).movedim((-1, -2), (0, 1))
    transposed = F.conv_transpose2d if len(factor) == 2 else F.conv_transpose3d
    expected = transposed(x, weight, stride=factor) + grow.conv.bias.view(*factor, 5).movedim(-1, 0).repeat(1, *sides)
    torch.testing.assert_close(grow(x), expected, rtol=1e-12, atol=1e-12)


def test_the_lean_head_reads_the_finest_map():
    torch.manual_seed(0)
    decoder = LeanDecoder(8, [[(2, 2)], [(2, 2), (2, 2)]], out_channels=3)
    deep, skip = torch.randn(2, 8, 4, 4), torch.randn(2, 4, 8, 8)
    expected = decoder.head(decoder.act(decoder.norm(decoder.conv(decoder.blocks[0](deep) + skip))))
    assert torch.equal(decoder([deep, skip]), expected)
    assert not torch.equal(decoder([deep]), expected)


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
    ("channels", "width", "deepest", "asked", "kernel"),
    [(6, 8, True, 3, 1), (8, 8, True, 3, None), (8, 8, False, 3, 3), (8, 8, False, 1, 1)],
)
def test_projection(channels, width, deepest, asked, kernel):
    project = Densify(channels, width, "layer", deepest, kernel=asked).project
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


@pytest.mark.parametrize("token", [True, False])
def test_what_projects_positions_projects_the_visible_ones(token):
    grid = PatchGrid(torch.tensor([[[1, 0, 1], [0, 0, 1]], [[0, 0, 0], [0, 1, 0]]]).bool())
    densify = Densify(8, 5, "layer", deepest=False, kernel=1, learned_token=token).double()
    nn.init.normal_(densify.project.bias)
    patches = gather(torch.randn(2, 8, 4, 6, dtype=torch.float64), grid)
    fill = densify.mask_token if token else 0.0
    expected = densify.project(scatter(densify.norm(patches), fill=fill))
    seen = []
    torch.testing.assert_close(densify(patches), expected)
    watch = densify.project.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape))
    torch.testing.assert_close(densify(patches), expected)
    assert seen == [(2, 8, 4, 6)]  # who watches the projection sees a map, as it always did
    watch.remove()
    densify.project = nn.Sequential(densify.project)
    torch.testing.assert_close(densify(patches), expected)


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
