"""Convolutions and poolings over random grids and settings, against the dense op on the zero-filled map."""

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from convspark.errors import NotExactError
from convspark.sparse import PatchGrid, compiled, gather, scatter
from convspark.sparse.rows import gather_plainly, scatter_sums

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
    found = scatter(patches)
    expected = torch.where(
        whole_mask(visible, [n // h for n, h in zip(dense.shape[2:], visible.shape[1:], strict=True)]), dense, 0
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    variables = [*(module.parameters() if module else [])]
    if not visible.any():
        return
    ours = torch.autograd.grad((found * weight).sum(), [sparse_in, *variables])
    truth = torch.autograd.grad((expected * weight).sum(), [dense_in, *variables])
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@PROPERTY
@given(
    grids(),
    st.sampled_from(["windows", "images", "crops", "taps"]),
    st.tuples(st.integers(-5, 5), st.integers(-5, 5)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from(["constant", "replicate"]),
    st.sampled_from([1, 3]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.sampled_from([3, 20]),
    st.sampled_from([0, 7]),
    st.booleans(),
)
@example(SINGLE, "images", (-2, 0), (1, 1), "constant", 1, torch.float32, 3, 7, True)  # images cut away altogether
def test_gathering_is_gathering_by_index(drawn, kind, start, size, fold, groups, dtype, width, outside, by_kernel):
    """By the compiled kernel or by bags and their inverse, both ways; whole numbers make the sums exact."""
    visible, patch, generator = drawn
    grid, patch = PatchGrid(visible), tuple(patch)
    if kind == "windows":
        table = grid.windows(patch, start, size, fold)
    elif kind == "taps":
        table = grid.taps(patch, start, size, (1, 1), (1, 1), fold)
    elif kind == "images":
        before = tuple(max(s, -p) for s, p in zip(start, patch, strict=True))
        table = grid.images(patch, before, tuple(n - 1 for n in size), fold)
    else:
        table = grid.crops(patch)
    if not by_kernel:
        table.near = table.inverse_near = None
    rows = torch.randint(-9, 9, (table.sources, width * groups), generator=generator).to(dtype)
    special = torch.tensor([0, outside], dtype=dtype).repeat_interleave(table.spare)
    every = torch.cat([rows, special[:, None].expand(-1, width * groups)])
    expected = every[table.index.long()].unflatten(1, (groups, width)).transpose(0, 1).flatten(0, 1)
    found = gather_plainly(rows, table, outside, groups)
    assert found.dtype == dtype and torch.equal(found, expected)
    slopes = torch.randint(-1, 2, found.shape, generator=generator).to(dtype)  # bfloat16 is exact up to 256
    by_row = slopes.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1)
    sums = torch.zeros_like(every).float().index_add_(0, table.index.long(), by_row.float()).to(dtype)
    assert torch.equal(scatter_sums(slopes, table, groups), sums[: table.sources])


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
        patched.setattr(f"convspark.sparse.functions.conv.{limit}", value)


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
            patched.setattr(compiled, "library", lambda: None)
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
            patched.setattr(compiled, "library", lambda: None)
        check(conv, visible, patch, channels, generator, conv)


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


@PROPERTY
@given(grids(), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.booleans(), st.integers(1, 2))
def test_max_pooling(drawn, kernel, stride, padding, ceil_mode, dilation):
    visible, patch, generator = drawn
    assume(padding <= kernel // 2)
    sides = [h * p for h, p in zip(visible.shape[1:], patch, strict=True)]
    assume(all((kernel - 1) * dilation < n + 2 * padding for n in sides))
    pool = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    check(pool, visible, patch, 2, generator)


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
    check(pool, visible, patch, 2, generator)


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
    from convspark.sparse.functions.conv import _looked_at, _way

    def way(patch, kernel, groups, channels=8, mask_ratio=0.5):
        grid = PatchGrid.random(2, (4, 4), mask_ratio)
        x = gather(torch.randn(2, channels, 4 * patch, 4 * patch), grid)
        weight = torch.empty(channels, channels // groups, kernel, kernel)
        return _way(*_looked_at(x, weight, 1, kernel // 2, 1), weight, groups)

    if compiled.library_is_there():
        assert way(2, 7, 8) == way(8, 3, 8) == "depthwise"
        assert way(1, 3, 1) == way(2, 3, 2, 16) == way(2, 3, 1, 8, 0.1) == "pairs"
        assert way(8, 3, 1) == "across" and way(8, 3, 1, 8, 0.1) == "window"
    monkeypatch.setattr(compiled, "library", lambda: None)
    assert {way(1, 3, 1), way(8, 3, 1), way(2, 7, 8)} == {"taps", "window", "image"}
    assert way(1, 3, 2, 16) == way(2, 3, 2, 48) == "taps" != way(2, 3, 2, 16)
