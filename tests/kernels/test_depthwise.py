"""The compiled kernel of depthwise convolutions: numbers, threads, operators.

That it computes what the dense convolution does is tested in test_neighbourhood.py, with all other convolutions.
"""

import pytest
import torch

from convspark.kernels import depthwise, ops
from convspark.kernels.cpu import build
from convspark.sparse import PatchGrid
from convspark.sparse.convolve import convolved as convolved_by
from convspark.sparse.plans import Plan

needs_kernel = pytest.mark.skipif(not build.library_is_there(), reason="no C++ compiler for the kernel")


def way(grid, sees):
    return depthwise.Depthwise(grid.around(sees.reach).slots, sees)


def convolved(values, weight, bias, grid, stride=1):
    """Result, and gradients of the values and of the weight."""
    kernel = weight.shape[-1]
    sees = Plan(tuple(values.shape[2:]), (kernel,) * 2, (stride,) * 2, (1, 1), (kernel // 2,) * 2)
    values, weight = values.clone().requires_grad_(), weight.clone().requires_grad_()
    out = convolved_by(values, weight, bias, way(grid, sees))
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
    for narrow, wide in zip(
        convolved(*lower, grid, stride), convolved(*(t.float() for t in lower), grid, stride), strict=True
    ):
        assert narrow.dtype == torch.bfloat16
        assert torch.equal(narrow, wide.bfloat16())


@needs_kernel
def test_bfloat16_rounds_to_even_and_keeps_what_is_no_number():
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)  # every bfloat16 there is
    values = halves.view(-1, 64, 1, 1)
    grid = PatchGrid(torch.ones(1, 32, 32, dtype=torch.bool))
    sees = Plan((1, 1), (1, 1), (1, 1), (1, 1), (0, 0))
    weight = torch.full((64, 1, 1, 1), 1.0078125, dtype=torch.bfloat16)
    out = convolved_by(values, weight, None, way(grid, sees))
    expected = (values.float() * weight.float().view(1, -1, 1, 1)).bfloat16()
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


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
    assert build.parallel(), "the threads of PyTorch's OpenMP were not found"


def offered(values, weight, grid):
    return depthwise.offer(values, weight, 72, grid, Plan((4, 4), (5, 5), (1, 1), (1, 1), (2, 2)))


@needs_kernel
def test_mixed_precision_casts_as_autocast_does():
    values, weight, _, grid = case()
    with torch.autocast("cpu", torch.bfloat16):
        assert offered(values, weight, grid)
        results = convolved(values, weight, None, grid)
    assert results[0].dtype == torch.bfloat16 and results[1].dtype == results[2].dtype == torch.float32
    with torch.autocast("cpu", torch.float16):
        assert not offered(values, weight, grid)
    assert not offered(values.double(), weight, grid)  # left to PyTorch, which says what is wrong
    assert not offered(values, torch.randn(144, 1, 5, 5), grid)


@needs_kernel
def test_operators_are_described_rightly_to_the_compiler():
    values, weight, bias, grid = case(channels=8)
    rows = values.movedim(1, -1).reshape(-1, 8)
    sees = Plan((4, 4), (5, 5), (2, 2), (1, 1), (2, 2))
    around, out = grid.around(sees.reach).slots, torch.randn(grid.num_visible * 4, 8)
    checks = ("test_schema", "test_faketensor")
    run = torch.ops.convspark
    torch.library.opcheck(run.depthwise, (rows, weight, bias, around, *sees.sizes), test_utils=checks)
    torch.library.opcheck(run.depthwise_input_gradient, (out, weight, around, *sees.sizes), test_utils=checks)
    torch.library.opcheck(run.depthwise_weight_gradient, (out, rows, around, *sees.sizes), test_utils=checks)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (5, 2, 1), (3, 2, 2), (7, 1, 1)])
def test_the_kernel_equals_the_plain_version(kernel, stride, dilation, dtype):
    values, weight, bias, grid = case(channels=21, kernel=kernel)
    sees = Plan((4, 4), (kernel,) * 2, (stride,) * 2, (dilation,) * 2, (dilation * (kernel // 2),) * 2)
    rows, weight, bias = (t.to(dtype) for t in (values.movedim(1, -1).reshape(-1, 21), weight, bias))
    around, out = grid.around(sees.reach).slots, torch.randn(grid.num_visible * sees.outputs, 21).to(dtype)
    exactness = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    for name, arguments in (
        ("depthwise", (rows, weight, bias, around)),
        ("depthwise_input_gradient", (out, weight, around)),
        ("depthwise_weight_gradient", (out, rows, around)),
    ):
        one = getattr(torch.ops.convspark, name)(*arguments, *sees.sizes)
        other = ops.PLAIN[name](*arguments, *sees.sizes)
        torch.testing.assert_close(one, other, rtol=exactness, atol=exactness * float(other.abs().max()))
