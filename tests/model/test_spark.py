"""The whole model: what goes in and out, what it does not see, what it refuses."""

import copy
import logging

import pytest
import timm
import torch
from torch import nn

import convspark.model.spark
from convspark import PatchGrid, SparK, VisiblePatches
from convspark.errors import NotExactError, UsageError


def small_resnet(**options) -> nn.Module:
    return timm.models.resnet.ResNet(
        timm.models.resnet.BasicBlock, (1, 1, 1, 1), channels=(8, 8, 16, 16), stem_width=8, **options
    )


def small_convnext(**options) -> nn.Module:
    return timm.models.convnext.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 32), **options)


def model_of(backbone: nn.Module, image_size=64, **options) -> SparK:
    return SparK(backbone, image_size=image_size, prove=False, **options)


@pytest.mark.parametrize("build", [small_resnet, small_convnext])
def test_forward(build):
    backbone = build()
    model = SparK(backbone, image_size=96)
    assert model.backbone is backbone
    assert (model.patch_size, model.image_size, model.in_chans) == ((32, 32), (96, 96), 3)
    out = model(torch.randn(2, 3, 96, 96))
    assert out.loss.ndim == 0 and out.loss.isfinite() and out.loss.dtype == torch.float32
    assert out.prediction.shape == (2, 3, 96, 96)
    assert out.grid.visible.sum((1, 2)).tolist() == [4, 4]  # round(9 * 0.4)
    assert [type(f) for f in out.features] == [VisiblePatches] * 4
    assert [tuple(f.shape[2:]) for f in out.features] == [(8, 8), (4, 4), (2, 2), (1, 1)]


def test_grids_are_drawn_from_the_generator():
    model = model_of(small_resnet(), image_size=128)
    images = torch.randn(4, 3, 128, 128)
    draws = [model(images, generator=torch.Generator().manual_seed(seed)).grid.visible for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("build", [small_resnet, small_convnext])
def test_no_masked_pixel_reaches_the_prediction(build):
    model = model_of(build()).train()
    images = torch.randn(2, 3, 64, 64)
    grid = PatchGrid(torch.tensor([[[1, 0], [0, 0]], [[0, 1], [1, 0]]]).bool())
    masked = ~grid.visible.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None]
    other = torch.where(masked, torch.randn_like(images) * 100, images)
    first, second = model(images, grid), model(other, grid)
    assert torch.equal(first.prediction, second.prediction)
    assert not torch.equal(first.loss, second.loss)


def test_reconstruction_is_shown_without_training():
    model = model_of(small_resnet()).train()
    model.backbone.bn1.eval()
    images = torch.randn(2, 3, 64, 64)
    before = copy.deepcopy(model.state_dict())
    shown = model.reconstruct(images)
    seen = shown.grid.visible.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None]
    assert torch.equal(shown.masked, images * seen)
    assert torch.equal(shown.reconstruction * seen, images * seen)
    assert not shown.reconstruction.requires_grad
    assert model.training and not model.backbone.bn1.training and model.backbone.layer1.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model.eval().reconstruct(images, shown.grid).reconstruction, shown.reconstruction)


