"""The compiled kernel of depthwise convolutions: numbers, threads, operators.

That it computes what the dense convolution does is in test_neighbourhood.py, with all other convolutions.
"""

import pytest
import torch

from convspark.sparse import PatchGrid, compiled, depthwise
from convspark.sparse.plans import Plan

needs_kernel = pytest.mark.skipif(not compiled.library_is_there(), reason="no C++ compiler for the kernel")


def convolved(values, weight, bias, grid, stride=1):
    """Result, and gradients of the values and of the weight."""
    kernel = weight.shape[-1]
    sees = Plan(tuple(values.shape[2:]), (kernel,) * 2, (stride,) * 2, (1, 1), (kernel // 2,) * 2)
    values, weight = values.clone().requires_grad_(), weight.clone().requires_grad_()
    out = depthwise.convolve(values, weight, bias, grid.around(sees.reach).slots, sees)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [values, weight], gradient)]


def case(channels=72, patch=4, kernel=5):
    torch.manual_seed(0)
    grid = PatchGrid.random(3, (3, 4), 0.5)
    values = torch.randn(grid.num_visible, channels, patch, patch)
    return values, torch.randn(channels, 1, kernel, kernel), torch.randn(channels), grid


@needs_kernel
@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_is_float32_rounded_once(stride):
    values, weight, bias, grid = case()
    lower = [t.bfloat16() for t in (values, weight, bias)]
    for found, wide in zip(
        convolved(*lower, grid, stride), convolved(*(t.float() for t in lower), grid, stride), strict=True
    ):
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, wide.bfloat16())


@needs_kernel
def test_bfloat16_rounds_to_even_and_keeps_what_is_no_number():
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)  # every bfloat16 there is
    values = halves.view(-1, 64, 1, 1)
    grid = PatchGrid(torch.ones(1, 32, 32, dtype=torch.bool))
    sees = Plan((1, 1), (1, 1), (1, 1), (1, 1), (0, 0))
    weight = torch.full((64, 1, 1, 1), 1.0078125, dtype=torch.bfloat16)
    found = depthwise.convolve(values, weight, None, grid.around(sees.reach).slots, sees)
    expected = (values.float() * weight.float().view(1, -1, 1, 1)).bfloat16()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


@needs_kernel
def test_the_number_of_threads_changes_no_bit():
    inputs = case(channels=200)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(convolved(*inputs))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))
    assert compiled.parallel(), "the threads of PyTorch's OpenMP were not found"


@needs_kernel
def test_mixed_precision_casts_as_autocast_does():
    values, weight, _, grid = case()
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise.can_run(values, weight, 72)
        found = convolved(values, weight, None, grid)
    assert found[0].dtype == torch.bfloat16 and found[1].dtype == found[2].dtype == torch.float32
    with torch.autocast("cpu", torch.float16):
        assert not depthwise.can_run(values, weight, 72)
    assert not depthwise.can_run(values.double(), weight, 72)  # left to PyTorch, which says what is wrong
    assert not depthwise.can_run(values, torch.randn(144, 1, 5, 5), 72)


@needs_kernel
def test_operators_are_described_rightly_to_the_compiler():
    values, weight, bias, grid = case(channels=8)
    rows = values.movedim(1, -1).reshape(-1, 8)
    sees = Plan((4, 4), (5, 5), (2, 2), (1, 1), (2, 2))
    around, out = grid.around(sees.reach).slots, torch.randn(grid.num_visible * 4, 8)
    checks = ("test_schema", "test_faketensor")
    ops = torch.ops.convspark
    torch.library.opcheck(ops.depthwise, (rows, weight, bias, around, *sees.sizes), test_utils=checks)
    torch.library.opcheck(ops.depthwise_input_gradient, (out, weight, around, *sees.sizes), test_utils=checks)
    torch.library.opcheck(ops.depthwise_weight_gradient, (out, rows, around, *sees.sizes), test_utils=checks)
