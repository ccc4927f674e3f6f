"""Convolutions and poolings over random grids and settings, against the dense op on the zero-filled map."""

import copy
import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from convspark.errors import NotExactError
from convspark.kernels.cpu import build
from convspark.kernels.depthwise import Depthwise
from convspark.kernels.pairs import Paired
from convspark.sparse import PatchGrid, gather, scatter
from convspark.sparse.convolve import Gathered
from convspark.sparse.plans import Plan
from convspark.sparse.tensor import flat_rows

# Many drawn settings give a map that is no multiple of the grid; they are thrown away.
PROPERTY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


def whole_mask(visible, patch):
    mask = visible[:, None]
    for axis, p in enumerate(patch):
        mask = mask.repeat_interleave(p, 2 + axis)
    return mask


@st.composite
def grids(draw, dims=2, patches=(1, 2, 3, 4, 6, 8)):
    shape = [draw(st.integers(1, 4)) for _ in range(dims)]
    patch = [draw(st.sampled_from(patches)) for _ in range(dims)]
    batch = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**20))
    share = draw(st.sampled_from([0.0, 0.3, 0.6, 1.0]))
    generator = torch.Generator().manual_seed(seed)
    visible = torch.rand(batch, *shape, generator=generator) < share
    return visible, patch, generator


SINGLE = torch.ones(1, 1, 1, dtype=torch.bool), [2, 2], torch.Generator().manual_seed(0)  # one image of one patch


