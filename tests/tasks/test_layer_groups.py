"""Layer groups, against the paper's statement of them."""

import pytest
import timm
import torch
from torchvision.models import resnet18

from convspark.errors import UsageError
from convspark.tasks.classification.network import Headed
from convspark.tasks.classification.train import _make_optimizer
from convspark.tasks.layer_groups import decayed_groups, layer_groups


def groups_of(name):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=3)
    return network, *layer_groups(network)


# What each part of the network has as its exponent of the decay, by the start of its parameters' names: the groups of
# the paper's fine-tuning recipe, 7 steps for ResNet-50, 13 for ConvNeXt-S, B and L with three blocks a group.
RESNET50 = {"conv1.": 7, "bn1.": 7, "layer1.": 6, "layer4.": 1, "fc.": 0}
RESNET50 |= {f"layer2.{block}.": 5 - block // 2 for block in range(4)}
RESNET50 |= {f"layer3.{block}.": 3 - block // 3 for block in range(6)}
CONVNEXT = {"stem.": 13, "stages.0.": 12, "stages.1.": 11, "stages.2.downsample.": 10, "stages.3.": 1, "head.": 0}
CONVNEXT |= {f"stages.2.blocks.{block}.": 10 - block // 3 for block in range(27)}
CONVNEXT_T = {"stem.": 7, "stages.0.": 6, "stages.1.": 5, "stages.2.downsample.": 4, "stages.3.": 1, "head.": 0}
CONVNEXT_T |= {f"stages.2.blocks.{block}.": 4 - block // 3 for block in range(9)}


@pytest.mark.parametrize(
    ("name", "exponents"),
    [
        ("resnet50", RESNET50),
        ("convnext_tiny", CONVNEXT_T),
        ("convnext_small", CONVNEXT),
        ("convnext_base", CONVNEXT),
        ("convnext_large", CONVNEXT),
    ],
)
def test_groups_are_the_papers(name, exponents):
    network, group_of, count = groups_of(name)
    scales = {id(p): g["lr_scale"] for g in decayed_groups(network, 0.7, group_of, count) for p in g["params"]}
    for parameter_name, parameter in network.named_parameters():
        (exponent,) = (e for start, e in exponents.items() if parameter_name.startswith(start))
        assert scales[id(parameter)] == pytest.approx(0.7**exponent), parameter_name


@pytest.mark.parametrize("name", ["resnet34", "resnet101", "resnet152"])
def test_other_deep_resnets_have_seven_steps_too(name):
    _, group_of, count = groups_of(name)
    assert count == 8 and group_of["conv1.weight"] == 0 and group_of["fc.weight"] == 7


@pytest.mark.parametrize(
    "name",
    [
        *"resnet18 convnext_atto efficientnet_b0 mobilenetv3_small_050 regnetx_002 densenet121 rexnet_100".split(),
        *"resnetv2_50 hrnet_w18_small dla34".split(),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("xception41", "vgg11", "rdnet_tiny")),
    ],
)
def test_any_network_is_grouped_from_stem_to_head_without_gaps(name):
    network = timm.create_model(name, num_classes=3)
    group_of, count = layer_groups(network)
    names = [n for n, _ in network.named_parameters()]
    classifier = network.pretrained_cfg["classifier"]
    assert set(group_of) == set(names) and set(group_of.values()) == set(range(count))
    assert group_of[names[0]] == 0 and group_of[f"{classifier}.weight"] == count - 1
    assert 5 <= count <= 14  # a group for each of its blocks would hardly train the stem


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
    groups = decayed_groups(network, 0.5, group_of, count)
    assert {g["lr_scale"] for g in groups} == {1.0, 0.5, 0.25, 0.125, 0.0625}
    assert all(p.ndim > 1 for g in groups if g["decays"] for p in g["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(network.parameters()))


def test_what_a_network_calls_its_stages_is_not_taken_for_ours():
    network = timm.create_model("poolformer_s12", num_classes=5)  # its `stages` are layers, and timm cannot group it
    optimizer = _make_optimizer(network, "adamw", 0.5, None)
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    # The stem and the four stages by their names; the first stage is the stem's group, too.
    exponents = {"stem.": 4, "stages.0.": 4, "stages.1.": 3, "stages.2.": 2, "stages.3.": 1, "head.": 0}
    for name, parameter in network.named_parameters():
        (exponent,) = (e for start, e in exponents.items() if name.startswith(start))
        assert scales[id(parameter)] == 0.5**exponent, name


# Of deeper ResNets, how many blocks of each stage a group has in the authors' code, and the steps below the head.
DEEP = {"resnet101": ([3, 2, 3, 3], 13), "resnet152": ([3, 4, 4, 3], 14), "resnet200": ([3, 4, 4, 3], 18)}


@pytest.mark.parametrize("name", DEEP)
def test_groups_can_have_as_many_blocks_as_the_papers(name):
    blocks, steps = DEEP[name]
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=3)
    group_of, count = layer_groups(network, group_blocks=blocks)
    assert count == steps + 1
    depths = [len(getattr(network, f"layer{stage}")) for stage in (1, 2, 3, 4)]
    before = [1 + sum(-(-depth // own) for depth, own in zip(depths[:s], blocks[:s], strict=True)) for s in range(4)]
    for parameter_name, group in group_of.items():
        part, _, rest = parameter_name.partition(".")
        if part.startswith("layer"):
            stage = int(part[-1]) - 1
            assert group == before[stage] + int(rest.partition(".")[0]) // blocks[stage], parameter_name
        else:
            assert group == (steps if part == "fc" else 0)


def test_groups_of_another_number_of_stages_are_refused():
    network = timm.create_model("resnet18", num_classes=3)
    with pytest.raises(UsageError, match=r"group_blocks is \[3, 2\]: expected 4 numbers"):
        layer_groups(network, group_blocks=[3, 2])
    with pytest.raises(UsageError, match="expected a number from 1"):
        layer_groups(network, group_blocks=[3, 0, 1, 1])
    with pytest.raises(UsageError, match="leave it out for others"):
        layer_groups(Headed(resnet18(), 5), group_blocks=[2, 2, 2, 2])
