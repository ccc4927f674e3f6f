"""Steps replayed as a CUDA graph: what of it can be seen without a GPU, and all of it where there is one."""

import warnings
import weakref

import pytest
import timm
import torch
from torch import nn
from torch.func import functional_call

from convspark import SparK
from convspark.model.jointly import Jointly
from convspark.runs import graphs
from convspark.runs.graphs import Graphed
from convspark.runs.optimizer import build_optimizer, parameter_groups, set_rates
from convspark.sparse import PatchGrid


def spark(name="resnet10t", **options):
    torch.manual_seed(0)
    return SparK(timm.create_model(name, **options), image_size=64, mask_ratio=0.5, decoder_width=64, prove=False)


def test_leaves_of_a_recording_have_the_gradients_of_the_parameters():
    model, images, grid = spark(), torch.randn(2, 3, 64, 64), PatchGrid.random(2, (2, 2), 0.5)
    calling = graphs._Calling(lambda images, grid: model(images, grid).loss, model)
    leaves = {name: p.detach().requires_grad_() for name, p in calling.named_parameters()}
    loss = functional_call(calling, leaves, (images, grid))
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    model(images, grid).loss.backward()
    for one, parameter in zip(gradients, calling.parameters(), strict=True):
        assert (one is None) == (parameter.grad is None)
        if one is not None:
            torch.testing.assert_close(one, parameter.grad)


def test_steps_run_as_they_are_without_a_gpu():
    model = spark()
    graphed = Graphed(lambda images, grid: model(images, grid).loss, model)
    images, grid = torch.randn(2, 3, 64, 64), PatchGrid.random(2, (2, 2), 0.5)
    for _ in range(4):
        torch.testing.assert_close(graphed(images, grid), model(images, grid).loss)
    assert graphed.why_not is None


class Odd(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what, self.calls = what, 0
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        if self.what == "draws random numbers on the host":
            x = x * torch.rand(1).to(x.device)
        elif self.what == "counts its calls":
            self.calls += 1
        elif self.what == "makes the host wait for the device" and x.sum() > 0:
            x = x + 1
        return (nn.functional.dropout(x).mean((0, 2, 3)) * self.weight).sum()


@pytest.mark.parametrize("what", ["draws random numbers on the host", "counts its calls", ""])
def test_what_a_recording_would_not_repeat_is_found(what, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(nn.functional, "dropout", lambda x: x)  # on CPUs it draws on the host
    model = Odd(what)
    with graphs._watched(model) as reasons:
        model(torch.ones(2, 3, 4, 4))
    assert reasons == ([what] if what else [])


def test_that_watching_is_a_prototype_is_not_said_to_the_user(monkeypatch):
    said = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: warnings.warn(said, stacklevel=1))
    with graphs._watched(Odd("")) as reasons:
        pass
    assert not reasons
    with graphs._watched(Odd("")) as reasons:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert reasons == ["makes the host wait for the device"]


def test_passes_that_are_other_parts_of_a_batch_are_recorded_apart():
    """What is drawn for an image follows from its place in the batch."""
    images, grid = torch.randn(2, 3, 64, 64), PatchGrid.random(2, (2, 2), 0.5)
    keys = [graphs._shape_of(images, grid)]
    for first in (0, 2, 2):
        with Jointly(first, 2, 4):
            keys.append(graphs._shape_of(images, grid))
    assert len(set(keys)) == 3 and keys[2] == keys[3]


def test_recordings_are_let_go_when_steps_are_no_longer_replayed():
    graphed = Graphed(lambda images, grid: images.sum(), nn.Identity())
    graphed._recorded["a shape"] = recorded = nn.Identity()
    memory = weakref.ref(recorded)
    del recorded
    assert graphed.is_recorded
    graphed._leave("no memory is left")
    assert memory() is None and not graphed.is_recorded


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@needs_gpu
@pytest.mark.parametrize(
    "what", ["draws random numbers on the host", "counts its calls", "makes the host wait for the device", ""]
)
def test_only_what_a_recording_repeats_is_recorded(what):
    model = Odd(what).cuda().train()
    graphed = Graphed(lambda images, grid: model(images), model)
    for _ in range(5):
        graphed(torch.randn(2, 3, 8, 8).cuda(), PatchGrid.random(2, (2, 2), 0.5, device="cuda")).backward()
    assert graphed.why_not == (f"it {what}" if what else None)


@needs_gpu
@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet10t", {}), ("convnext_atto", {"drop_path_rate": 0.3}), ("efficientnet_b0", {"drop_path_rate": 0.2})],
)
def test_replayed_steps_have_the_bits_of_steps_as_they_are(name, options):
    def train(graph):
        model = spark(name, **options).cuda().train().to(memory_format=torch.channels_last)
        optimizer = build_optimizer(parameter_groups(model, frozenset(f"backbone.{n}" for n in model.untrained)))
        set_rates(optimizer, 1e-3, 0.04)

        def loss(images, grid):
            return model(images, grid).loss

        step = Graphed(loss, model) if graph else loss
        losses, draw = [], torch.Generator().manual_seed(1)
        for seed in range(8):
            images = torch.randn(8, 3, 64, 64, generator=draw).cuda().contiguous(memory_format=torch.channels_last)
            grid = PatchGrid.random(8, (2, 2), 0.5, generator=draw, device="cuda")
            torch.manual_seed(seed)
            with torch.autocast("cuda", torch.bfloat16):
                losses.append(step(images, grid))  # held, as a loop may hold the last step's
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        if graph:
            assert step.why_not is None and step._recorded
        return [loss.item() for loss in losses], [*model.parameters(), *model.buffers()]

    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        (losses, tensors), (others, other_tensors) = train(True), train(False)
    assert losses == others
    assert all(torch.equal(one, other) for one, other in zip(tensors, other_tensors, strict=True))


@needs_gpu
def test_a_step_is_recorded_on_the_device_of_its_images():
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    model = Odd("").to(device).train()
    graphed = Graphed(lambda images, grid: model(images), model)
    for number in range(5):
        torch.manual_seed(number)
        images = torch.randn(2, 3, 8, 8).to(device)
        loss = graphed(images, PatchGrid.random(2, (2, 2), 0.5, device=device))
        torch.manual_seed(number)
        torch.testing.assert_close(loss, model(images))
    assert graphed.is_recorded
