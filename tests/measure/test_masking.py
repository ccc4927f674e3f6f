"""What masking does to maps and pixels, against NumPy and against mask-and-multiply."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from convspark import PatchGrid
from convspark.errors import UsageError
from convspark.measure.mask_and_multiply import MaskAndMultiply
from convspark.measure.masking import intensities, mask_pattern, pixel_mask, stage_maps
from convspark.measure.subject import awaken
from convspark.model.stages import Stages

VISIBLE = torch.tensor(
    [[[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]]]
).bool()


def looked_at(mask: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """Where an all-ones kernel, padded by half of it, sees something of a mask: (B, h, w) -> (B, h/s, w/s)."""
    reach = kernel // 2
    padded = np.pad(mask, ((0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
    return windows.any(axis=(3, 4))[:, ::stride, ::stride]


class Ones(nn.Module):
    """Convolutions whose kernels are all ones, with biases that fill every map."""

    LAYERS = ((3, 2), (3, 1), (1, 1), (5, 2), (3, 1), (3, 2))  # kernel, stride

    def __init__(self) -> None:
        super().__init__()
        sizes = [3, *(4 for _ in self.LAYERS)]
        self.layers = nn.Sequential(
            *(nn.Conv2d(sizes[i], 4, kernel, stride, kernel // 2) for i, (kernel, stride) in enumerate(self.LAYERS))
        )
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def forward(self, x):
        return self.layers(x)


class Silent(Ones):
    """Its `train` returns nothing, as in some libraries."""

    def train(self, mode: bool = True) -> None:
        super().train(mode)


@pytest.mark.parametrize("build", [Ones, Silent])
def test_the_pattern_spreads_as_far_as_kernels_reach(build):
    images = torch.rand(2, 3, 32, 32) + 0.1
    layers = mask_pattern(Stages(build(), image_size=32), images, PatchGrid(VISIBLE))
    assert [layer.name for layer in layers] == [f"layers.{i}" for i in (0, 1, 3, 4, 5)]  # 1x1 looks at nothing around
    mask = VISIBLE.numpy().repeat(8, 1).repeat(8, 2)
    expected = []
    for kernel, stride in Ones.LAYERS:
        mask = looked_at(mask, kernel, stride)
        expected += [mask] if kernel > 1 else []
    shares = [float(mask.mean()) for mask in expected]
    assert VISIBLE.float().mean() < shares[0] < shares[-1] < 1
    for layer, dense in zip(layers, expected, strict=True):
        side = 8 * layer.visible.shape[1] // 32
        assert np.array_equal(layer.dense, dense), layer.name
        assert np.array_equal(layer.visible, VISIBLE.numpy().repeat(side, 1).repeat(side, 2)), layer.name


def test_a_mean_over_the_image_fills_all_of_it_at_once():
    network = timm.create_model("seresnet18", num_classes=0)
    awaken(network)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):  # as in trained networks: a scale of 0 would stay 0
            nn.init.normal_(parameter)
    images = torch.randn(1, 3, 128, 128)
    layers = {layer.name: layer for layer in mask_pattern(Stages(network), images, PatchGrid(VISIBLE[:1]))}
    assert 0.1 < layers["maxpool"].dense.mean() < 0.5
    assert layers["layer1.1.conv1"].dense.all()  # after the first squeeze-and-excite
    assert all(layer.visible.mean() == 0.1875 for layer in layers.values())


class Functional(nn.Module):
    """Stages without a module that looks around."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x):
        return self.two(F.max_pool2d(self.one(F.avg_pool2d(x, 3, 2, 1)), 3, 2, 1))


def test_stages_stand_for_layers_where_there_are_none():
    stages = Stages(Functional(), image_size=16)
    layers = mask_pattern(stages, torch.randn(2, 3, 16, 16), PatchGrid(VISIBLE))
    assert [layer.name for layer in layers] == stages.names
    mask = looked_at(VISIBLE.numpy().repeat(4, 1).repeat(4, 2), 3, 2)
    assert np.array_equal(layers[0].dense, mask)


