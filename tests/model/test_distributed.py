"""Two processes against one with the joint batch: statistics, losses and gradients."""

import datetime

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from convspark import PatchGrid, SparK
from convspark.sparse import gather

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

WORLD, PATIENCE = 2, datetime.timedelta(seconds=240)
TINY = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}


class Gated(nn.Module):
    """A stem and a squeeze-and-excite with a batch norm on one value an image."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Sigmoid())
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16, momentum=None), nn.ReLU())

    def forward(self, x):
        x = self.stem(x)
        return self.down(x * self.squeeze(x))


def networks():
    torch.manual_seed(0)
    return {
        "resnet": timm.create_model("resnet10t", num_classes=0, **TINY).double(),
        "convnext": timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)).double(),
        "gated": Gated().double(),
        "zero": timm.create_model("resnet10t", num_classes=0, **TINY).double(),
    }


def jointly():
    """Images (8, 3, 96, 96), and visible patches: 4 of 9 in each."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 96, 96, generator=generator, dtype=torch.float64)
    side = PatchGrid.random(8, (3, 3), 0.6, generator).visible
    return images, side


def unequal(visible):
    """The second half shows one patch alone."""
    visible = visible.clone()
    visible[4:] = False
    visible[5, 1, 2] = True
    return visible


def model_of(network, name=""):
    encoding = "zero" if name == "zero" else "sparse"
    patch = 4 if isinstance(network, Gated) else 32
    options = {"patch_size": 32 if patch == 4 else None, "decoder_width": 64, "encoding": encoding}
    model = SparK(network, image_size=96, prove=False, **options)
    return model.double()


def step(model, images, visible):
    """Loss, gradients and buffers of one step."""
    loss = model(images, PatchGrid(visible)).loss
    loss.backward()
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    gradients = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, dict(plain.named_buffers())


def part(tensor, rank, split):
    return tensor[:split] if rank == 0 else tensor[split:]


CASES = [(name, *how) for name in networks() for how in ((4, "equal"), (4, "unequal"), (3, "unequal"))]


def batch(visible_of):
    images, visible = jointly()
    return images, unequal(visible) if visible_of == "unequal" else visible


def norm_alone(images, grid):
    """One batch norm, without the model around it; a process may have nothing to show."""
    norm = nn.BatchNorm2d(3).double()
    out = norm(gather(images, grid)).values
    (out * torch.arange(out.numel(), dtype=torch.float64).view_as(out)).sum().backward()
    return out.detach(), norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var


def half_empty(empty):
    images, visible = jointly()
    visible = visible.clone()
    visible[0 if empty == "both" else 4 :] = False
    return images, visible


def work(rank, folder, store):
    """All cases in one go: most of the time goes into starting processes.

    Args:
        store: where the processes find each other; the number of its port in the one that does not hold it.
    """
    torch.set_num_threads(1)
    if isinstance(store, int):
        store = dist.TCPStore("127.0.0.1", store, WORLD)
    # Its number is in the name of a group, and attempts to meet that failed, in other tests, count as well.
    dist.distributed_c10d._world.group_count = 0
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=PATIENCE)
    results = {}
    try:
        for case in CASES:
            name, split, visible_of = case
            images, visible = batch(visible_of)
            model = DistributedDataParallel(model_of(networks()[name], name))
            results[case] = step(model, part(images, rank, split), part(visible, rank, split))
        for empty in ("second", "both"):
            images, visible = half_empty(empty)
            grid = PatchGrid(part(visible, rank, 4)).across(dist.group.WORLD)
            results[empty] = norm_alone(part(images, rank, 4), grid)
        torch.save(results, f"{folder}/results{rank}")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes computed, by case: this one, and another."""
    folder = tmp_path_factory.mktemp("processes")
    store = dist.TCPStore("127.0.0.1", 0, WORLD, is_master=True, wait_for_workers=False)
    other = mp.get_context("spawn").Process(target=work, args=(1, str(folder), store.port))
    other.start()
    try:
        work(0, str(folder), store)
        other.join(120)
        assert other.exitcode == 0
    finally:
        other.kill()
    return [torch.load(folder / f"results{rank}") for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_two_processes_take_the_step_of_one_with_the_joint_batch(processes, case):
    name, _, visible_of = case
    parts = [results[case] for results in processes]
    loss, gradients, buffers = step(model_of(networks()[name], name), *batch(visible_of))

    assert torch.isclose(sum(p[0] for p in parts) / WORLD, loss, rtol=1e-12)
    largest = max(g.abs().max() for g in gradients.values())
    for _, theirs, statistics in parts:
        assert theirs.keys() == gradients.keys()
        for key, expected in gradients.items():
            assert (theirs[key] - expected).abs().max() <= 1e-9 * largest, key
        for key, expected in buffers.items():
            torch.testing.assert_close(statistics[key], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("empty", ["second", "both"])
def test_a_process_that_shows_nothing_takes_part(processes, empty):
    first, second = (results[empty] for results in processes)
    assert second[0].numel() == 0 and not second[1].any()
    images, visible = half_empty(empty)
    expected = norm_alone(images[:4], PatchGrid(visible[:4]))
    torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(second[3:], expected[3:])


def test_one_process_and_evaluation_wait_for_nobody():
    model = model_of(networks()["gated"])
    images, visible = jointly()
    assert model(images, PatchGrid(visible)).features[0].grid.process_group is None
