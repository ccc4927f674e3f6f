"""What a benchmark says of a GPU without one: that nothing was recorded, and what ran without kernels."""

from types import SimpleNamespace

import torch
from torch import nn

from benchmarks.gpu import whole_steps
from benchmarks.kernels import switched_off
from convspark.kernels import max_pool
from convspark.measure.bench import VISIBLE
from convspark.runs.graphs import Graphed
from convspark.sparse.faster import registered


def test_steps_that_were_not_recorded_are_no_figures_of_graphs():
    lines, graphed = [], Graphed(lambda images, grid: images.sum(), nn.Identity())
    trial = SimpleNamespace(whole_step=lambda way: lambda: None, losses={VISIBLE: graphed})
    what = SimpleNamespace(precision="bf16", device=torch.device("cpu"), keys=dict, trial=lambda *arguments: trial)
    whole_steps(what, ["graph"], 1, lambda **line: lines.append(line))
    graphed._leave("it counts its calls")
    whole_steps(what, ["graph"], 1, lambda **line: lines.append(line))
    said = [line["failed"] for line in lines]
    assert said == ["RuntimeError: not recorded: no GPU"] * 2 + ["RuntimeError: not recorded: it counts its calls"] * 2


def test_without_kernels_is_without_those_of_pooling(monkeypatch):
    monkeypatch.setattr(registered(), "max_pools", [max_pool.offer])
    with switched_off("all"):
        assert not registered().max_pools
    assert registered().max_pools == [max_pool.offer]
