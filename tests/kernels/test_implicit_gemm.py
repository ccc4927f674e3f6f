"""Convolutions as implicit GEMM, by the plain versions: the dense convolution of a map that is 0 where masked."""

import pytest
import torch
from torch.nn import functional

from convspark.kernels.implicit_gemm import ImplicitGemm, offer
from convspark.sparse import PatchGrid, gather
from convspark.sparse.plans import Plan

run = torch.ops.convspark


def case(kernel: int = 3, stride: int = 1, dilation: int = 1, ins: int = 5, outs: int = 7):
    """Images (3, ins, 12, 16) of which a half is visible, a plan of patches of 4x4, weight and bias."""
    generator = torch.Generator().manual_seed(kernel)
    images = torch.randn(3, ins, 12, 16, generator=generator, dtype=torch.float64)
    grid = PatchGrid(torch.rand(3, 3, 4, generator=generator) < 0.5)
    before = dilation * (kernel - 1) // 2
    plan = Plan(*[(n, n) for n in (4, kernel, stride, dilation, before)])
    weight = torch.randn(outs, ins, kernel, kernel, generator=generator, dtype=torch.float64)
    return images, grid, plan, weight, torch.randn(outs, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (5, 2, 1), (3, 2, 2), (7, 4, 1)])
def test_it_is_the_dense_convolution(kernel, stride, dilation):
    images, grid, plan, weight, bias = case(kernel, stride, dilation)
    values = gather(images, grid).values
    shown = grid.visible[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    dense_images, dense_weight = (images * shown).requires_grad_(), weight.clone().requires_grad_()
    dense = functional.conv2d(dense_images, dense_weight, bias, stride, plan.before, dilation)
    expected = gather(dense, PatchGrid(grid.visible)).values
    way = ImplicitGemm(grid.around(plan.reach).slots, plan)
    torch.testing.assert_close(way.forward(values, weight, bias), expected)
    slopes = torch.randn(expected.shape, dtype=torch.float64)
    expected.backward(slopes)
    to_values, to_weight, to_bias = way.gradients(slopes, values, weight, (True, True, True))
    torch.testing.assert_close(to_values, gather(dense_images.grad, PatchGrid(grid.visible)).values)
    torch.testing.assert_close(to_weight, dense_weight.grad)
    torch.testing.assert_close(to_bias, slopes.sum((0, 2, 3)))


def test_it_is_offered_where_there_is_a_kernel_only():
    images, grid, plan, weight, _ = case()
    assert offer(gather(images, grid).values, weight, 1, grid, plan) is None


def test_operators_are_described_rightly_to_the_compiler():
    images, grid, plan, weight, bias = case(5, 2)
    rows = gather(images, grid).values.movedim(1, -1).reshape(-1, 5)
    around, out = grid.around(plan.reach).slots, torch.randn(grid.num_visible * 4, 7, dtype=torch.float64)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(run.convolve, (rows, weight, bias, around, *plan.sizes), test_utils=checks)
    torch.library.opcheck(run.convolve_input_gradient, (out, weight, around, *plan.sizes), test_utils=checks)
    torch.library.opcheck(run.convolve_weight_gradient, (out, rows, around, *plan.sizes), test_utils=checks)
