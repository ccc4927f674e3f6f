"""Rivals go on where they were stopped; a tiny one stands for those of a library that need not be installed."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torchvision.transforms import v2

from benchmarks import rivals
from benchmarks.arms import Budget
from convspark.pretraining import plan
from convspark.pretraining.settings import PretrainSettings
from convspark.seeds import Use, counted_seed
from tests.labelled_pictures import write_pictures


class Plain(rivals.Method):
    """Fits the mean of a picture; notes its steps and rates, and is stopped at one of the steps."""

    rate = 0.01
    steps: ClassVar[list[float]] = []
    rates: ClassVar[list[float]] = []
    stop_at: ClassVar[int | None] = None

    def views(self, size):
        return lambda image: [v2.functional.to_dtype(v2.functional.pil_to_tensor(image), scale=True)]

    def loss(self, views, progress):
        if len(self.steps) == self.stop_at:
            type(self).stop_at = None
            raise KeyboardInterrupt
        self.steps.append(progress)
        return (self.encoder(views[0]).mean(1) - views[0].mean((1, 2, 3))).square().mean()

    def optimizer(self, rate):
        self.rates.append(rate)
        return super().optimizer(rate)


@pytest.fixture
def budget(tmp_path, monkeypatch):
    monkeypatch.setitem(rivals.METHODS, "plain", Plain)
    monkeypatch.setattr(rivals, "_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr(rivals, "choose_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(rivals, "default_workers", lambda device: 0)
    for name, value in (("steps", []), ("rates", []), ("stop_at", None)):
        monkeypatch.setattr(Plain, name, value)
    write_pictures(tmp_path / "data" / "train", 4, side=32)
    return Budget(tmp_path / "data", "colours", "test_resnet", 32, 1, 1, (1.0,), {"batch_size": 4})


def test_a_rival_that_was_stopped_goes_on(budget, tmp_path, monkeypatch):
    monkeypatch.setattr(Plain, "stop_at", 4)
    with pytest.raises(KeyboardInterrupt):
        rivals.pretrain("plain", 2, 1.0, budget, 0, tmp_path / "out")
    weights, _ = rivals.pretrain("plain", 2, 1.0, budget, 0, tmp_path / "out")
    assert Plain.steps == [step / 6 for step in range(6)]  # 12 pictures by 4, twice; no step is taken again
    assert [str(path) for path in (tmp_path / "out").iterdir()] == [weights]


def test_a_seed_gives_a_rival_the_first_weights_that_it_gives_spark(budget):
    rival = rivals._begin("plain", budget, 5)[0].encoder.state_dict()
    torch.manual_seed(counted_seed(5, Use.INITIAL_WEIGHTS))
    sparks = plan._backbone(PretrainSettings("images", model="test_resnet")).state_dict()
    assert rival.keys() == sparks.keys() and all(torch.equal(rival[name], sparks[name]) for name in sparks)


def test_rates_grow_with_the_batch(budget, tmp_path, monkeypatch):
    for grows, expected in ((1.0, 0.01 * 3 / 16), (0.5, 0.01 * 3 / 4)):
        monkeypatch.setattr(Plain, "grows", grows)
        rivals.pretrain("plain", 1, 3.0, budget, 0, tmp_path / str(grows))
        assert Plain.rates[-1] == pytest.approx(expected)


def test_too_few_pictures_for_a_batch_are_told(budget, tmp_path):
    budget.pretrain["batch_size"] = 64
    with pytest.raises(SystemExit, match="too few pictures to pre-train on: expected 64 or more"):
        rivals.pretrain("plain", 1, 1.0, budget, 0, tmp_path / "out")


def test_costs_are_seconds_and_memory_of_each(budget, tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "COSTS", tmp_path / "costs.jsonl")
    monkeypatch.setattr(rivals, "RESULTS", tmp_path / "gains.jsonl")
    monkeypatch.setattr(rivals, "BATCH", 4)
    cost = rivals.measure_costs(replace(budget, size=64, pretrain={}), ["plain", rivals.SPARK])
    views = 4 * 3 * 32 * 32 * 4  # bytes: a batch of pictures as they are
    assert all(seconds > 0 for seconds in cost["seconds"].values())
    assert views < cost["peak_bytes"]["plain"] < cost["peak_bytes"][rivals.SPARK]  # that has larger images, a decoder
    table = rivals.costs_and_gains().splitlines()
    assert "test_resnet, 64 px" in table[0] and table[3].startswith(f"| {rivals.SPARK} | ")
