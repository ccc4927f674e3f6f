"""Backbones on visible patches get along with the rest of PyTorch's world, each against a plain run."""

import copy
import threading

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from convspark import PatchGrid, SparK, gather, scatter
from convspark.kernels.cpu.build import library_is_there
from convspark.model.stages import Stages
from convspark.sparse.proof.oracle import MaskAndMultiply

THIN = {
    "resnet10t": {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "efficientnet_b0": {},
    "regnety_002": {},
}


def build(name="resnet10t", **more):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **THIN[name], **more)


def spark(name="resnet10t", **more):
    return SparK(build(name), image_size=96, decoder_width=64, prove=False, **more)


def batch(dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 3, 96, 96, generator=generator, dtype=dtype)
    return images, PatchGrid.random(3, (3, 3), 0.6, generator)


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same(actual, expected, **tolerance):
    assert actual.keys() == expected.keys() and actual
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", THIN)
def test_timms_own_checkpointing_changes_no_gradient(name):
    images, grid = batch(torch.float64)
    runs = []
    for wanted in (False, True):
        model = spark(name).double()
        model.backbone.set_grad_checkpointing(wanted)
        model(images, grid).loss.backward()
        runs.append(gradients(model))
    assert_same(runs[1], runs[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("start", [lambda x: x.sum().backward(), lambda x: x.backward(torch.ones_like(x.values))])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_around_a_part_of_a_network(use_reentrant, start):
    """It runs again during the backward pass, on visible patches, whatever the backward pass starts from."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 3, 1, 1)).double()
    images, grid = batch(torch.float64)
    runs = []
    for saving in (False, True):
        net.zero_grad()
        x = net[0](gather(images, grid))
        x = checkpoint(net[1:], x, use_reentrant=use_reentrant) if saving else net[1:](x)
        start(x)
        runs.append(gradients(net))
    assert_same(runs[1], runs[0])


class Checkpointed(nn.Module):
    """Stages, all but the first run again in the backward pass; one is frozen, and one module is never called."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.use_reentrant = use_reentrant
        sides = zip((3, 8, 8, 12, 16), (8, 8, 12, 16, 24), strict=True)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in sides
        )
        self.idle = nn.Linear(2, 2)
        self.blocks[2].requires_grad_(False)

    def forward(self, x):
        x = self.blocks[0](x)
        for block in self.blocks[1:]:
            saving = self.use_reentrant is not None and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=self.use_reentrant) if saving else block(x)
        return x


def checkpointed(use_reentrant):
    torch.manual_seed(0)
    return Checkpointed(use_reentrant)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_networks_that_save_activations_are_found_out_and_trained_like_others(use_reentrant):
    plain, saving = (Stages(checkpointed(way)) for way in (None, use_reentrant))
    saving.backbone.blocks[0][0].weight.grad = torch.ones(8, 3, 3, 3)
    assert saving.first_stage_of_parameters() == plain.first_stage_of_parameters()
    assert (saving.untrained, saving.modules) == (plain.untrained, plain.modules) and len(saving.untrained) == 2
    grads = {name: p.grad for name, p in saving.backbone.named_parameters() if p.grad is not None}
    assert list(grads) == ["blocks.0.0.weight"] and grads["blocks.0.0.weight"].eq(1).all()
    images, grid = batch(torch.float64)
    runs = []
    for way in (None, use_reentrant):
        torch.manual_seed(1)
        model = SparK(checkpointed(way), decoder_width=32).double()  # which proves the network first
        model(images, grid).loss.backward()
        runs.append(gradients(model))
    assert_same(runs[1], runs[0], rtol=1e-9, atol=1e-12)


def test_gradients_from_patches_and_for_patches():
    net = nn.Conv2d(3, 4, 3, 2, 1).double()
    images, grid = batch(torch.float64)
    images.requires_grad_()
    x = gather(images, grid)
    out = net(x)
    ones = torch.ones_like(out.values)
    to_weight, to_patches = torch.autograd.grad(out, [net.weight, x], ones, retain_graph=True)
    out.backward(ones)
    torch.testing.assert_close(to_weight, net.weight.grad, rtol=0, atol=0)
    torch.testing.assert_close(to_patches.values, gather(images.grad, grid).values, rtol=0, atol=0)
    leaf = gather(images.detach(), grid).requires_grad_()
    net(leaf).sum().backward(inputs=[leaf])
    torch.testing.assert_close(leaf.grad, to_patches.values, rtol=0, atol=0)


@pytest.mark.parametrize("name", THIN)
def test_autocast_in_bf16_loses_no_more_than_mask_and_multiply_does(name):
    net = build(name)
    stages = Stages(net)
    images, grid = batch()
    net.train()
    exact = [scatter(f) for f in stages(gather(images, grid))]
    with torch.autocast("cpu", torch.bfloat16):
        patches = stages(gather(images, grid))
        truth = MaskAndMultiply(grid.visible)(stages, images)
        dense = stages(images)
    for fp32, half, oracle, whole in zip(exact, patches, truth, dense, strict=True):
        assert half.dtype == whole.dtype  # where norms return to float32, they do on patches too
        ours = (scatter(half).float() - fp32).abs().mean()
        theirs = (oracle.float() - fp32).abs().mean()
        assert 0 < ours < 1.5 * theirs  # no more is lost to rounding than by mask-and-multiply


def test_autocast_steps_have_finite_gradients_of_the_parameters_type():
    model = spark("convnext_atto")
    images, grid = batch()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images, grid)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients(model).values())


