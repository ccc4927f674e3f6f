"""Seeds and masks are computed from counters, not drawn one after the other."""

import pytest
import torch

from convspark.model.spark import SparK
from convspark.pretraining import module
from convspark.pretraining import pictures as drawing
from convspark.pretraining.command import pretrain
from convspark.pretraining.module import counted_grid
from convspark.pretraining.plan import Plan, make_plan
from convspark.pretraining.settings import PretrainSettings
from convspark.pretraining.watch import Watch
from convspark.runs.graphs import Graphed
from convspark.runs.processes import Processes
from convspark.runs.run import Run
from convspark.seeds import Use, counted_seed


def test_seeds_differ_in_every_word_and_fit_a_generator():
    words = [(0, Use.MASK, step) for step in range(1000)] + [
        (1, Use.MASK, 0),
        (0, Use.HELD_OUT_MASK, 0),
        (0, Use.MASK, 0, 0),
    ]
    seeds = {counted_seed(*key) for key in words}
    assert len(seeds) >= len(words) - 1  # trailing zeros may count for nothing
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_masks_are_a_function_of_their_words(small):
    import timm

    model = SparK(timm.create_model("test_resnet"), image_size=128, decoder_width=32, prove=False)
    images = torch.zeros(4, 3, 128, 128)
    before = torch.get_rng_state()
    first, again, other = (counted_grid(model, images, 0, Use.MASK, step).visible for step in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.sum((1, 2)).tolist() == [6] * 4  # round(16 * 0.4)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(before, torch.get_rng_state())


def test_every_step_has_a_mask_of_its_own_and_held_out_images_always_the_same(pictures, small, tmp_path, monkeypatch):
    asked = []

    def record(model, images, *words, part=None):
        asked.append(words)
        return counted_grid(model, images, *words, part=part)

    for asks in (module, drawing):
        monkeypatch.setattr(asks, "counted_grid", record)
    pretrain(str(pictures), out=str(tmp_path / "run"), **{**small, "seed": 7})
    masks = [words for words in asked if words[1] == Use.MASK]
    assert [words[:3] for words in masks] == [(7, Use.MASK, step) for step in range(8)]
    assert [words for words in asked if words[1] == Use.HELD_OUT_MASK] == [(7, Use.HELD_OUT_MASK, 0)] * 4


@pytest.mark.parametrize(("asked", "processes", "replayed"), [(None, 1, True), (None, 2, False), (True, 2, True)])
def test_steps_are_replayed_on_a_single_gpu(pictures, asked, processes, replayed):
    settings = PretrainSettings(str(pictures), model="test_resnet", size=64, epochs=1, cuda_graph=asked)
    plan = make_plan(Run(settings, Processes(0, processes, 0, processes)))
    assert not isinstance(plan.module().step_loss, Graphed)  # on a CPU
    plan.device = torch.device("cuda")
    assert isinstance(plan.module().step_loss, Graphed) == replayed


def test_what_is_measured_takes_the_memory_of_a_recording(monkeypatch, caplog):
    import timm

    model = SparK(timm.create_model("test_resnet"), image_size=64, decoder_width=32, prove=False)
    measuring = module.PretrainModule(model, lambda: None, None)
    measuring.step_loss, images = Graphed(measuring.step_loss, model), torch.randn(2, 3, 64, 64)
    forward = model.forward

    def short_of_memory(images, grid):
        if len(images) > 2 or isinstance(measuring.step_loss, Graphed):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(images, grid)

    monkeypatch.setattr(model, "forward", short_of_memory)
    with torch.no_grad():
        assert measuring.measure(images, 0).images == 2 and "too little memory" in caplog.text
        with pytest.raises(torch.OutOfMemoryError):  # nothing is left to let go
            measuring.measure(images.repeat(2, 1, 1, 1), 0)


@pytest.mark.parametrize("what", ["reconstruct", "_measure"])
def test_what_looks_at_the_network_between_epochs_takes_it_too(what, pictures, small, tmp_path, monkeypatch, caplog):
    short = []

    def replayed(plan):
        made = plan_module(plan)
        made.step_loss = Graphed(made.step_loss, plan.model)
        short.append(made)
        return made

    def short_of_memory(self, *rest):
        if short and short[0].global_step and isinstance(short[0].step_loss, Graphed):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return looks(self, *rest)

    plan_module, owner = Plan.module, SparK if what == "reconstruct" else Watch
    looks = getattr(owner, what)
    monkeypatch.setattr(Plan, "module", replayed)
    monkeypatch.setattr(owner, what, short_of_memory)
    pretrain(str(pictures), out=str(tmp_path / "run"), **{**small, "epochs": 1, "held_out": 0.2})
    assert not isinstance(short[0].step_loss, Graphed) and "too little memory" in caplog.text


def test_a_run_leaves_the_global_generator_alone(pictures, small, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")  # a job of several tasks whose script starts a run: Lightning refuses that
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    pretrain(str(pictures), out=str(tmp_path / "run"), **{**small, "epochs": 1})
    assert torch.equal(torch.rand(3), expected)