def test_the_network_stays_as_it_is():
    network = timm.create_model("resnet10t", num_classes=0).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stages = Stages(network)
    mask_pattern(stages, torch.randn(1, 3, 128, 128), PatchGrid(VISIBLE[:1]))
    stage_maps(stages, torch.randn(1, 3, 128, 128), PatchGrid(VISIBLE[:1]))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules()) and network.conv1[0].weight.dtype == torch.float32
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_features_are_the_networks_own(name):
    network = timm.create_model(name, num_classes=0)
    awaken(network)
    stages = Stages(network)
    images, grid = torch.randn(1, 3, 128, 128), PatchGrid.random(1, (4, 4), generator=torch.Generator().manual_seed(0))
    features = stage_maps(stages, images, grid)
    seen = pixel_mask(grid, (128, 128))[:, None]
    network.eval()
    with torch.no_grad():
        whole = network.forward_intermediates(images, intermediates_only=True, norm=False)
        zeros = network.forward_intermediates(images * seen, intermediates_only=True, norm=False)
        with MaskAndMultiply(grid):
            visible = network.forward_intermediates(images * seen, intermediates_only=True, norm=False)
    for feature, *maps in zip(reversed(features), *map(reversed, (whole, zeros, visible)), strict=False):
        there = grid.visible.numpy().repeat(feature.whole.shape[1] // 4, 1).repeat(feature.whole.shape[1] // 4, 2)
        expected = [value.double().pow(2).mean(1).sqrt().numpy() for value in maps]
        np.testing.assert_allclose(feature.whole, expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(feature.zeros, expected[1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(feature.visible[there], expected[2][there], rtol=1e-3, atol=1e-5)
        assert np.isnan(feature.visible[~there]).all()
    assert [feature.stride for feature in features] == [(4, 4), (8, 8), (16, 16), (32, 32)]


def test_histograms_are_numpys():
    images = torch.randn(2, 3, 16, 16)
    histograms = intensities(images, PatchGrid(VISIBLE), bins=10)
    pixels = images.numpy().transpose(0, 2, 3, 1)
    seen = VISIBLE.numpy().repeat(4, 1).repeat(4, 2)
    assert histograms.edges[0] == pixels.min() and histograms.edges[-1] == pixels.max()
    zeros = np.where(seen[..., None], pixels, 0)
    for shares, values in ((histograms.whole, pixels), (histograms.zeros, zeros), (histograms.visible, pixels[seen])):
        counts, _ = np.histogram(values, bins=histograms.edges.astype(np.float32))
        np.testing.assert_allclose(shares, counts / values.size)
    middle = np.digitize(0, histograms.edges) - 1
    masked = 1 - seen.mean()
    assert histograms.zeros[middle] > masked > 0.5
    # What is moved to 0 came from where the masked pixels were.
    gone = np.histogram(pixels[~seen], bins=histograms.edges.astype(np.float32))[0] / pixels.size
    assert histograms.moved(histograms.zeros) == pytest.approx(masked - gone[middle])
    assert histograms.moved(histograms.whole) == 0


def test_scales_that_hide_their_blocks_are_waken():
    network = timm.create_model("convnext_atto", num_classes=0)
    before = network.stem[0].weight.clone()
    awaken(network)
    scales = {name: value for name, value in network.named_parameters() if name.endswith("gamma")}
    assert scales and all((value == 1).all() for value in scales.values())
    assert all((value == 0).all() for name, value in network.named_parameters() if name.endswith("bias"))
    assert torch.equal(network.stem[0].weight, before)
    residual = timm.create_model("resnet18", num_classes=0)
    assert (residual.layer1[0].bn2.weight == 0).all()
    awaken(residual)
    assert (residual.layer1[0].bn2.weight == 1).all()


def test_volumes_have_no_pictures():
    network = nn.Sequential(nn.Conv3d(1, 4, 3, 2, 1), nn.Conv3d(4, 8, 3, 2, 1))
    grid = PatchGrid(torch.ones(1, 2, 2, 2).bool())
    for measure in (mask_pattern, stage_maps):
        with pytest.raises(UsageError, match="takes no pictures, but 3-D images"):
            measure(Stages(network), torch.zeros(1, 1, 8, 8, 8), grid)
