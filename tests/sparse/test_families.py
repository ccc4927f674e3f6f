"""Whole networks of timm, unmodified: exact in all three senses."""

import pytest
import timm
import torch
from truth import assert_exact

from convspark.measure.coverage import table
from convspark.model.stages import Stages

THIN = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)}
# One small member for each way in which these families differ.
SMALL = {
    "resnet10t": THIN,
    "resnet18": THIN | {"drop_path_rate": 0.3},
    "resnet26d": THIN,
    "resnext26ts": {},
    "wide_resnet50_2": THIN,
    "resnet50d": THIN,
    "resnetaa50": THIN,
    "resnetblur18": THIN,
    "seresnet18": THIN,
    "seresnext26d_32x4d": THIN,
    "seresnetaa50d": THIN,
    "ecaresnet26t": THIN,
    "regnetx_002": {},
    "regnety_002": {"drop_path_rate": 0.2},
    "regnetz_005": {},
    "convnext_atto": {"drop_path_rate": 0.2},
    "convnext_atto_ols": {},
    "convnextv2_atto": {},
    "efficientnet_b0": {"drop_path_rate": 0.2},
    "tf_efficientnet_b0": {},
    "efficientnet_lite0": {},
    "tf_efficientnetv2_b0": {},
    "efficientnetv2_rw_t": {},
    "efficientnet_b0_gn": {},
    "efficientnet_cc_b0_4e": {},
    "resnetv2_50d_evos": {"layers": (1, 1, 1, 1)},
    "resnetv2_50d_frn": {"layers": (1, 1, 1, 1), "channels": (32, 32, 64, 128)},
}


@pytest.fixture(autouse=True)
def float64_throughout(monkeypatch):
    """Some norms of timm go to float32 for their statistics whatever comes in; here they stay where they are."""
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)


def build(name, **options):
    return without_repetitions(timm.create_model(name, num_classes=0, global_pool="", **options))


def without_repetitions(network):
    """Two of each row of blocks that are alike: the others would be the same code once more."""
    for row in [module for module in network.modules() if type(module) is torch.nn.Sequential]:
        alike = []
        for name, block in list(row.named_children()):
            described = repr(block), [tensor.shape for tensor in block.state_dict().values()]
            alike = [*alike, described] if described in alike else [described]
            if len(alike) > 2:
                delattr(row, name)
    return network


# What these add to the others of their family is tried in the slow suite, as are all names.
REST = {
    *("resnet26d", "seresnetaa50d", "regnetx_002", "convnext_atto_ols", "tf_efficientnetv2_b0", "efficientnetv2_rw_t"),
    *("efficientnet_lite0", "efficientnet_b0_gn", "efficientnet_cc_b0_4e", "regnetz_005", "resnext26ts"),
    *("resnetv2_50d_evos", "wide_resnet50_2", "resnetaa50", "seresnext26d_32x4d"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in REST)) for n in SMALL])
def test_small_member_is_exact(name):
    assert_exact(build(name, **SMALL[name]), (3, 3, 64, 96), (2, 3))


@pytest.mark.parametrize("name", ["resnet10t", "convnextv2_atto"])
def test_patch_of_twice_the_stride_is_exact(name):
    assert_exact(build(name), (3, 3, 128, 128), (2, 2))


def test_other_channels_and_dilation_are_exact():
    assert_exact(build("resnet10t", **THIN, in_chans=5, output_stride=8), (3, 5, 32, 48), (4, 6))


def test_evaluation_mode_is_exact():
    assert_exact(build("seresnet18", **THIN), (3, 3, 64, 96), (2, 3), training=False)


# The smallest of their families, and yet so large that each takes seconds.
LARGE = {"selecsls42", "focalnet_tiny_srf", "rdnet_tiny", "vgg11", "tresnet_m", "densenet121", "repvit_m1"}


def smallest_of_each_further_family():
    """For each file of timm, the smallest network that the sweep found exact, unless SMALL has one of that file.

    One that does not amplify roundings, where there is one: its gradients are compared more strictly here.
    """
    members = {}
    for name, row in table()["networks"].items():
        if row["verdict"] == "exact":
            members.setdefault(row["family"], []).append((row["amplified"], row["parameters"], name))
    names = [min(rows)[-1] for family, rows in sorted(members.items()) if family not in {family_of(n) for n in SMALL}]
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in names]


def family_of(name):
    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


@pytest.mark.parametrize("name", smallest_of_each_further_family())
def test_smallest_member_of_a_family_is_exact(name):
    assert_swept_is_exact(name, without_repetitions(timm.create_model(name)), images=3, grid_shape=(2, 2))


def assert_swept_is_exact(name, network, images, grid_shape):
    channels, *image_size = network.pretrained_cfg["input_size"]
    patch = table()["networks"][name]["patch"]
    decoded = Decoded(Stages(network, image_size=image_size))
    assert_exact(decoded, (images, channels, *(patch * n for n in grid_shape)), grid_shape, lambda net, x: net(x))


class Decoded(torch.nn.Module):
    """A network that ends where pre-training does."""

    def __init__(self, stages):
        super().__init__()
        self.backbone, self.stages = stages.backbone, stages
        for name in {*stages.untrained} & {name for name, _ in self.backbone.named_parameters()}:
            self.backbone.get_parameter(name).data = torch.zeros(1)  # nothing is computed with it: copies cost less

    def forward(self, x):
        return self.stages(x)


def test_the_sweep_is_of_the_installed_timm_and_whole():
    if table()["timm"] != timm.__version__:
        pytest.skip(f"swept with timm {table()['timm']}; installed is {timm.__version__}")
    assert set(table()["networks"]) == set(timm.list_models())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, row in table()["networks"].items() if row["verdict"] == "exact"])
def test_every_exact_name_is_exact(name):
    row = table()["networks"][name]
    if row["parameters"] > 150e6:
        pytest.skip(f"{row['parameters'] / 1e6:.0f} million parameters: the same code as its smaller siblings")
    if row["amplified"]:
        pytest.skip("amplifies roundings when its weights are random; see docs/coverage.md")
    assert_swept_is_exact(name, timm.create_model(name), images=2, grid_shape=(2, 3))
