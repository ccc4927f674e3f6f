"""Whole runs whose steps are replayed, by a tape in place of a CUDA graph where there is no GPU."""

import csv
from contextlib import contextmanager

import pytest
import torch
from tape import Tape

from convspark.pretraining.command import pretrain
from convspark.pretraining.plan import Plan
from convspark.runs import graphs
from convspark.runs.graphs import Graphed
from convspark.sparse.faster import registered


@pytest.fixture
def on_tape(monkeypatch):
    """Replays every run's steps; what was recorded, and how often each was replayed."""
    recorded, module = [], Plan.module

    class OnTape(Graphed):
        def _may_replay(self, images, grid):
            return self.model.training

        def __call__(self, images, grid):
            loss = super().__call__(images, grid)
            recorded[:] = self._recorded.values()
            assert self.why_not is None
            return loss

    def replayed(plan):
        made = module(plan)
        made.step_loss = OnTape(made.step_loss, plan.model, plan.numbers.accumulate)
        return made

    @contextmanager
    def recording(tape, *_):
        buffers = [(buffer, buffer.clone()) for buffer in OnTape.recorded_model.buffers()]
        with tape:
            yield
        for buffer, before in buffers:  # a GPU computes nothing as it records
            buffer.copy_(before)

    made = graphs._Recorded.__init__

    def record(self, calling, *rest):
        OnTape.recorded_model = calling.model
        made(self, calling, *rest)

    monkeypatch.setattr(graphs._Recorded, "__init__", record)
    monkeypatch.setattr(Plan, "module", replayed)
    monkeypatch.setattr(graphs, "recording", recording)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    return recorded


def figures(run):
    with (run / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    names = ("step", "train_loss", "held_out_loss", "gradient_norm", "clipped_share")
    return [[float(line[name]) for name in names] for line in lines]


@pytest.mark.parametrize(
    "more", [{}, {"device_batch_size": 4, "batch_size": 8}, {"model": "test_convnext"}, {"precision": "bf16"}], ids=str
)
def test_a_run_whose_steps_are_replayed_is_the_same_run(pictures, small, tmp_path, more, monkeypatch, on_tape):
    monkeypatch.setattr(registered(), "convolutions", [])  # those of CPUs ask how many pairs are visible
    settings = {**small, "epochs": 4, "held_out": 0.2, "watch_epochs": 2, **more}
    pretrain(str(pictures), out=str(tmp_path / "replayed"), **settings)
    assert sum(one.replays for one in on_tape) >= 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Graphed, "__call__", lambda self, images, grid: self.loss(images, grid))
        pretrain(str(pictures), out=str(tmp_path / "launched"), **settings)
    replayed, launched = figures(tmp_path / "replayed"), figures(tmp_path / "launched")
    assert len(replayed) == 4
    for one, other in zip(replayed, launched, strict=True):
        assert one == other
    ours, theirs = (
        torch.load(tmp_path / run / "checkpoints/last.ckpt")["state_dict"] for run in ("replayed", "launched")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_that_goes_on_is_replayed_again(pictures, small, stopping, tmp_path, monkeypatch, on_tape):
    monkeypatch.setattr(registered(), "convolutions", [])
    settings = {**small, "epochs": 4}
    pretrain(str(pictures), out=str(tmp_path / "whole"), **settings)
    with stopping(7):
        pretrain(str(pictures), out=str(tmp_path / "stopped"), **settings)
    on_tape.clear()
    pretrain(resume=str(tmp_path / "stopped"))
    assert sum(one.replays for one in on_tape) >= 3
    for one, other in zip(figures(tmp_path / "stopped"), figures(tmp_path / "whole"), strict=True):
        assert one == other
