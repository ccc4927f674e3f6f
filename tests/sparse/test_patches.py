"""Grids, gather and scatter, against plain slicing."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from convspark import PatchGrid, SparK, VisiblePatches, gather, scatter
from convspark.errors import UsageError
from convspark.sparse.faster import registered
from convspark.sparse.plans import Plan


def slices(visible, patch):
    """Each visible patch in order: image and slices."""
    for place in visible.nonzero().tolist():
        yield place[0], tuple(slice(i * p, (i + 1) * p) for i, p in zip(place[1:], patch, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 2**20),
)
def test_gather_cuts_and_scatter_puts_back(axes, batch, channels, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    shape, patch = zip(*axes, strict=True)
    visible = torch.rand(batch, *shape, generator=generator) < 0.5
    images = torch.randn(batch, channels, *(h * p for h, p in axes), generator=generator).to(dtype)
    x = gather(images, PatchGrid(visible))
    assert isinstance(x, VisiblePatches) and x.dtype == dtype
    expected = torch.zeros_like(images)
    for row, (image, where) in enumerate(slices(visible, patch)):
        assert torch.equal(x.values[row], images[(image, slice(None), *where)])
        expected[(image, slice(None), *where)] = images[(image, slice(None), *where)]
    assert torch.equal(scatter(x), expected)
    fill = torch.randn(1, channels, *(1 for _ in axes), generator=generator).to(dtype)
    mask = torch.zeros_like(images, dtype=torch.bool)
    for image, where in slices(visible, patch):
        mask[(image, slice(None), *where)] = True
    assert torch.equal(scatter(x, fill), torch.where(mask, images, fill))
    assert torch.equal(scatter(x, 7.0), torch.where(mask, images, 7.0))


def test_gradients_of_gather_scatter_and_fill():
    visible = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    images = torch.randn(2, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    fill = torch.randn(1, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda i, f: scatter(gather(i, PatchGrid(visible)), f), (images, fill))
        assert check(lambda f: scatter(gather(images.detach(), PatchGrid(visible)), f), fill)


@pytest.mark.parametrize("fill", ["0", None, [1.0, 2.0], torch.ones(3, 1, 1), torch.ones(1, 2, 4, 6)])
def test_what_cannot_fill_masked_patches_is_refused(fill):
    patches = gather(torch.randn(2, 2, 4, 6), PatchGrid(torch.ones(2, 2, 3) > 0))
    with pytest.raises(UsageError, match=r"fill is .*: expected a number, or a tensor of one a channel"):
        scatter(patches, fill)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_do_not_depend_on_the_way_rows_are_copied(dtype):
    """float64 takes another path through the row copy than the other types."""
    grid = PatchGrid(torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(1)) < 0.5)
    images = torch.randint(-8, 8, (3, 4, 12, 16)).double()
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False).double()
    conv.weight.data = torch.randint(-2, 3, conv.weight.shape).double()  # exact in every type
    weight = torch.randint(-2, 3, (grid.num_visible, 4, 4, 4)).double()
    results = []
    for kind in (torch.float64, dtype):
        leaf = images.to(kind).requires_grad_()
        out = conv.to(kind)(gather(leaf, grid))
        (gradient,) = torch.autograd.grad((out.values * weight.to(kind)).sum(), leaf)
        results.append((out.values.double(), gradient.double()))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_random_grid_shows_the_same_number_in_each_image():
    grid = PatchGrid.random(5, (7, 7), 0.6, generator=torch.Generator().manual_seed(3))
    assert grid.visible.flatten(1).sum(1).tolist() == [20] * 5  # round(49 * 0.4), as in the paper
    assert grid.num_visible == 100 and grid.counts().tolist() == [20] * 5
    again = PatchGrid.random(5, (7, 7), 0.6, generator=torch.Generator().manual_seed(3))
    other = PatchGrid.random(5, (7, 7), 0.6, generator=torch.Generator().manual_seed(4))
    assert torch.equal(grid.visible, again.visible) and not torch.equal(grid.visible, other.visible)


def test_random_grid_is_uniform():
    shown = PatchGrid.random(4000, (2, 3), 0.5, generator=torch.Generator().manual_seed(0)).visible.float().mean(0)
    assert ((shown - 0.5).abs() < 5 * (0.25 / 4000) ** 0.5).all()


def test_random_and_explicit_grid_agree():
    grid = PatchGrid.random(3, (4, 2), 0.4, generator=torch.Generator().manual_seed(0))
    same = PatchGrid(grid.visible)
    x = torch.randn(3, 2, 8, 4)
    net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.GroupNorm(1, 2))
    torch.testing.assert_close(net(gather(x, grid)).values, net(gather(x, same)).values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchGrid(torch.ones(2, 2, 2)), "bool tensor"),
        (lambda: PatchGrid.random(2, (2, 2), 1.5), "mask_ratio"),
        (lambda: gather(torch.zeros(2, 3, 5, 4), PatchGrid(torch.ones(2, 2, 2, dtype=torch.bool))), "multiple"),
        (lambda: gather(torch.zeros(1, 3, 4, 4), PatchGrid(torch.ones(2, 2, 2, dtype=torch.bool))), "grid is one of 2"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_nothing_visible_runs_and_changes_nothing():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    before = copy.deepcopy(net.state_dict())
    out = net(gather(torch.randn(2, 3, 8, 8), PatchGrid(torch.zeros(2, 2, 2, dtype=torch.bool))))
    assert torch.equal(out.values, torch.zeros(2, 4, 1, 1))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items() if "running" in key)


def test_what_was_made_of_fake_tensors_is_not_kept():
    def seen_and_seeing():
        copy = PatchGrid.random(2, (2, 2), 0.5).copy(Plan((5, 3), (1, 1), (1, 1), (1, 1), (1, 2), (7, 8)))
        rows = torch.ones(4 * 15, 3)
        return copy.there(rows), copy.back(copy.there(rows))

    with FakeTensorMode():
        assert all(isinstance(tensor, FakeTensor) for tensor in seen_and_seeing())
    assert all(type(tensor) is torch.Tensor for tensor in seen_and_seeing())


def test_two_threads_do_not_disturb_each_other():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.MaxPool2d(3, 2, 1)).double()
    work = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        visible = torch.rand(2, 2 + seed, 3, generator=generator) < 0.5
        work.append((torch.randn(2, 3, 8 * (2 + seed), 24, generator=generator).double(), visible))
    expected = [net(gather(images, PatchGrid(visible))).values for images, visible in work]
    results = [None] * len(work)

    def run(at):
        for _ in range(5):
            results[at] = net(gather(work[at][0], PatchGrid(work[at][1]))).values

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(e, f) for e, f in zip(expected, results, strict=True))


def test_activation_checkpointing_gives_the_same_gradients():
    from torch.utils.checkpoint import checkpoint

    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    grid = PatchGrid(torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(0)) < 0.6)
    plain = torch.autograd.grad(net(gather(images, grid)).values.square().sum(), list(net.parameters()))
    saved = checkpoint(net, gather(images, grid), use_reentrant=False)
    again = torch.autograd.grad(saved.values.square().sum(), list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_describes_itself():
    x = gather(torch.zeros(1, 3, 4, 4), PatchGrid(torch.ones(1, 2, 2, dtype=torch.bool)))
    assert "VisiblePatches(shape=(4, 3, 2, 2)" in repr(x) and "1 images of 2×2 patches" in f"{x}"


def test_what_is_no_tensor_or_no_grid_is_refused_in_words():
    images, mask = torch.randn(2, 3, 8, 8), torch.ones(2, 2, 2, dtype=torch.bool)
    model = SparK(nn.Conv2d(3, 4, 2, 2), image_size=8, patch_size=4, decoder_width=4, prove=False)
    for use in (gather, model):
        with pytest.raises(UsageError, match="grid is a Tensor: expected a PatchGrid, which PatchGrid"):
            use(images, mask)
        with pytest.raises(UsageError, match="images are a ndarray: expected a tensor"):
            use(images.numpy(), PatchGrid(mask))
    with pytest.raises(UsageError, match=r"images of torch\.uint8: expected floats"):
        model(images.byte())
    with pytest.raises(UsageError, match=r"is a list\. torch\.as_tensor"):
        PatchGrid([[[True]]])


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_tables_of_a_grid_go_with_it(kernels, same, monkeypatch):
    """In the midst of training Python looks seldom for circles of objects, and tables are large."""
    if not kernels:
        monkeypatch.setattr(registered(), "sums", [])
        monkeypatch.setattr(registered(), "convolutions", [])
    grid = PatchGrid.random(2, (2, 2)) if same else PatchGrid(torch.eye(2).expand(2, 2, 2).bool())
    images, conv = torch.randn(2, 3, 8, 8, requires_grad=True), nn.Conv2d(3, 4, 3, padding=1)
    gc.collect()
    gc.disable()
    try:
        maps = scatter(nn.functional.avg_pool2d(conv(gather(images, grid)), 3, 1, 1)).sum()
        maps.backward()
        grid, maps = weakref.ref(grid), None
        assert grid() is None
    finally:
        gc.enable()
