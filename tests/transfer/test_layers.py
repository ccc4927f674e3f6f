"""Layer groups, against the paper's numbers of them."""

import pytest
import timm
import torch
from torchvision.models import resnet18

from convspark.transfer.classify import Headed
from convspark.transfer.layers import decayed_groups, layer_groups


@pytest.mark.parametrize(
    ("name", "groups"),
    [("resnet50", 8), ("resnet101", 8), ("resnet152", 8), ("convnext_tiny", 8), ("convnext_small", 14)],
)
def test_groups_are_as_many_as_the_papers(name, groups):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=3)
    group_of, count = layer_groups(network)
    assert count == groups and set(group_of.values()) == set(range(groups))
    assert set(group_of) == {n for n, _ in network.named_parameters()}
    classifier = network.pretrained_cfg["classifier"]
    assert group_of[f"{classifier}.weight"] == count - 1
    assert group_of[next(n for n, _ in network.named_parameters())] == 0


def test_the_third_stage_of_a_large_convnext_is_divided_by_three_blocks():
    with torch.device("meta"):
        group_of, _ = layer_groups(timm.create_model("convnext_small", num_classes=3))
    groups = [group_of[f"stages.2.blocks.{i}.gamma"] for i in range(27)]
    assert groups == [3 + i // 3 for i in range(27)]
    assert group_of["stages.3.downsample.0.weight"] == 12


def test_other_networks_are_grouped_by_the_stage_that_first_depends_on_a_parameter():
    network = Headed(resnet18(), 5)
    group_of, count = layer_groups(network, network.stages)
    assert count == 5
    assert [group_of[f"backbone.{n}"] for n in ("conv1.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight")] == [
        0,
        0,
        1,
    ]
    assert group_of["backbone.layer4.1.bn2.bias"] == 3 and group_of["head.weight"] == 4
    found = decayed_groups(network, 0.5, group_of, count)
    assert {g["lr_scale"] for g in found} == {1.0, 0.5, 0.25, 0.125, 0.0625}
    assert all(p.ndim > 1 for g in found if g["decays"] for p in g["params"])
    assert sum(len(g["params"]) for g in found) == len(list(network.parameters()))
