"""Parameter groups and the optimisers."""

import pytest
import torch
from torch import nn

from convspark.errors import UsageError
from convspark.runs.optimizer import build_optimizer, default_learning_rate, parameter_groups, set_rates


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.mask_token = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(4, 1, 1))
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def test_decays_weights_alone():
    net = Net()
    decayed, plain = parameter_groups(net)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"conv.weight", "head.weight"}
    assert {names[id(p)] for p in plain["params"]} == {
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "mask_token",
        "gamma",
        "head.bias",
    }


def test_leaves_out_what_is_excluded():
    groups = parameter_groups(Net(), frozenset({"head.weight", "head.bias"}))
    assert [len(group["params"]) for group in groups] == [1, 5]


@pytest.mark.parametrize("kind", ["lamb", "adamw"])
def test_rates_are_set_in_all_groups_and_decays_where_they_belong(kind):
    optimizer = build_optimizer(parameter_groups(Net()), kind, betas=(0.8, 0.7))
    set_rates(optimizer, 0.5, 0.25)
    assert [(g["lr"], g["weight_decay"], g["betas"]) for g in optimizer.param_groups] == [
        (0.5, 0.25, (0.8, 0.7)),
        (0.5, 0.0, (0.8, 0.7)),
    ]


def test_lamb_clips_the_global_norm():
    weight = nn.Parameter(torch.ones(2, 2))
    steps = []
    for scale in (1e3, 1e6):  # both far above the clip: the steps must be the same
        module = nn.Module()
        module.weight = nn.Parameter(weight.detach().clone())
        optimizer = build_optimizer(parameter_groups(module), "lamb", gradient_clip=5.0)
        set_rates(optimizer, 0.1, 0.04)
        module.weight.grad = scale * torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        optimizer.step()
        steps.append(module.weight.detach() - weight.detach())
    torch.testing.assert_close(steps[0], steps[1])


def test_refuses_another_optimiser():
    with pytest.raises(UsageError, match="'sgd'"):
        build_optimizer(parameter_groups(Net()), "sgd")  # type: ignore[arg-type]


def test_default_learning_rate_is_the_papers_for_long_runs_and_higher_for_short_ones():
    assert default_learning_rate(500_000) == default_learning_rate(4000) == pytest.approx(3.2e-3)
    rates = [default_learning_rate(steps) for steps in (10, 100, 400, 1000, 3000, 4000)]
    assert rates == sorted(rates, reverse=True) and rates[0] == pytest.approx(2e-2)
    assert default_learning_rate(1000) == pytest.approx(6.4e-3)
