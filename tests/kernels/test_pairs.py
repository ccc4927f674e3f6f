"""Convolutions by pairs of visible positions: which pairs there are, threads, dtypes, operators.

That they compute what the dense convolution does is tested in test_neighbourhood.py, with all other convolutions.
"""

import pytest
import torch

from convspark.kernels import ops, pairs
from convspark.kernels.cpu import build
from convspark.sparse import PatchGrid
from convspark.sparse.convolve import convolved as convolved_by
from convspark.sparse.plans import Plan

pytestmark = pytest.mark.skipif(not build.library_is_there(), reason="no C++ compiler for the kernel")

GRID = PatchGrid(
    torch.tensor([[[True, True, False], [False, True, False]], [[False, False, False], [True, False, True]]])
)


def kernel(patch, stride=1):
    return Plan((patch,) * 2, (3, 3), (stride,) * 2, (1, 1), (1, 1))


def listed(patch, across, stride=1):
    sees = kernel(patch, stride)
    return pairs.Pairs(*torch.ops.convspark.pairs(GRID.around(sees.reach).slots, across, *sees.sizes)), sees


def convolve(values, weight, bias, groups, grid, sees, across):
    listed = pairs.Pairs(*torch.ops.convspark.pairs(grid.around(sees.reach).slots, across, *sees.sizes))
    return convolved_by(values, weight, bias, pairs.Paired(groups, sees, across, listed))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("across", [False, True])
