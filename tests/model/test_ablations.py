"""Each part of the method that can be taken away, against what is left of it."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from convspark import PatchGrid, SparK
from convspark.checkpoints.paper import no_place_for
from convspark.errors import UsageError


def small_resnet() -> nn.Module:
    block = timm.models.resnet.BasicBlock
    return timm.models.resnet.ResNet(block, (1, 1, 1, 1), channels=(8, 8, 16, 16), stem_width=8, num_classes=0)


def model_of(**options) -> SparK:
    torch.manual_seed(0)
    return SparK(small_resnet(), image_size=96, prove=False, **options)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def grid() -> PatchGrid:
    return PatchGrid.random(4, (3, 3), 0.6, torch.Generator().manual_seed(2))


def pixels_of(grid: PatchGrid) -> torch.Tensor:
    """(B, 1, H, W), True = visible."""
    return grid.visible.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None]


def test_zero_encoding_is_the_dense_network_on_zeros(images, grid):
    model = model_of(encoding="zero")
    dense = copy.deepcopy(model.backbone).train()
    out = model.train()(images, grid)
    x, maps = dense.maxpool(dense.act1(dense.bn1(dense.conv1(images * pixels_of(grid))))), []  # type: ignore[operator]
    for layer in (dense.layer1, dense.layer2, dense.layer3, dense.layer4):
        x = layer(x)  # type: ignore[operator]
        maps.append(x)
    for ours, theirs in zip(out.features, maps, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(model.backbone.bn1.running_var, dense.bn1.running_var)  # type: ignore[union-attr]
    assert not any("mask_token" in name for name, _ in model.named_parameters())
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_zero_encoding_takes_what_patches_cannot_run_on():
    """There is nothing to prove of a dense network."""

    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_resnet()

        def forward(self, x):
            return self.net(torch.flip(x, [3]) + x.sort(dim=3).values)

    assert SparK(Reversed(), image_size=96, encoding="zero", stages=["net.layer3", "net.layer4"]) is not None
    with pytest.raises(Exception, match=r"flip|sort"):
        SparK(Reversed(), image_size=96, stages=["net.layer3", "net.layer4"])


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("decoder", ["lean", "paper"])
def test_levels(levels, decoder, images, grid):
    model = model_of(levels=levels, decoder=decoder)
    assert [s[0] for s in model.stages.strides] == [4, 8, 16, 32][-levels:]
    assert len(model.densify) == levels and not model.untrained
    blocks = len(model_of(decoder=decoder).decoder.blocks)
    assert len(model.decoder.blocks) == blocks
    model(images, grid).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_level_left_out_is_not_seen(images, grid):
    """With one level, the decoder's input at the finer strides is nothing but what it made of the deepest map."""
    model = model_of(levels=1, decoder="paper").eval()
    out = model(images, grid)
    x = model.densify[0](out.features[0])
    for block in model.decoder.blocks:
        x = block(x)
    torch.testing.assert_close(out.prediction, model.decoder.head(x))


def test_levels_beyond_the_network_are_refused():
    with pytest.raises(UsageError, match="levels=5: expected 1 to 4, the stages of ResNet"):
        model_of(levels=5)
    with pytest.raises(UsageError, match="levels=0"):
        model_of(levels=0)


def test_zero_token_is_a_token_of_zeros(images, grid):
    learned, zero = model_of().eval(), model_of(mask_token="zero").eval()
    assert not torch.equal(learned(images, grid).prediction, zero(images, grid).prediction)
    with torch.no_grad():
        for densify in learned.densify:
            densify.mask_token.zero_()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(learned(images, grid).prediction, zero(images, grid).prediction)
    assert len(list(learned.parameters())) == len(list(zero.parameters())) + 4


def test_raw_target(images, grid):
    model = model_of(target="raw").eval()
    out = model(images, grid)
    masked = ~pixels_of(grid).expand_as(images)
    torch.testing.assert_close(out.loss, F.mse_loss(out.prediction[masked], images[masked]))
    shown = model.reconstruct(images, grid)
    torch.testing.assert_close(shown.reconstruction, torch.where(masked, out.prediction, images))


def test_loss_on_all(images, grid):
    model = model_of(loss_on="all", target="raw").eval()
    out = model(images, grid)
    torch.testing.assert_close(out.loss, F.mse_loss(out.prediction, images))
    brighter = torch.where(pixels_of(grid), images, 2 * images)  # twice the target where they are masked
    only_masked, everywhere = model_of(target="raw").eval(), model
    assert only_masked(brighter, grid).loss > 1.2 * everywhere(brighter, grid).loss


@pytest.mark.parametrize("option", ["encoding", "mask_token", "target", "loss_on", "decoder", "masks"])
def test_unknown_values_are_refused(option):
    with pytest.raises(UsageError, match=f"{option}"):
        model_of(**{option: "none such"})


@pytest.mark.parametrize("option", [{"encoding": "zero"}, {"target": "raw"}, {"mask_token": "zero"}], ids=str)
def test_the_papers_layout_has_no_place_for_it(option):
    assert "taken away" in str(no_place_for(model_of(decoder="paper", **option)))
    assert no_place_for(model_of(decoder="paper", loss_on="all", masks="blocks")) is None
    assert "decodes 2 stages" in str(no_place_for(model_of(decoder="paper", levels=2)))


def test_drawn_in_blocks(images):
    model = model_of(masks="blocks")
    first, again = (model(images, generator=torch.Generator().manual_seed(3)).grid.visible for _ in range(2))
    assert torch.equal(first, again) and first.sum((1, 2)).tolist() == [4] * 4
