"""Steps replayed as a CUDA graph: what of it can be seen without a GPU, and all of it where there is one."""

import copy
import functools
import warnings
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import timm
import torch
from tape import Tape
from torch import nn
from torch.func import functional_call

from convspark import SparK
from convspark.model.jointly import Jointly
from convspark.runs import graphs
from convspark.runs.graphs import Graphed
from convspark.runs.optimizer import build_optimizer, parameter_groups, set_rates
from convspark.sparse import PatchGrid
from convspark.sparse.faster import registered


def spark(name="resnet10t", **options):
    torch.manual_seed(0)
    return SparK(timm.create_model(name, **options), image_size=64, mask_ratio=0.5, decoder_width=64, prove=False)


@pytest.fixture
def by_tape(monkeypatch):
    """Records and replays on a CPU."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(graphs, "recording", lambda tape, *_: tape)
    monkeypatch.setattr(Graphed, "_may_replay", lambda *_: True)


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
        self.what, self.calls, self.seen = what, 0, {"losses": [0.0]}
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        self.last = x.mean((0, 2, 3)) * self.weight  # computed anew in each step, and in each replay
        if self.what == "draws random numbers on the host":
            x = x * torch.rand(()).item()
        elif self.what == "counts its calls":
            self.calls += 1
        elif self.what == "counts its calls in a list":
            self.seen["losses"].append(1.0)
        elif self.what == "makes the host wait for the device" and x.sum() > 0:
            x = x + 1
        elif self.what == "replaces tensors that it keeps from step to step":
            self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3))
        return (nn.functional.dropout(x).mean((0, 2, 3)) * self.weight).sum()


@pytest.mark.parametrize(
    "what",
    [
        "draws random numbers on the host",
        "counts its calls",
        "counts its calls in a list",
        "replaces tensors that it keeps from step to step",
        "",
    ],
)
def test_what_a_recording_would_not_repeat_is_found(what, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(nn.functional, "dropout", lambda x: x)  # on CPUs it draws on the host
    model = Odd(what)
    with graphs._watched(model) as reasons:
        model(torch.ones(2, 3, 4, 4))
    assert reasons == ([what.removesuffix(" in a list")] if what else [])


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_recording_that_fails_leaves_the_device_as_it_was(has_ended, monkeypatch):
    did = []

    @contextmanager
    def graph(graph, pool, stream, mode):
        yield
        raise RuntimeError("what was recorded is not allowed")  # and leaves the stream as it is

    @contextmanager
    def on_stream(stream):
        try:
            yield
        finally:
            did.append("stream")

    def end(device, pool):
        if has_ended:
            raise RuntimeError("not currently recording")
        did.append(("end", device, pool))

    generator = SimpleNamespace(clone_state=lambda: "clone", graphsafe_set_state=lambda state: did.append(state))
    monkeypatch.setattr(graphs, "_stream", lambda device: SimpleNamespace(device_index=1))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "default_generators", [None, generator])
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: did.append(("release", device, pool)))
    with pytest.raises(RuntimeError, match="not allowed"), graphs.recording(None, torch.device("cuda", 1)):
        pass
    ended = [] if has_ended else [("end", 1, (0, 7)), ("release", 1, (0, 7))]
    assert did == ["stream", *ended, "clone"]


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


@pytest.mark.parametrize(("p", "places"), [(0.5, [None, ((0, 2, 4),), ((2, 2, 4),)]), (0.0, [None])])
def test_passes_are_recorded_apart_where_what_they_draw_follows_from_their_part(p, places):
    """An image gets what it would get in the whole batch."""
    graphed = Graphed(lambda images, grid: nn.functional.dropout(torch.ones(2, 3), p).sum(), nn.Identity())
    images = SimpleNamespace(device=torch.device("cuda"), shape=(2, 3), stride=tuple, dtype=torch.float32)
    grid = PatchGrid.random(2, (2, 2), 0.5)
    for part in ((0, 2, 4), (0, 2, 4), (2, 2, 4))[: len(places)]:
        with Jointly(*part):
            graphed(images, grid)
    assert [place for _, place in graphed._calls] == places


def test_more_passes_than_are_recorded_apart_are_not_recorded_at_all():
    """Some of them replayed would take the memory of as many steps, and the others theirs beside it."""
    images = SimpleNamespace(device=torch.device("cuda"), shape=(2, 3), stride=tuple, dtype=torch.float32)
    grid = PatchGrid.random(2, (2, 2), 0.5)
    for passes, p, recorded in ((4, 0.5, True), (5, 0.5, False), (5, 0.0, True)):
        drop = functools.partial(nn.functional.dropout, torch.ones(2, 3), p)
        graphed = Graphed(lambda images, grid, drop=drop: drop().sum(), nn.Identity(), passes)
        with Jointly(0, 2, 2 * passes):
            graphed(images, grid)
        assert (graphed.why_not is None) == recorded


def test_recordings_are_let_go_when_steps_are_no_longer_replayed():
    graphed = Graphed(lambda images, grid: images.sum(), nn.Identity())
    graphed._recorded["a shape"] = recorded = nn.Identity()
    memory = weakref.ref(recorded)
    del recorded
    assert graphed.is_recorded
    graphed._leave("no memory is left")
    assert memory() is None and not graphed.is_recorded


def test_a_step_after_a_recording_that_failed_has_the_memory_of_that(by_tape):
    """What it had computed is held by its exception."""
    model, computed, held = nn.Linear(3, 3), [], []

    def loss(images, grid):
        out = model(images)
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            computed.append(weakref.ref(out))
            raise torch.OutOfMemoryError("CUDA out of memory")
        held.extend(one() for one in computed)
        return out.sum()

    graphed = Graphed(loss, model)
    graphed._calls[graphs._shape_of(torch.ones(2, 3), PatchGrid.random(2, (2, 2), 0.5)), None] = 2
    graphed(torch.ones(2, 3), PatchGrid.random(2, (2, 2), 0.5))
    assert held == [None] and graphed.why_not == "CUDA out of memory"


@pytest.mark.parametrize("passes", [1, 3])
def test_gradients_of_a_pass_have_the_bits_of_one_that_is_launched(passes, by_tape):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 5)).bfloat16()
    own = copy.deepcopy(model)
    graphed = Graphed(lambda images, grid: model(images).float().square().mean(), model, passes)
    for seed in range(4):
        images = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)).bfloat16()
        (graphed(images, PatchGrid.random(2, (2, 2), 0.5)) / passes).backward()
        (own(images).float().square().mean() / passes).backward()
    assert graphed.is_recorded
    assert all(torch.equal(one.grad, two.grad) for one, two in zip(model.parameters(), own.parameters(), strict=True))


def test_replayed_steps_have_the_bits_of_steps_as_they_are_under_autocast(monkeypatch, by_tape):
    """A parameter that is used twice, as the biases of the lean decoder's projections, is cast once: what its uses give
    is summed in bfloat16."""
    monkeypatch.setattr(registered(), "convolutions", [])  # those of CPUs ask how many pairs are visible
    model = spark("test_resnet").train()
    own = copy.deepcopy(model)
    graphed = Graphed(lambda images, grid: model(images, grid).loss, model)
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        images, grid = torch.randn(8, 3, 64, 64, generator=draw), PatchGrid.random(8, (2, 2), 0.5, generator=draw)
        own.load_state_dict(model.state_dict())  # a GPU would compute nothing as it records
        with torch.autocast("cpu", torch.bfloat16):
            losses = graphed(images, grid), own(images, grid).loss
        for loss in losses:
            loss.backward()
        assert torch.equal(*losses)
        pairs = zip(model.named_parameters(), own.parameters(), strict=True)
        assert not [name for (name, one), two in pairs if one.grad is not None and not torch.equal(one.grad, two.grad)]
        model.zero_grad()
        own.zero_grad()
    assert graphed.is_recorded


def test_what_a_network_computes_in_float32_goes_back_in_float32_under_autocast(by_tape):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(16, 16))
    model, expected = nn.ParameterList([weight]), weight.detach().clone().requires_grad_()

    def loss_of(weight):
        with torch.autocast("cpu", enabled=False):
            return (images @ weight).sin().sum()

    graphed = Graphed(lambda images, grid: loss_of(model[0]), model)
    images = torch.randn(8, 16)
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            losses = graphed(images, PatchGrid.random(2, (2, 2), 0.5)), loss_of(expected)
        for loss in losses:
            loss.backward()
    assert graphed.is_recorded and torch.equal(weight.grad, expected.grad)


def test_a_parameter_that_another_one_replaces_is_recorded_anew(by_tape):
    linear = nn.Linear(3, 3)
    graphed = Graphed(lambda images, grid: linear(images).square().sum(), linear)
    for seed in range(6):
        if seed == 4:
            linear.weight = nn.Parameter(torch.ones(3, 3))
        linear.zero_grad()
        images = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        loss = graphed(images, PatchGrid.random(2, (2, 2), 0.5))
        loss.backward()
        expected = linear(images).square().sum()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(linear.weight.grad, torch.autograd.grad(expected, linear.weight)[0])
    assert graphed.is_recorded


def test_a_parameter_that_a_network_also_keeps_elsewhere_has_all_of_its_gradient(by_tape):
    linear = nn.Linear(3, 3)
    own, weight = copy.deepcopy(linear), linear.weight

    def loss_of(layer, tied):
        return lambda images, grid: (layer(images) @ tied).square().sum()

    graphed = Graphed(loss_of(linear, weight), linear)
    for seed in range(4):
        images = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        graphed(images, PatchGrid.random(2, (2, 2), 0.5)).backward()
        loss_of(own, own.weight)(images, None).backward()
        torch.testing.assert_close(weight.grad, own.weight.grad)
    assert "keeps a parameter" in graphed.why_not


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_a_recording_keeps_nothing_of_its_own_images_and_mask(name, monkeypatch, by_tape):
    monkeypatch.setattr(registered(), "convolutions", [])  # those of CPUs ask how many pairs are visible
    model = spark(name).train()
    other = copy.deepcopy(model)
    recorded = None
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        images, grid = torch.randn(3, 3, 64, 64, generator=draw), PatchGrid.random(3, (2, 2), 0.5, draw)
        expected = other(images, grid).loss
        expected.backward()
        if seed < 2:  # plans are made
            model(images, grid).loss.backward()
        else:
            if recorded is None:
                before = [buffer.clone() for buffer in model.buffers()]
                recorded = graphs._Recorded(graphs._Calling(lambda x, grid: model(x, grid).loss, model), images, grid)
                for buffer, value in zip(model.buffers(), before, strict=True):
                    buffer.copy_(value)  # a GPU computes nothing as it records
            loss = graphs._Replayed.apply(recorded, images, grid.cells, *recorded.parameters)
            loss.backward()
            torch.testing.assert_close(loss, expected)
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad)
    for one, two in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@needs_gpu
@pytest.mark.parametrize(
    "what",
    [
        "draws random numbers on the host",
        "counts its calls",
        "makes the host wait for the device",
        "replaces tensors that it keeps from step to step",
        "",
    ],
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
        images, grid = torch.randn(2, 3, 8, 8).to(device), PatchGrid.random(2, (2, 2), 0.5, device=device)
        torch.manual_seed(number)
        loss = graphed(images, grid)
        torch.manual_seed(number)
        torch.testing.assert_close(loss, model(images))
    assert graphed.is_recorded


@needs_gpu
def test_after_a_recording_that_failed_steps_go_on_as_they_are():
    class OnTheWayBack(torch.autograd.Function):
        """Makes the host wait, but not while it is watched."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, slope):
            return slope if slope.sum() > 0 else -slope

    model, stream = Odd("").cuda().train(), torch.cuda.current_stream()
    graphed = Graphed(lambda images, grid: OnTheWayBack.apply(model(images)), model)
    for _ in range(5):
        graphed(torch.randn(2, 3, 8, 8, device="cuda"), PatchGrid.random(2, (2, 2), 0.5, device="cuda")).backward()
    assert graphed.why_not and not graphed.is_recorded
    assert torch.cuda.current_stream() == stream
