"""Runs whose numbers overflow, in the loss, its gradients or the step: what is kept is finite, and the step is told."""

import re

import pytest
import torch
from torch import nn

from convspark.errors import DivergedError
from convspark.pretraining.command import pretrain
from convspark.report.overview import runs
from convspark.runs import callbacks
from convspark.runs import module as runs_module
from convspark.runs.schedule import Schedule


def floats(path):
    """All numbers of a checkpoint that are trained, averaged or of an optimiser."""
    content = torch.load(path, weights_only=True)
    states = [content["state_dict"], *(state for o in content["optimizer_states"] for state in o["state"].values())]
    return [t for state in states for t in state.values() if isinstance(t, torch.Tensor) and t.is_floating_point()]


def step_of(error):
    return int(re.search(r"numbers? at step (\d+) of", str(error.value))[1])


@pytest.mark.parametrize("options", [{"optimizer": "lamb"}, {"optimizer": "adamw"}, {"precision": "bf16"}], ids=str)
def test_a_rate_far_too_high(options, pictures, small, tmp_path, monkeypatch):

    saved = []
    save = callbacks.Checkpoints._save
    monkeypatch.setattr(
        callbacks.Checkpoints, "_save", lambda self, trainer, *rest: (save(self, trainer, *rest), saved.append(trainer))
    )
    settings = small | {"epochs": 30, "size": 32, "learning_rate": 1e11, "warmup_epochs": 0.0, "picture_epochs": 0}
    settings |= {"checkpoint_minutes": 1e-9, "patch_size": 8, "mask_ratio": 0.5, "batch_size": 25} | options
    run = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"no longer .*finite number") as error:
        pretrain(str(pictures), out=str(run), **settings)
    step = step_of(error)
    (line,) = runs(str(tmp_path)).runs
    assert (line.state, line.why) == ("diverged", str(error.value))
    assert step == len(saved) + 1  # each step before was good, and kept
    kept = [path for path in (run / "checkpoints").glob("*.ckpt")]
    assert bool(kept) == (step > 1)
    for path in kept:
        assert all(value.isfinite().all() for value in floats(path))
    if kept:
        with pytest.raises(DivergedError) as again:
            pretrain(resume=str(run))
        assert step_of(again) == step


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_that_overflow_behind_a_finite_loss(accumulate, pictures, small, tmp_path, monkeypatch):
    """Stopped right after the step, too, nothing of it is kept."""

    overflow_at = 3  # step, from 1
    backward = runs_module.TrainingModule.backward

    def overflowing(self, loss, *args, **kwargs):
        backward(self, loss, *args, **kwargs)
        if self.global_step + 1 == overflow_at:
            next(p for p in self.parameters() if p.grad is not None).grad.fill_(torch.inf)

    monkeypatch.setattr(runs_module.TrainingModule, "backward", overflowing)
    settings = small | {"accumulate": accumulate, "checkpoint_minutes": 1e-9, "picture_epochs": 0}
    with pytest.raises(DivergedError, match=r"the weights are no longer finite numbers at step 3 of 8"):
        pretrain(str(pictures), out=str(tmp_path / "run"), **settings)
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 2
    assert all(value.isfinite().all() for value in floats(tmp_path / "run" / "checkpoints" / "last.ckpt"))


def test_the_last_step_of_all_is_looked_at_too(pictures, small, tmp_path, monkeypatch):

    step = runs_module.TrainingModule.optimizer_step

    def overflowing(self, *args, **kwargs):
        step(self, *args, **kwargs)
        if self.trainer.fit_loop.epoch_loop._batches_that_stepped == 7:
            with torch.no_grad():
                next(self.parameters()).fill_(torch.nan)

    monkeypatch.setattr(runs_module.TrainingModule, "optimizer_step", overflowing)
    with pytest.raises(DivergedError, match=r"the weights are no longer finite numbers at step 8 of 8"):
        pretrain(str(pictures), out=str(tmp_path / "run"), **small, picture_epochs=0)
    assert not (tmp_path / "run" / "export").exists()


def test_infinities_that_a_network_begins_with_are_its_own_and_those_of_statistics_are_not():
    module = runs_module.TrainingModule(lambda: torch.optim.SGD([], 0.0), Schedule(0.1, 10, 1, (0.0, 0.0)))
    module.network = nn.BatchNorm1d(4)
    module.network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    module.network.register_buffer("scratch", torch.tensor([1.0]), persistent=False)
    module.on_train_start()
    module.network.scratch.fill_(torch.nan)
    assert module._weights_are_finite()
    module.network.running_var[2] = torch.inf
    assert not module._weights_are_finite()
    module.network.running_var[2] = 3e38  # its square is too large for float32
    assert module._weights_are_finite()
    with torch.no_grad():
        module.network.weight[0] = torch.nan
    assert not module._weights_are_finite()
