"""The table of modules says what each really does."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from convspark.measure.modules import AS_IT_IS, NEIGHBOURS, ON_IMAGES, OVER_BATCH, OVER_IMAGE, watch_modules


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


def test_a_network_of_functions_alone():
    class Functions(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))

        def forward(self, x):
            return functional.relu(functional.conv2d(x, self.weight, stride=2, padding=1))

    for network, action in ((Functions(), NEIGHBOURS), (nn.AvgPool2d(2), AS_IT_IS)):
        (row,) = watch_modules(lambda x, network=network: [network(x)], network, 3, (4, 4))
        assert (row.count, row.action, row.first) == (1, action, type(network).__name__)


def test_each_kind_of_module():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 2, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 1),
        nn.ReLU(),
        Gate(),
        nn.GroupNorm(2, 8),
        nn.AvgPool2d(2),
        nn.MaxPool2d(3, 2, 1),
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    )
    rows = watch_modules(lambda x: [network(x)], network, 3, (16, 16))
    assert {(row.kind, row.count, row.action, row.first) for row in rows} == {
        ("Conv2d 2x2 /2", 1, AS_IT_IS, "0"),
        ("BatchNorm2d", 1, OVER_BATCH, "1"),
        ("ReLU", 2, AS_IT_IS, "2"),
        ("Conv2d 3x3 depthwise", 1, NEIGHBOURS, "3"),
        ("Conv2d 1x1", 1, AS_IT_IS, "4"),
        ("Gate", 1, OVER_IMAGE, "6"),
        ("Conv2d 1x1", 1, ON_IMAGES, "6.fc"),
        ("GroupNorm", 1, OVER_IMAGE, "7"),
        ("AvgPool2d 2x2 /2", 1, AS_IT_IS, "8"),
        ("MaxPool2d 3x3 /2", 1, NEIGHBOURS, "9"),
        ("Upsample", 1, AS_IT_IS, "10"),
        ("Upsample", 1, NEIGHBOURS, "11"),
    }
    assert network.training and not network[0]._forward_hooks


@pytest.mark.parametrize(
    ("module", "action"),
    [
        (nn.Conv2d(4, 4, 4, 4, padding="valid"), AS_IT_IS),
        (nn.Conv2d(4, 4, 3, padding="same"), NEIGHBOURS),
        (nn.ConvTranspose2d(4, 4, 2, 2), AS_IT_IS),
        (nn.ConvTranspose2d(4, 4, 4, 2, 1), NEIGHBOURS),
    ],
    ids=str,
)
def test_windows_that_reach_out_of_a_patch(module, action):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), module)
    rows = watch_modules(lambda x: [network(x)], network, 3, (16, 16))
    assert [row.action for row in rows if row.first == "1"] == [action]


class Functional(nn.Module):
    def __init__(self, side):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1, side, side))

    def forward(self, x):
        return functional.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2, groups=4)


@pytest.mark.parametrize(("side", "action"), [(1, AS_IT_IS), (3, NEIGHBOURS)])
def test_functions_without_a_stride_take_steps_of_one(side, action):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Functional(side))
    rows = watch_modules(lambda x: [network(x)], network, 3, (16, 16))
    assert [row.action for row in rows if row.first == "1"] == [action]
