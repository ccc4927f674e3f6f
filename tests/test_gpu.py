"""On a GPU: the same numbers as on a CPU, the same bits each time, and a host that never waits within a step."""

import copy

import pytest
import timm
import torch

from convspark import PatchGrid, SparK
from convspark.training.optimizer import build_optimizer, parameter_groups

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NETWORKS = ["resnet10t", "convnext_atto", "regnety_002", "efficientnet_b0"]


def model_of(name):
    torch.manual_seed(0)
    return SparK(timm.create_model(name), image_size=64, mask_ratio=0.5, decoder_width=64, prove=False)


def gradients(model, images, grid):
    """Loss and gradients of a step, by name; the model is left without them."""
    loss = model(images, grid).loss
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"loss": loss.detach()} | found


@pytest.mark.parametrize("name", NETWORKS)
def test_as_on_a_cpu_and_the_same_bits_each_time(name):
    model, images = model_of(name).double(), torch.randn(4, 3, 64, 64, dtype=torch.float64)
    visible = torch.tensor([[[1, 0], [0, 1]], [[1, 1], [1, 0]], [[0, 0], [1, 0]], [[0, 0], [0, 0]]]).bool()
    there = copy.deepcopy(model).cuda()
    expected = gradients(model, images, PatchGrid(visible))
    found = gradients(there, images.cuda(), PatchGrid(visible.cuda()))
    for key, value in expected.items():
        scale = value.abs().max().clamp(min=1e-12)
        assert ((found[key].cpu() - value).abs().max() / scale) < 1e-7, key
    single, those = copy.deepcopy(there).float(), images.cuda().float()
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):  # the library's own convolutions
        found, again = (gradients(single, those, PatchGrid(visible.cuda())) for _ in range(2))
    assert all(torch.equal(found[key], again[key]) for key in found)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_host_does_not_wait_within_a_step(name, bf16):
    model = model_of(name).cuda().to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)
    optimizer = build_optimizer(parameter_groups(model, frozenset(f"backbone.{n}" for n in model.untrained)))

    def step(seed):
        generator = torch.Generator().manual_seed(seed)
        grid = PatchGrid.random(4, (2, 2), mask_ratio=0.5, generator=generator, device="cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            loss = model(images, grid).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step(0)  # libraries are loaded and plans made here
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
