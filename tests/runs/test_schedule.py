"""Rates and decays, against the authors' run and against the ends of the curves."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from convspark.errors import UsageError
from convspark.runs.schedule import Schedule


@pytest.mark.parametrize("name", ["trajectory_resnet", "trajectory_convnext"])
def test_equals_every_step_of_the_authors_run(golden_dir, name):
    with safe_open(golden_dir / f"{name}.safetensors", "np") as file:
        rates, decays = file.get_tensor("output.lr"), file.get_tensor("output.weight_decay")
    schedule = Schedule(0.0032, steps=20, warmup_steps=4)
    np.testing.assert_allclose([schedule.learning_rate(s) for s in range(20)], rates, rtol=1e-14)
    np.testing.assert_allclose([schedule.weight_decay(s) for s in range(20)], decays, rtol=1e-14)


def test_ends_of_the_curves():
    schedule = Schedule(1.0, steps=101, warmup_steps=40)
    assert schedule.learning_rate(0) == pytest.approx(0.005)
    assert schedule.learning_rate(20) == pytest.approx(0.005 + 0.995 / 2)
    assert schedule.learning_rate(40) == pytest.approx(1.0)
    assert schedule.learning_rate(70) == pytest.approx((1 + 0.001) / 2)
    assert schedule.learning_rate(100) == pytest.approx(0.001)
    assert schedule.weight_decay(0) == pytest.approx(0.04)
    assert schedule.weight_decay(50) == pytest.approx(0.12)
    assert schedule.weight_decay(100) == pytest.approx(0.2)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (5, 5), (3, 2)])
def test_short_runs_have_rates_within_their_bounds(steps, warmup):
    schedule = Schedule(1.0, steps, warmup)
    assert all(0.001 <= schedule.learning_rate(step) <= 1 for step in range(steps))
    assert all(0.04 <= schedule.weight_decay(step) <= 0.2 for step in range(steps))


@pytest.mark.parametrize(("steps", "warmup"), [(0, 0), (5, 6), (5, -1)])
def test_refuses_numbers_that_do_not_go_together(steps, warmup):
    with pytest.raises(UsageError, match="steps"):
        Schedule(1.0, steps, warmup)


def test_milestones_are_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [6, 9], gamma=0.25)
    schedule = Schedule(0.3, steps=12, warmup_steps=2, weight_decay=(0.1, 0.1), milestones=[6, 9], factor=0.25)
    for step in range(12):
        if step >= 2:
            assert schedule.learning_rate(step) == pytest.approx(theirs.get_last_lr()[0])
        assert schedule.weight_decay(step) == pytest.approx(0.1)
        optimizer.step()
        theirs.step()
    assert schedule.learning_rate(1) == pytest.approx(0.3 * (0.005 + 0.995 / 2))