@pytest.mark.parametrize(
    ("image_size", "options", "in_chans"),
    [((64, 128), {}, 3), (64, {}, 1), (64, {}, 5), ((64, 128), {"patch_size": 64, "mask_ratio": 0.5}, 3)],
)
def test_rectangles_channels_and_larger_patches(image_size, options, in_chans):
    model = model_of(small_resnet(in_chans=in_chans), image_size=image_size, **options)
    out = model(torch.randn(2, in_chans, *model.image_size))
    assert out.prediction.shape == (2, in_chans, *model.image_size)
    assert tuple(out.grid.shape) == tuple(side // p for side, p in zip(model.image_size, model.patch_size, strict=True))
    out.loss.backward()
    assert model.backbone.conv1.weight.grad.abs().sum() > 0


def test_larger_patches_mask_and_standardise_larger_patches():
    """Against a model of patch 32 with the same weights: same features, target over 64 x 64 pixels."""
    torch.manual_seed(0)
    wide = model_of(small_resnet(), image_size=128, patch_size=64).eval()
    narrow = model_of(copy.deepcopy(wide.backbone), image_size=128).eval()
    narrow.load_state_dict(wide.state_dict())
    images = torch.randn(1, 3, 128, 128)
    visible = torch.tensor([[[1, 0], [0, 1]]]).bool()
    by_wide = wide(images, PatchGrid(visible))
    by_narrow = narrow(images, PatchGrid(visible.repeat_interleave(2, 1).repeat_interleave(2, 2)))
    torch.testing.assert_close(by_wide.prediction, by_narrow.prediction)
    losses = []
    for y, x in ((0, 64), (64, 0)):
        target = images[..., y : y + 64, x : x + 64]
        target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
        losses.append((by_wide.prediction[..., y : y + 64, x : x + 64] - target).square().mean())
    torch.testing.assert_close(by_wide.loss, torch.stack(losses).mean())


def test_a_forward_pass_takes_other_sizes():
    model = model_of(small_resnet(), image_size=64)
    assert model(torch.randn(1, 3, 96, 160)).prediction.shape == (1, 3, 96, 160)


def test_images_may_show_different_numbers_of_patches_or_none():
    model = model_of(small_convnext())
    visible = torch.tensor([[[1, 1], [1, 1]], [[0, 0], [0, 0]], [[0, 1], [0, 0]]]).bool()
    out = model(torch.randn(3, 3, 64, 64), PatchGrid(visible))
    out.loss.backward()
    trained = [p for n, p in model.backbone.named_parameters() if n not in model.untrained]
    assert out.loss.isfinite() and all(p.grad.isfinite().all() for p in trained)


def test_volumes():
    backbone = nn.Sequential(
        *(nn.Sequential(nn.Conv3d(c, d, 3, 2, 1), nn.BatchNorm3d(d), nn.ReLU()) for c, d in ((2, 8), (8, 16), (16, 24)))
    )
    model = SparK(backbone, image_size=(16, 24, 16))
    out = model(torch.randn(2, 2, 16, 24, 16))
    out.loss.backward()
    assert out.prediction.shape == (2, 2, 16, 24, 16)
    assert model.reconstruct(torch.randn(1, 2, 16, 24, 16)).reconstruction.shape == (1, 2, 16, 24, 16)


def test_under_autocast():
    model = model_of(small_resnet())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.randn(2, 3, 64, 64))
    out.loss.backward()
    assert out.loss.dtype == torch.float32 and out.loss.isfinite()


def test_the_rest_follows_the_backbones_type():
    model = model_of(small_resnet().double())
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    ("backbone", "options", "width", "norm"),
    [
        (small_convnext, {}, 32, "layer"),
        (small_convnext, {"densify_norm": "batch", "decoder_width": 64}, 64, "batch"),
        (lambda: small_resnet(block_args={}), {}, 32, "batch"),  # 16 channels, but five blocks halve the width
        (lambda: timm.create_model("regnety_002"), {}, 352, "batch"),  # 368 channels, rounded down to 32
        (lambda: timm.create_model("regnety_002"), {"decoder": "lean"}, 368, "batch"),  # three blocks
        (lambda: timm.create_model("resnet50"), {}, 768, "batch"),
        (lambda: small_resnet(), {"stages": ["layer1", "layer2"]}, 8, "batch"),
    ],
)
def test_defaults_follow_the_backbone(backbone, options, width, norm):
    model = model_of(backbone(), **{"decoder": "paper"} | options)
    assert (model.decoder_width, model.densify_norm) == (width, norm)


@pytest.mark.parametrize("decoder", ["paper", "lean"])
@pytest.mark.parametrize("stages", [None, ["layer4"], ["act1", "layer4"], ["layer1", "layer2"]])
def test_every_parameter_is_trained(decoder, stages):
    """What no gradient reaches would be exported as if it were trained, and stalls several processes."""
    model = model_of(small_resnet(), decoder=decoder, stages=stages)
    model(torch.randn(2, 3, 64, 64)).loss.backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    assert idle == {f"backbone.{name}" for name in model.untrained} & {n for n, _ in model.named_parameters()}


def test_unknown_decoder():
    with pytest.raises(UsageError, match="decoder='unet': expected 'paper' or 'lean'"):
        model_of(small_resnet(), decoder="unet")


@pytest.mark.parametrize(("fine", "channels", "width"), [("layer2", 8, 8), ("act1", 64, 2)])
def test_skips_where_stages_are(fine, channels, width):
    """Strides 8 and 32: a skip into the third of five blocks; strides 2 and 32: into the fifth."""
    model = model_of(small_resnet(), stages=[fine, "layer4"], decoder="paper")
    assert [d.project.weight.shape[:2] for d in model.densify] == [(32, 16), (width, channels)]
    out = model(torch.randn(1, 3, 64, 64))
    out.loss.backward()
    assert len(out.features) == 2 and model.densify[1].mask_token.grad.abs().sum() > 0