def check(op, visible, patch, channels, generator, module=None):
    """op(gathered) against op(zero-filled) at visible positions, with the gradient of the images and of the weights."""
    sides = [h * p for h, p in zip(visible.shape[1:], patch, strict=True)]
    images = torch.randn(visible.shape[0], channels, *sides, generator=generator, dtype=torch.float64)
    mask = whole_mask(visible, patch)
    dense_in, sparse_in = (images.clone().requires_grad_() for _ in range(2))
    dense = op(torch.where(mask, dense_in, 0))
    divides = all(n % h == 0 for n, h in zip(dense.shape[2:], visible.shape[1:], strict=True))
    # A dilated pool may see nothing but padding; its gradient then goes to an index outside of the map (torch 2.14).
    assume(divides and torch.isfinite(dense).all())
    try:
        patches = op(gather(sparse_in, PatchGrid(visible)))
    except NotExactError as error:
        if "line up" in str(error) or "does not divide" in str(error):
            assume(False)
        raise  # refused for another reason than positions that do not line up with the patches
    result = scatter(patches)
    expected = torch.where(
        whole_mask(visible, [n // h for n, h in zip(dense.shape[2:], visible.shape[1:], strict=True)]), dense, 0
    )
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-11)
    weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    variables = [*(module.parameters() if module else [])]
    if not visible.any():
        return
    ours = torch.autograd.grad((result * weight).sum(), [sparse_in, *variables])
    truth = torch.autograd.grad((expected * weight).sum(), [dense_in, *variables])
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    if op is module:  # in float32, too, which libraries compute in other ways
        single, sparse_in = copy.deepcopy(module).float(), images.float().requires_grad_()
        result = scatter(single(gather(sparse_in, PatchGrid(visible)))).double()
        ours = torch.autograd.grad((result * weight).sum(), [sparse_in, *single.parameters()])
        for a, b in zip([result, *ours], [expected, *truth], strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


@PROPERTY
@given(
    grids(),
    st.booleans(),
    st.tuples(st.integers(-5, 5), st.integers(-5, 5)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from([1, 3]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int32]),
    st.sampled_from([3, 20]),
    st.sampled_from([0, 7]),
    st.booleans(),
)
def test_what_a_plan_sees(drawn, taps, start, size, stride, dilation, groups, dtype, width, outside, by_kernel):
    """Against slices of the padded map, both ways; whole numbers make the sums exact."""
    visible, patch, generator = drawn
    grid, patch, before = PatchGrid(visible), tuple(patch), tuple(-s for s in start)
    if taps:
        assume(all(p % stride == 0 for p in patch))
        plan = Plan(patch, size, (stride,) * 2, (dilation,) * 2, before)
    else:
        plan = Plan(patch, (1, 1), (1, 1), (1, 1), tuple(-s for s in start), size)
    copy = grid.copy(plan, outside)
    sides = [h * p for h, p in zip(grid.shape, patch, strict=True)]
    images = torch.randint(-9, 9, (len(visible), width * groups, *sides), generator=generator).to(dtype)
    images = images * whole_mask(visible, patch)
    far = 64  # more than any of these plans sees
    padded = functional.pad(images.double(), (far,) * 4, value=outside).requires_grad_()
    image, places = (
        grid.cells // math.prod(grid.shape),
        torch.unravel_index(grid.cells % math.prod(grid.shape), grid.shape),
    )
    at = []  # of each cell, along each axis: (N, out, 1, tap, 1), then (N, 1, out, 1, tap)
    for axis, (place, out, k) in enumerate(zip(places, plan.out, plan.kernel, strict=True)):
        view = [slice(None), *(slice(None) if axis == i % 2 else None for i in range(4))]
        line = torch.arange(out)[:, None] * plan.stride[axis] + torch.arange(k) * plan.dilation[axis] - before[axis]
        at.append((place[:, None, None] * patch[axis] + far + line)[tuple(view)])
    expected = padded.movedim(1, -1)[image[:, None, None, None, None], at[0], at[1]].flatten(0, -2)
    with pytest.MonkeyPatch.context() as patched:
        if not by_kernel:
            patched.setattr(build, "library", lambda: None)
        rows = flat_rows(gather(images, grid).values)
        values = copy.there(rows, groups)
        assert values.dtype == dtype
        assert torch.equal(values.double(), expected.unflatten(1, (groups, width)).transpose(0, 1).flatten(0, 1))
        if dtype == torch.int32 or not len(values):
            return
        slopes = torch.randint(-1, 2, values.shape, generator=generator).to(dtype)  # bfloat16 is exact up to 256
        by_row = slopes.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1)
        (sums,) = torch.autograd.grad(expected, padded, by_row.double())
        sums = sums[:, :, far:-far, far:-far]
        assert torch.equal(copy.back(slopes, groups).double(), flat_rows(gather(sums, grid).values))


@PROPERTY
@given(grids(), st.integers(0, 3), st.integers(0, 3), st.sampled_from([torch.float32, torch.int32]))
def test_into_images_and_out_of_them(drawn, before, after, dtype):
    visible, patch, generator = drawn
    grid, patch = PatchGrid(visible), tuple(patch)
    sides = [h * p for h, p in zip(grid.shape, patch, strict=True)]
    images = torch.randint(-9, 9, (len(visible), 3, *sides), generator=generator).to(dtype)
    zero_filled = images * whole_mask(visible, patch)
    rows = flat_rows(gather(images, grid).values)
    into = grid.into_images(patch, (before, before), (after, after))
    expected = functional.pad(zero_filled, (before, after, before, after))
    padded = [n + before + after for n in sides]
    assert torch.equal(into.there(rows).view(-1, *padded, 3).movedim(-1, 1), expected)
    assert torch.equal(into.back(flat_rows(expected)), rows)
    out = grid.out_of_images(patch)
    assert torch.equal(out.there(flat_rows(images)), rows)
    assert torch.equal(out.back(rows).view(-1, *sides, 3).movedim(-1, 1), zero_filled)


@PROPERTY
@given(
    grids(),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.sampled_from([1, 2, 3, 4]),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    st.booleans(),
    st.booleans(),
)
def test_convolution(drawn, kernel, stride, dilation, groups, mode, bias, by_pairs):
    visible, patch, generator = drawn
    padding = [((k - 1) * dilation + 1 - stride + 1) // 2 for k in kernel]
    padding = [max(p, 0) for p in padding]
    sides = [h * p for h, p in zip(visible.shape[1:], patch, strict=True)]
    assume(mode == "zeros" or all(p < n for p, n in zip(padding, sides, strict=True)))
    assume(all((k - 1) * dilation < n + 2 * p for k, n, p in zip(kernel, sides, padding, strict=True)))
    conv = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias, mode, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patched:
        if by_pairs:
            use_pairs(patched)
        check(conv, visible, patch, 4, generator, conv)


def use_pairs(patched):
    """However few channels there are, and however many visible patches."""
    for limit, value in (("_PAIRED_FROM", 1), ("_ACROSS_UP_TO", 1.0)):
        patched.setattr(f"convspark.kernels.pairs.{limit}", value)


@settings(PROPERTY, max_examples=60)
@given(
    grids(patches=(1, 2, 4)),
    st.sampled_from([(2, 8, 8), (3, 24, 8), (1, 70, 45)]),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.booleans(),
)
def test_convolution_of_wide_groups(drawn, widths, stride, bias, by_kernel):
    """Groups that are wide enough for pairs, or few outputs for products of their taps; several blocks of channels."""
    visible, patch, generator = drawn
    groups, channels, outputs = widths
    conv = nn.Conv2d(groups * channels, groups * outputs, 3, stride, 1, 1, groups, bias, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patched:
        if not by_kernel:
            patched.setattr(build, "library", lambda: None)
        check(conv, visible, patch, groups * channels, generator, conv)


@PROPERTY
@given(
    st.integers(1, 3).flatmap(lambda dims: grids(dims, (1, 2, 3, 4, 8) if dims < 3 else (1, 2))),
    st.lists(st.integers(1, 7), min_size=3, max_size=3),
    st.sampled_from([1, 2, 3, 4]),
    st.integers(1, 3),
    st.sampled_from([1, 3, 4, 8, 13, 48]),
    st.booleans(),
    st.booleans(),
)
def test_depthwise_convolution(drawn, kernel, stride, dilation, channels, bias, by_kernel):
    """Channels of several blocks and with some left over, with our own kernel and without."""
    visible, patch, generator = drawn
    kernel = kernel[: len(patch)]
    padding = [max((k - 1) * dilation + 2 - stride, 0) // 2 for k in kernel]
    sides = [h * p for h, p in zip(visible.shape[1:], patch, strict=True)]
    assume(all((k - 1) * dilation < n + 2 * p for k, n, p in zip(kernel, sides, padding, strict=True)))
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(patch)]
    conv = kind(
        channels, channels, tuple(kernel), stride, tuple(padding), dilation, channels, bias, dtype=torch.float64
    )
    with pytest.MonkeyPatch.context() as patched:
        if not by_kernel:
            patched.setattr(build, "library", lambda: None)
        check(conv, visible, patch, channels, generator, conv)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("patch", [4, 8])
def test_depthwise_gradients_in_bfloat16(stride, dilation, patch, monkeypatch):
    """Without kernels of our own, against float64: on some processors PyTorch's were wrong where they were dilated."""
    monkeypatch.setattr(build, "library", lambda: None)
    grid = PatchGrid.random(2, (4, 4), generator=torch.Generator().manual_seed(0))
    conv = nn.Conv2d(32, 32, 3, stride, dilation, dilation, 32)
    images = torch.randn(2, 32, 4 * patch, 4 * patch)
    gradients = []
    for dtype in (torch.float64, torch.bfloat16):
        mine = copy.deepcopy(conv).to(dtype)
        mine(gather(images.to(dtype), grid)).values.double().square().sum().backward()
        gradients.append([p.grad.double() for p in mine.parameters()])
    for expected, got in zip(*gradients, strict=True):
        assert (expected - got).norm() < 0.02 * expected.norm()


@PROPERTY
@given(
    grids(),
    st.integers(1, 5),
    st.sampled_from([1, 2]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([0.0, 1.5]),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_convolution_after_uneven_padding(drawn, kernel, stride, before, after, value, groups, by_pairs):
    visible, patch, generator = drawn
    sides = [h * p for h, p in zip(visible.shape[1:], patch, strict=True)]
    assume(all(kernel <= n + before + after for n in sides))
    conv = nn.Conv2d(2, 4 // groups, kernel, stride, groups=groups, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patched:
        if by_pairs:
            use_pairs(patched)
        check(
            lambda x: conv(functional.pad(x, (before, after, before, after), value=value)),
            visible,
            patch,
            2,
            generator,
            conv,
        )


@pytest.mark.parametrize(("kernel", "padding", "patch"), [((1, 5), (0, 2), (6, 2)), ((3, 3), (1, 1), (8, 2))])
def test_convolution_of_one_channel_to_patches_of_one_column(kernel, padding, patch):
    """In float32, which libraries compute otherwise than the float64 of the tests above."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 4, kernel, (1, 2), padding)
    images = torch.randn(2, 1, 3 * patch[0], 3 * patch[1])
    visible = torch.rand(2, 3, 3) < 0.6
    expected = conv(torch.where(whole_mask(visible, patch), images, 0))
    patches = scatter(conv(gather(images, PatchGrid(visible))))
    torch.testing.assert_close(patches, torch.where(whole_mask(visible, (patch[0], patch[1] // 2)), expected, 0))


@pytest.mark.parametrize("pool", [functional.max_pool2d, functional.avg_pool2d])
def test_a_pooling_that_begins_a_window_in_what_was_padded_is_refused(pool):
    def padded(x):
        return pool(functional.pad(x, (0, 2, 0, 2)), 2, 2, ceil_mode=True)

    images = torch.randn(1, 1, 8, 8)
    assert padded(images).shape[2:] == (5, 5)
    with pytest.raises(NotExactError, match="line up"):
        padded(gather(images, PatchGrid(torch.ones(1, 2, 2, dtype=torch.bool))))


def made_up_for(x, pooled):
    """What a pooling has lost at the end of a map, filled with zeros by the next layer."""
    lost = [before - now for before, now in zip(x.shape[2:], pooled.shape[2:], strict=True)]
    return functional.avg_pool2d(functional.pad(pooled, (0, lost[1], 0, lost[0])), 1, 1) if max(lost) > 0 else pooled


@PROPERTY
@given(grids(), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.booleans(), st.integers(1, 2))
def test_max_pooling(drawn, kernel, stride, padding, ceil_mode, dilation):
    visible, patch, generator = drawn
    assume(padding <= kernel // 2)
    sides = [h * p for h, p in zip(visible.shape[1:], patch, strict=True)]
    assume(all((kernel - 1) * dilation < n + 2 * padding for n in sides))
    pool = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    check(lambda x: made_up_for(x, pool(x)) if stride == 1 else pool(x), visible, patch, 2, generator)


@PROPERTY
@given(
    grids(),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 3]),
)
def test_average_pooling(drawn, kernel, stride, padding, ceil_mode, count_include_pad, divisor):
    visible, patch, generator = drawn
    assume(padding <= kernel // 2)
    sides = [h * p for h, p in zip(visible.shape[1:], patch, strict=True)]
    assume(all(kernel <= n + 2 * padding for n in sides))
    pool = nn.AvgPool2d(kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    check(lambda x: made_up_for(x, pool(x)) if stride == 1 else pool(x), visible, patch, 2, generator)


@PROPERTY
@given(grids(dims=3, patches=(1, 2, 4)), st.sampled_from([1, 3]), st.sampled_from([1, 2]), st.booleans())
def test_convolution_of_volumes(drawn, kernel, stride, by_pairs):
    visible, patch, generator = drawn
    conv = nn.Conv3d(2, 3, kernel, stride, kernel // 2, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patched:
        if by_pairs:
            use_pairs(patched)
        check(conv, visible, patch, 2, generator, conv)


def test_every_way_to_run_is_met(monkeypatch):
    """The property tests above would mean little if the same way were chosen each time."""
    from convspark.sparse.meanings.conv import _looked_at, _way

    def way(patch, kernel, groups, channels=8, mask_ratio=0.5):
        grid = PatchGrid.random(2, (4, 4), mask_ratio)
        x = gather(torch.randn(2, channels, 4 * patch, 4 * patch), grid)
        weight = torch.empty(channels, channels // groups, kernel, kernel)
        source, plan, _ = _looked_at(x, weight, 1, kernel // 2, 1)
        chosen = _way(source, plan, weight, groups)
        if isinstance(chosen, Gathered):
            return "taps" if chosen.taps_of else "image" if chosen.crop else "window"
        if isinstance(chosen, Paired):
            return "across" if chosen.across else "pairs"
        return "depthwise" if isinstance(chosen, Depthwise) else chosen

    if build.library_is_there():
        assert way(2, 7, 8) == way(8, 3, 8) == "depthwise"
        assert way(1, 3, 1) == way(2, 3, 2, 16) == way(2, 3, 1, 8, 0.1) == "pairs"
        assert way(8, 3, 1) == "across" and way(8, 3, 1, 8, 0.1) == "window"
    monkeypatch.setattr(build, "library", lambda: None)
    assert {way(1, 3, 1), way(8, 3, 1), way(2, 7, 8)} == {"taps", "window", "image"}
    assert way(1, 3, 2, 16) == way(2, 3, 2, 48) == "taps" != way(2, 3, 2, 16)