def test_deep_copies_are_independent_and_equal():
    model = spark().double()
    images, grid = batch(torch.float64)
    twin = copy.deepcopy(model)
    assert twin.backbone is twin.stages.backbone is not model.backbone
    torch.testing.assert_close(twin(images, grid).loss, model(images, grid).loss)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin(images, grid).loss.backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert_same(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_state_dict_round_trip_and_plain_keys():
    model, other = spark().double(), spark(mask_ratio=0.5).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    other.load_state_dict(model.state_dict())
    images, grid = batch(torch.float64)
    torch.testing.assert_close(other(images, grid).loss, model(images, grid).loss, rtol=0, atol=0)
    plain = {k.removeprefix("backbone.") for k in model.state_dict() if k.startswith("backbone.")}
    assert plain == set(build().state_dict())


@pytest.mark.parametrize(
    "average",
    [
        lambda model: ModelEmaV3(model, decay=0.5),
        lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True),
    ],
    ids=["timm", "torch"],
)
def test_averaged_copies_run_on_visible_patches(average):
    model = spark().double().eval()
    ema = average(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    if isinstance(ema, AveragedModel):
        ema.update_parameters(model)  # the first takes the parameters as they are
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02)
    ema.update_parameters(model) if isinstance(ema, AveragedModel) else ema.update(model)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            parameter.copy_(0.5 * before[name] + 0.5 * parameter)
    images, grid = batch(torch.float64)
    torch.testing.assert_close(ema.module(images, grid).loss, expected(images, grid).loss)


def test_threads_do_not_disturb_each_other():
    """One network, several threads, each with its own images and mask; also stages found by hooks."""
    nets = [Stages(build().eval()), Stages(UNet().eval())]
    for stages in nets:
        batches = [batch(seed=seed) for seed in range(6)]
        with torch.no_grad():
            expected = [[scatter(f) for f in stages(gather(*pair))] for pair in batches]
        results: dict[int, list] = {}

        def work(i, stages=stages, batches=batches, results=results):
            with torch.no_grad():
                for _ in range(3):
                    results[i] = [scatter(f) for f in stages(gather(*batches[i]))]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, maps in enumerate(expected):
            for one, other in zip(maps, results[i], strict=True):
                torch.testing.assert_close(one, other)


class UNet(nn.Module):
    """A network that does not announce its stages."""

    def __init__(self):
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        fine = self.down1(x)
        return self.head(torch.cat([fine, self.up(self.down2(fine))], 1))


def test_nested_runs_keep_their_grids_apart():
    """A hook that runs a second network on other patches in the midst of the first."""
    outer, inner = build().double().eval(), build("convnext_atto").double().eval()
    images, grid = batch(torch.float64)
    other_images, other_grid = batch(torch.float64, seed=5)
    with torch.no_grad():
        expected = scatter(outer.forward_features(gather(images, grid)))
        expected_inner = scatter(inner.forward_features(gather(other_images, other_grid)))
        seen = []

        def aside(*_):
            seen.append(scatter(inner.forward_features(gather(other_images, other_grid))))

        outer.layer2.register_forward_hook(aside)
        torch.testing.assert_close(scatter(outer.forward_features(gather(images, grid))), expected)
    torch.testing.assert_close(seen, [expected_inner])


def test_functional_call_and_gradients_by_grad():
    net = build().double()
    stages = Stages(net)
    images, grid = batch(torch.float64)
    net.eval()
    replaced = {name: p.detach() * 1.1 for name, p in net.named_parameters()}
    with torch.no_grad():
        out = functional_call(net, replaced, (gather(images, grid),))
        for name, parameter in net.named_parameters():
            parameter.copy_(replaced[name])
        torch.testing.assert_close(out.values, net(gather(images, grid)).values)
    loss = scatter(stages(gather(images, grid))[-1]).sum()
    by_grad = torch.autograd.grad(loss, net.conv1[0].weight)[0]
    scatter(stages(gather(images, grid))[-1]).sum().backward()
    torch.testing.assert_close(net.conv1[0].weight.grad, by_grad)


def test_hooks_see_visible_patches_and_may_replace_them():
    net = build().double().eval()
    images, grid = batch(torch.float64)
    handle = net.layer1.register_forward_hook(lambda _module, _args, output: output * 2)
    with torch.no_grad():
        features = scatter(net.forward_features(gather(images, grid)))
        truth = MaskAndMultiply(grid.visible)(net.forward_features, images)
    handle.remove()
    torch.testing.assert_close(features, truth)


def test_operations_are_counted():
    """Dispatch modes see every operation, the gradients' too: 4 of 9 patches of the dense network's, and the halo."""
    net, (images, grid) = build("convnext_atto"), batch()
    with FlopCounterMode(display=False) as dense:
        net.forward_features(images)
    with FlopCounterMode(display=False) as forward:
        out = net.forward_features(gather(images, grid))
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    # Without a compiled kernel, depthwise convolutions of small patches are quickest on whole maps.
    share = forward.get_total_flops() / dense.get_total_flops()
    assert 0.44 < share < (0.46 if library_is_there() else 0.6)
    assert backward.get_total_flops() > 1.5 * forward.get_total_flops()  # none for the gradient of the images


def test_frozen_parts_get_no_gradient_and_the_rest_the_same():
    runs = []
    images, grid = batch(torch.float64)
    for frozen in (False, True):
        model = spark().double()
        model.backbone.layer1.requires_grad_(not frozen)
        model(images, grid).loss.backward()
        runs.append(gradients(model))
    rest = {name: g for name, g in runs[0].items() if not name.startswith("backbone.layer1.")}
    assert_same(runs[1], rest)