def test_a_patch_finer_than_the_stride_trains_the_stages_above():
    backbone = small_resnet()
    model = model_of(backbone, patch_size=16)
    assert model.stages.strides == ((2, 2), (4, 4), (8, 8), (16, 16)) and model.grid_shape((64, 64)) == (4, 4)
    deepest = {name for name, _ in (*backbone.named_parameters(), *backbone.named_buffers()) if "layer4" in name}
    assert deepest and {name for name in model.untrained if not name.startswith("fc.")} == deepest
    assert model.stages.untrained_parts == ["layer4", "fc"]
    model(torch.randn(2, 3, 64, 64)).loss.backward()
    assert backbone.layer4[0].conv1.weight.grad is None and backbone.layer3[0].bn2.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 100}, "image_size=100x100 is not divisible by the patch of 32 .*: 96x96 or 128x128"),
        ({"image_size": (64, 72)}, "image_size=64x72 is not divisible .*: 64x64 or 64x96"),
        ({"image_size": 20}, "nearest sizes: 32x32"),
        ({"image_size": 0}, "image_size=0: expected whole numbers"),
        ({"image_size": (64, 64, 64)}, r"image_size=\(64, 64, 64\): expected 2 sides"),
        ({"mask_ratio": 0.0}, "mask_ratio=0.0 leaves 4 of 4 patches visible .*at least one visible and one masked"),
        ({"mask_ratio": 0.9}, "mask_ratio=0.9 leaves 0 of 4 patches visible"),
        ({"mask_ratio": 60}, "mask_ratio=60 is no share"),
        ({"patch_size": 48}, "patch_size=48: expected a multiple of .* 32"),
        ({"patch_size": 0}, "patch_size=0: expected whole numbers"),
        ({"patch_size": 7}, "patch_size=7: .* strides are .*16, 32"),
        ({"decoder_width": 100, "decoder": "paper"}, "=100: expected a multiple of 32, .* nearest: 96 or 128"),
        ({"densify_norm": "group"}, "densify_norm='group'"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(UsageError, match=message):
        model_of(small_resnet(), **options)


def test_a_name_is_no_network():
    with pytest.raises(UsageError, match=r"backbone is 'resnet50': expected a torch\.nn\.Module, as timm"):
        SparK("resnet50")


@pytest.mark.parametrize(
    ("shape", "grid_shape", "message"),
    [
        ((1, 4, 64, 64), None, r"images of shape \(1, 4, 64, 64\): expected \(B, 3, H, W\)"),
        ((3, 64, 64), None, r"images of shape \(3, 64, 64\)"),
        ((1, 3, 64, 70), None, "image_size=64x70"),
        ((1, 3, 32, 32), None, "mask_ratio=0.6 leaves 0 of 1"),
        ((1, 3, 64, 64), (1, 2, 3), "grid of 1 images with 2x3 patches: expected 1 with 2x2"),
        ((1, 3, 64, 64), (2, 2, 2), "grid of 2 images with 2x2 patches: expected 1 with 2x2"),
    ],
)
def test_inputs_that_cannot_be(shape, grid_shape, message):
    grid = None if grid_shape is None else PatchGrid(torch.ones(grid_shape, dtype=torch.bool))
    with pytest.raises(UsageError, match=message):
        model_of(small_resnet())(torch.zeros(shape), grid)


def test_what_lies_behind_the_deepest_stage_is_named_and_left_alone(caplog):
    with caplog.at_level(logging.INFO, convspark.model.spark.__name__):
        model = model_of(small_resnet())
    assert model.untrained == ["fc.weight", "fc.bias"]
    assert "After the deepest stage, left as it is: fc\n" in caplog.text
    model(torch.randn(1, 3, 64, 64)).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == ["backbone.fc.weight", "backbone.fc.bias"]


class PositionSensitive(nn.Module):
    """Adds coordinates made from the size of what it sees: not the same on a patch and on an image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)

    def forward(self, x):
        x = self.conv(x)
        return x + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)


def test_a_backbone_is_proved_at_start():
    with pytest.raises(NotExactError):
        SparK(PositionSensitive(), image_size=64)
    model_of(PositionSensitive())


@pytest.mark.filterwarnings("ignore")
def test_a_stage_that_left_the_patches_is_refused_in_words():
    @torch.jit.script
    def swish(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)

    class Leaves(nn.Module):
        def forward(self, x):
            return swish(x)

    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 2, 2), Leaves())
    model = SparK(network, image_size=32, decoder_width=16, prove=False)
    with pytest.raises(UsageError, match="a stage of the backbone is a Tensor, not visible patches"):
        model(torch.randn(2, 3, 32, 32))