def test_pairs_are_those_of_visible_positions(across, stride):
    """Counted one by one on the whole map, each position by its image, row and column."""
    patch, out = 4, 4 // stride
    (sources, results, ends), _ = listed(patch, across, stride)
    where = [(int(c) // 6, int(c) % 6 // 3, int(c) % 3) for c in GRID.cells]  # image, row, column of each patch

    def place(row, side):
        image, top, left = where[row // side**2]
        return image, top * side + row % side**2 // side, left * side + row % side

    seen = {place(row, patch): row for row in range(len(where) * patch**2)}
    for tap in range(9):
        expected = set()
        for result in range(len(where) * out**2):
            image, y, x = place(result, out)
            source = seen.get((image, y * stride + tap // 3 - 1, x * stride + tap % 3 - 1))
            if source is not None and not (across and source // patch**2 == result // out**2):
                expected.add((source, result))
        part = slice(int(ends[tap]), int(ends[tap + 1]))
        assert set(zip(sources[part].tolist(), results[part].tolist(), strict=True)) == expected
        assert part.stop - part.start == len(expected)


def convolved(values, weight, bias, groups, patch, across):
    """Result, and gradients of the values, the weight and the bias."""
    leaves = [t.detach().clone().requires_grad_() for t in (values, weight, bias)]
    out = convolve(*leaves, groups, GRID, kernel(patch), across)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


def case(patch, groups):
    torch.manual_seed(0)
    values = torch.randn(GRID.num_visible, 80, patch, patch)
    return values, torch.randn(160, 80 // groups, 3, 3), torch.randn(160), groups, patch


@pytest.mark.parametrize(("patch", "across"), [(1, False), (4, True)])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_number_of_threads_changes_no_bit(patch, across, groups):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            pairs_alone = [t.clone() for t in convolved(*case(patch, groups), False)]
            results.append(pairs_alone)
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))
    for one, other in zip(results[0], convolved(*case(patch, groups), across), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("patch", "across"), [(2, False), (4, True)])
@pytest.mark.parametrize(
    ("groups", "inputs", "outputs"),
    [(8, 4, 4), (3, 4, 4), (4, 8, 8), (3, 8, 8), (2, 16, 16), (3, 24, 24), (2, 40, 40), (2, 4, 8), (5, 3, 7)],
)
def test_groups_of_any_width_convolve_as_dense_ones_do(groups, inputs, outputs, patch, across, dtype):
    """Narrow groups share a register, others are copied out of their rows where those are read often."""
    torch.manual_seed(0)
    values = torch.randn(GRID.num_visible, groups * inputs, patch, patch, dtype=dtype)
    weight = torch.randn(groups * outputs, inputs, 3, 3, dtype=dtype)
    bias = torch.randn(groups * outputs, dtype=dtype)
    slopes = torch.randn(GRID.num_visible, groups * outputs, patch, patch, dtype=dtype)

    def dense(values, weight, bias):
        maps = torch.nn.functional.conv2d(on_the_map(values), weight, bias, padding=1, groups=groups)
        return from_the_map(maps, patch)

    def ours(values, weight, bias):
        return convolve(values, weight, bias, groups, GRID, kernel(patch), across)

    results = []
    for run in (ours, dense):
        leaves = [t.clone().requires_grad_() for t in (values, weight, bias)]
        out = run(*leaves)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, slopes)))
    exactness = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(*results, **exactness)


def on_the_map(values):
    """The whole maps, 0 at masked patches."""
    channels, side = values.shape[1:3]
    cells = torch.zeros(2 * 2 * 3, channels, side, side, dtype=values.dtype).index_copy(0, GRID.cells, values)
    return cells.unflatten(0, (2, 2, 3)).permute(0, 3, 1, 4, 2, 5).flatten(2, 3).flatten(3)


def from_the_map(maps, side):
    cells = maps.unflatten(3, (3, side)).unflatten(2, (2, side)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    return cells[GRID.cells]


@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("value_format", [torch.contiguous_format, torch.channels_last])
def test_the_order_in_memory_changes_no_bit(weight_format, value_format):
    values, weight, *rest = case(2, 1)
    first = convolved(values, weight, *rest, False)
    again = convolved(
        values.contiguous(memory_format=value_format), weight.contiguous(memory_format=weight_format), *rest, False
    )
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("value_format", [torch.contiguous_format, torch.channels_last])
def test_a_single_patch_in_any_order_in_memory(value_format):
    """Rows of a single patch are a view of it, channels far apart where they are not last."""
    grid = PatchGrid(torch.tensor([[[True, False]]]))
    values = torch.randn(1, 8, 2, 2, dtype=torch.float64).contiguous(memory_format=value_format).requires_grad_()
    weight = torch.randn(4, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    out = convolve(values, weight, None, 1, grid, kernel(2), False)
    dense = torch.nn.functional.conv2d(values, weight, padding=1)
    torch.testing.assert_close(out, dense)
    slopes = torch.randn_like(out)
    gradients, expected = (torch.autograd.grad(result, [values, weight], slopes) for result in (out, dense))
    torch.testing.assert_close(gradients, expected)


def test_there_is_a_kernel_for_full_precision_only():
    values, weight, *_ = case(2, 1)
    assert ops.computes(values, weight, "add_pairs") and ops.computes(values.double(), weight.double(), "add_pairs")
    assert not ops.computes(values.double(), weight, "add_pairs")  # left to PyTorch, which says what is wrong
    with torch.autocast("cpu", torch.bfloat16):
        assert not ops.computes(values, weight, "add_pairs")


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("across", [False, True])
def test_gradients_that_nobody_asks_for_are_not_computed(wanted, across):
    values, weight, bias, *rest = case(4, 1)
    leaves = [t.requires_grad_(want) for t, want in zip((values, weight, bias), wanted, strict=True)]
    convolve(*leaves, rest[0], GRID, kernel(4), across).sum().backward()
    assert [t.grad is not None for t in leaves] == list(wanted)


def test_operators_are_described_rightly_to_the_compiler():
    (sources, results, ends), sees = listed(4, True)
    rows, taps, grads = (
        torch.randn(GRID.num_visible * 16, 6),
        torch.randn(8, 9, 3),
        torch.randn(GRID.num_visible * 16, 8),
    )
    checks = ("test_schema", "test_faketensor")
    run = torch.ops.convspark
    torch.library.opcheck(run.add_pairs, (grads, rows, taps, sources, results, ends, 2, False), test_utils=checks)
    torch.library.opcheck(
        run.pairs_weight_gradient, (grads, rows, results, sources, ends, 2), test_utils=("test_faketensor",)
    )
    real = run.pairs(GRID.around(sees.reach).slots, True, *sees.sizes)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = run.pairs(mode.from_tensor(GRID.around(sees.reach).slots), True, *sees.sizes)
    assert [(f.shape, f.dtype) for f in fake] == [(t.shape, t.dtype) for t in real]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("patch", "across", "stride"), [(1, False, 1), (2, False, 2), (4, True, 1), (4, True, 2)])
@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(1, 24, 40), (3, 4, 4), (2, 5, 7)])
def test_the_kernel_equals_the_plain_version(groups, inputs, outputs, patch, across, stride, dtype):
    pairs_of_kernel, sees = listed(patch, across, stride)
    pairs_of_plain = ops.PLAIN["pairs"](GRID.around(sees.reach).slots, across, *sees.sizes)
    end = int(pairs_of_plain[2][-1])
    for one, other in zip(pairs_of_kernel, pairs_of_plain, strict=True):
        assert torch.equal(one[:end], other[:end])
    torch.manual_seed(0)
    rows = torch.randn(GRID.num_visible * sees.positions, groups * inputs, dtype=dtype)
    grads = torch.randn(GRID.num_visible * sees.outputs, groups * outputs, dtype=dtype)
    taps = torch.randn(groups * outputs, 9, inputs, dtype=dtype)
    sources, results, ends = pairs_of_kernel
    computed = []
    for run in (lambda name: getattr(torch.ops.convspark, name), ops.PLAIN.__getitem__):
        there, back = grads.clone(), rows.clone()
        run("add_pairs")(there, rows, taps, sources, results, ends, groups, False)
        run("add_pairs")(back, grads, taps, results, sources, ends, groups, True)
        computed.append((there, back, run("pairs_weight_gradient")(grads, rows, results, sources, ends, groups)))
    torch.testing.assert_close(*computed, rtol=1e-4, atol=1e-4)
