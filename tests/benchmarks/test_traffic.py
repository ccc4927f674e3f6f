"""What a step costs, counted: it may fall, not grow; and nothing in it makes the host wait for a device."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.traffic import counted, generic, shares, traffic
from convspark import PatchGrid, SparK
from convspark.measure.bench import DENSE, VISIBLE


@pytest.mark.parametrize(
    ("name", "operators", "bytes_", "flops"),
    [
        ("efficientnet_b0", 1.36, 0.62, 0.44),
        pytest.param("resnet50", 1.39, 0.59, 0.41, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 1.43, 0.66, 0.42, marks=pytest.mark.slow),
    ],
)
def test_an_encoder_step_costs_no_more_than_it_did(name, operators, bytes_, flops):
    """With two images, weights and their gradients are a larger share of the bytes than with eight."""
    ways = traffic(name, "encoder", (DENSE, VISIBLE), batch_size=2)
    of_dense = shares(ways[VISIBLE], ways[DENSE])
    assert of_dense["operators"] <= operators and of_dense["bytes"] <= bytes_ and of_dense["flops"] <= flops
    assert of_dense["flops"] >= 20 / 49 and of_dense["bytes"] >= 20 / 49  # what is visible is computed


def test_with_the_kernels_for_gpus_little_more_than_what_is_visible_moves():
    ways = traffic("resnet50", "encoder", (DENSE, VISIBLE), batch_size=2, kernels=True)
    of_dense = shares(ways[VISIBLE], ways[DENSE])
    assert of_dense["operators"] <= 1.123 and 20 / 49 <= of_dense["flops"] <= 0.409 and of_dense["bytes"] <= 0.511
    convolutions = {"convolve", "convolve_input_gradient", "convolve_weight_gradient"}
    assert convolutions | {"max_pool", "max_pool_gradient"} <= set(ways[VISIBLE].launched)
    assert (
        "convolve" not in traffic("resnet10t", "encoder", (VISIBLE,), batch_size=1)[VISIBLE].launched
    )  # the kernels were chosen for that one call


def test_counts_are_those_of_a_calculation_by_hand():
    conv = nn.Conv2d(8, 16, 3, padding=1, groups=4, bias=False)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    forward = counted(lambda: conv(x))
    multiplications = 2 * 16 * 6 * 6 * (8 // 4) * 9
    assert forward.launched == {"convolution": 1} and forward.flops == 2 * multiplications
    assert forward.bytes == 4 * (x.numel() + conv.weight.numel() + 2 * 16 * 6 * 6)
    out = conv(x)
    backward = counted(lambda: torch.autograd.grad(out, [x, conv.weight], torch.ones_like(out)))
    assert backward.flops == 2 * 2 * multiplications  # of each gradient


class HostWaits(AssertionError):
    """An operator that needs values on the host."""


class NoHostWaits(TorchDispatchMode):
    """Refuses what makes a host wait for its device."""

    _WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique_dim", "bincount", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        chosen = name.startswith("index") and [t for t in tree_leaves(args[1:]) if isinstance(t, Tensor)]
        if name.startswith(self._WAIT) or any(t.dtype == torch.bool for t in chosen or ()):  # x[x > 0]
            raise HostWaits(f"{func} was called")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bf16", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "name", ["resnet10t", "convnext_atto", "efficientnet_b0", "regnety_002", "repvgg_a0", "resnetblur18", "densenet121"]
)
def test_the_host_does_not_wait_within_a_step(name, bf16):
    """On the way that runs on any device; the same on a GPU in test_steps_on_gpu.py."""
    torch.manual_seed(0)
    model = SparK(timm.create_model(name), image_size=64, mask_ratio=0.5, decoder_width=32, prove=False).train()
    images = torch.randn(2, 3, 64, 64)

    def step(seed):
        grid = PatchGrid.random(2, (2, 2), mask_ratio=0.5, generator=torch.Generator().manual_seed(seed))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(images, grid).loss
        loss.backward()

    with generic():
        step(0)  # plans are made here
        with NoHostWaits():
            step(1)


def test_a_wait_is_seen():
    for wait in (lambda x: x.nonzero(), lambda x: float(x[0]), lambda x: x[x > 0], lambda x: x.unique()):
        with pytest.raises(HostWaits), NoHostWaits():
            wait(torch.ones(3))
