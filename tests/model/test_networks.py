"""Networks from everywhere, unmodified: torchvision's, segmentation-models-pytorch's, and a user's own."""

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models as torchvision_models
from truth import assert_exact

from convspark import SparK
from convspark.errors import UsageError
from convspark.measure.check import check
from convspark.model.networks import find_network
from convspark.model.stages import Stages, image_channels
from convspark.pretraining.build import named_backbone
from convspark.pretraining.settings import PretrainSettings

# ------------------------------------------------------------------------------------------- torchvision

ON_PATCHES = ["layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", ON_PATCHES),
        ("mobilenet_v3_small", None),
        ("shufflenet_v2_x0_5", None),
        ("mnasnet0_5", None),
        ("regnet_x_400mf", None),
        ("googlenet", ["conv3", "inception3b", "inception4e", "inception5b"]),
        ("lraspp_mobilenet_v3_large", None),
        ("deeplabv3_mobilenet_v3_large", None),
    ],
)
def test_torchvisions_networks_are_exact(name, stages):
    report = check(f"torchvision:{name}", measure=False)
    assert report.exact, report.reason
    assert stages is None or report.stages == stages


EXACT = """
    convnext_tiny densenet121 densenet169 densenet201 densenet161 efficientnet_b0 efficientnet_b1 efficientnet_b3
    efficientnet_v2_s googlenet mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large
    mobilenet_v3_small regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_y_400mf regnet_y_800mf regnet_y_1_6gf
    resnet18 resnet34 resnet50 resnet101 resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
    shufflenet_v2_x2_0 vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn wide_resnet50_2
    deeplabv3_mobilenet_v3_large deeplabv3_resnet50 deeplabv3_resnet101 fcn_resnet50 fcn_resnet101
    lraspp_mobilenet_v3_large r3d_18 mc3_18 r2plus1d_18 s3d
""".split()
NO_PADDING = ["alexnet", "inception_v3", "squeezenet1_0", "squeezenet1_1"]
ATTENTION = ["maxvit_t", "swin_t", "swin_v2_t", "vit_b_16", "swin3d_t", "mvit_v1_b"]
# The same code as a sibling in EXACT, wider or deeper.
LARGE = """
    convnext_base convnext_large convnext_small efficientnet_b2 efficientnet_b4 efficientnet_b5 efficientnet_b6
    efficientnet_b7 efficientnet_v2_l efficientnet_v2_m regnet_x_16gf regnet_x_32gf regnet_x_3_2gf regnet_x_8gf
    regnet_y_128gf regnet_y_16gf regnet_y_32gf regnet_y_3_2gf regnet_y_8gf resnet152 resnext101_32x8d
    resnext101_64x4d wide_resnet101_2 vit_b_32 vit_h_14 vit_l_16 vit_l_32 swin_b swin_s swin_v2_b swin_v2_s swin3d_b
    swin3d_s mvit_v2_s
""".split()


def test_every_network_of_torchvision_is_sorted():
    """Detectors and quantised copies wrap these."""
    mains = [torchvision_models, torchvision_models.segmentation, torchvision_models.video]
    known = {name for module in mains for name in torchvision_models.list_models(module=module)}
    assert known == {*EXACT, *NO_PADDING, *ATTENTION, *LARGE}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_every_torchvision_convnet_is_exact(name):
    report = check(f"torchvision:{name}", measure=False)
    assert report.exact, report.reason


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != NO_PADDING[-1])) for n in NO_PADDING]
)
def test_networks_without_padding_are_refused(name):
    assert "padded" in str(check(f"torchvision:{name}", measure=False).reason)


@pytest.mark.parametrize(
    "name", ["swin_t", *(pytest.param(n, marks=pytest.mark.slow) for n in ("maxvit_t", "swin3d_t", "vit_b_32"))]
)
def test_transformers_are_refused(name):
    assert "self-attention" in str(check(f"torchvision:{name}", measure=False).reason)


def thin(network: nn.Module, width: int = 4) -> nn.Module:
    """A video network with an eighth of its channels, so that a proof on volumes takes no minute."""

    def narrow(channels: int) -> int:
        return channels if channels <= 3 else max(width, channels // 16)

    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Conv3d):
                more = {key: getattr(child, key) for key in ("kernel_size", "stride", "padding")}
                conv = nn.Conv3d(narrow(child.in_channels), narrow(child.out_channels), **more, bias=False)
                setattr(module, name, conv)
            if isinstance(child, nn.BatchNorm3d):
                setattr(module, name, nn.BatchNorm3d(narrow(child.num_features)))
    network.fc = nn.Identity()
    return network


@pytest.mark.parametrize(
    ("name", "deepest", "patch"),
    [
        ("r3d_18", (8, 16, 16), (8, 16, 16)),
        ("mc3_18", (1, 16, 16), (2, 16, 32)),
        ("r2plus1d_18", (8, 16, 16), (16, 16, 16)),
    ],
)
def test_video_networks_on_volumes(name, deepest, patch):
    network = thin(find_network(f"torchvision:{name}"))
    report = check(network, measure=False, patch_size=patch)
    assert report.exact, report.reason
    assert report.stages == ON_PATCHES and report.strides[-1] == deepest and report.patch_size == patch


def test_pretraining_a_video_network():
    """Cubic patches; a step reaches every parameter up to the deepest stage."""
    model = SparK(thin(find_network("torchvision:r3d_18")), image_size=(16, 32, 32), patch_size=16, decoder_width=32)
    out = model(torch.randn(2, 3, 16, 32, 32))
    out.loss.backward()
    assert out.prediction.shape == (2, 3, 16, 32, 32) and out.grid.shape == (1, 2, 2)
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.ndim > 1)


# ------------------------------------------------------------------- segmentation-models-pytorch


SMP_ENCODERS = """
    resnet18 resnext50_32x4d dpn68 vgg11_bn se_resnet50 densenet121 efficientnet-b0 mobilenet_v2 xception
    timm-efficientnet-b0 timm-skresnet18 mobileone_s0 inceptionv4 inceptionresnetv2 tu-resnest14d tu-hrnet_w18_small
    tu-convnext_atto
""".split()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SMP_ENCODERS)
def test_encoders_of_segmentation_models_pytorch_are_exact(name):
    smp = pytest.importorskip("segmentation_models_pytorch")
    report = check(smp.encoders.get_encoder(name, weights=None), measure=False)
    assert report.exact, report.reason
    assert report.strides == [(4, 4), (8, 8), (16, 16), (32, 32)]


# ------------------------------------------------------------------------------------- a user's own


def assert_stages_exact(network: nn.Module, in_chans: int = 3, call=None) -> Stages:
    """Exact against tests/truth.py at every stage found; 3 images of 2 x 3 patches."""
    stages = Stages(network, call=call)
    assert stages.in_chans == in_chans
    way = stages._way  # bound to no network: the truth runs copies
    sides = [2 * stages.patch_size[0], 3 * stages.patch_size[1]]
    assert_exact(network, (3, in_chans, *sides), (2, 3), way)
    return stages


def block(inward: int, outward: int, stride: int = 2, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inward, outward, 3, stride, 1, bias=False), norm(outward), nn.ReLU())


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, way: str):
        super().__init__()
        self.way = way
        self.fc = nn.Sequential(nn.Linear(channels, channels // 2), nn.SiLU(), nn.Linear(channels // 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "mean":
            pooled = x.mean((2, 3))
        elif self.way == "view":
            pooled = x.view(x.size(0), x.size(1), -1).mean(-1)
        else:
            pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return x * self.fc(pooled).sigmoid()[:, :, None, None]


class Zoo(nn.Module):
    """One of everything: GroupNorm, strided average pool, reflect padding, functional pooling, gates by mean."""

    def __init__(self, in_chans: int = 3):
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 8, 5, 2, 2, padding_mode="reflect")
        self.norm = nn.GroupNorm(2, 8)
        self.se1, self.se2, self.se3 = (SqueezeExcite(8 * k, way) for k, way in ((1, "mean"), (2, "view"), (4, "pool")))
        self.widen1, self.widen2 = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 32, 1)
        self.mix = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se1(F.gelu(self.norm(self.stem(x))))
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=2)
        x = self.widen1(x)
        x = self.se2(x + F.silu(self.mix(x)))
        x = self.widen2(F.max_pool2d(x, 2))
        return self.se3(x)


class UpAndDown(nn.Module):
    """Goes down, up by a transposed conv and pixel shuffle, joins, and goes down again."""

    def __init__(self):
        super().__init__()
        self.enter, self.down1, self.down2 = block(3, 8), block(8, 16), block(16, 32)
        self.up = nn.ConvTranspose2d(32, 16, 4, 2, 1)
        self.shuffle = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.PixelShuffle(2))
        self.again = nn.Sequential(nn.PixelUnshuffle(2), block(72, 32), block(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        half = self.enter(x)
        quarter = self.down1(half)
        joined = torch.cat([quarter, self.up(self.down2(quarter))], 1)
        return self.again(torch.cat([half, self.shuffle(joined), half.mul(2)[:, :2]], 1))


class Detector(nn.Module):
    """Takes a dictionary, gives nested ones: as detectors do."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"fine": block(3, 8), "middle": block(8, 16), "coarse": block(16, 32)})
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, batch: dict[str, dict[str, Tensor]], scale: float = 1.0) -> dict[str, object]:
        x = batch["inputs"]["image"] * scale
        pyramid = OrderedDict()
        for name, stage in self.body.items():
            x = stage(x)
            pyramid[name] = x
        return {"pyramid": pyramid, "boxes": [self.head(x)]}


def call_detector(network: nn.Module, images: Tensor) -> object:
    return network({"inputs": {"image": images}}, scale=0.5)


@dataclass
class Maps:
    coarse: Tensor
    finer: tuple[Tensor, Tensor]


class GivesDataclass(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = block(3, 8), block(8, 12), block(12, 16)

    def forward(self, x: Tensor) -> Maps:
        one = self.one(x)
        two = self.two(one)
        return Maps(self.three(two), (two, one))


class NestedInputs(nn.Module):
    """Blocks that hand lists and keyword arguments to each other."""

    def __init__(self):
        super().__init__()
        self.stem, self.fuse, self.down = block(3, 8), Fuse(), block(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.down(self.fuse([x, (x.relu(), {"gate": x})], weight=0.5))


class Fuse(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(24, 8, 3, padding=1)

    def forward(self, maps: list, weight: float) -> Tensor:
        first, (second, named) = maps
        return self.conv(torch.cat([first, second, named["gate"].sigmoid()], 1)) * weight


class ConvMixer(nn.Sequential):
    """A stride that is no power of two, a residual of a depthwise conv with 'same' padding."""

    def __init__(self):
        mixer = nn.Sequential(nn.Conv2d(8, 8, 5, groups=8, padding="same"), nn.GELU(), nn.BatchNorm2d(8))
        super().__init__(nn.Conv2d(3, 8, 7, 7), nn.GELU(), nn.BatchNorm2d(8), mixer, nn.Conv2d(8, 8, 1))


class ChannelsLast(nn.Module):
    """A block that lives in NHWC, pools there, and comes back."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.fc = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).permute(0, 2, 3, 1))
        x = F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        return self.fc(x).permute(0, 3, 1, 2)


class PyramidPooling(nn.Module):
    """A pooled branch, resized to the map and joined: by size, by expand, and by expand_as."""

    def __init__(self, way: str):
        super().__init__()
        self.way = way
        self.body, self.pooled, self.join = block(3, 8), nn.Conv2d(8, 4, 1), block(12, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        pooled = self.pooled(F.adaptive_avg_pool2d(x, 1))
        if self.way == "interpolate":
            pooled = F.interpolate(pooled, size=x.shape[-2:], mode="bilinear", align_corners=False)
        elif self.way == "expand":
            pooled = pooled.expand(-1, -1, *x.shape[2:])
        else:
            pooled = pooled.expand_as(x[:, :4])
        return self.join(torch.cat([x, pooled], 1))


def sequential() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ELU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Tanh()
    )


@pytest.mark.parametrize(
    ("build", "strides"),
    [
        (sequential, [2, 4, 8]),
        (Zoo, [2, 4, 8]),
        (UpAndDown, [2, 4, 8, 16]),
        (GivesDataclass, [2, 4, 8]),
        (NestedInputs, [2, 4]),
        (ConvMixer, [7]),
        (ChannelsLast, [4, 8]),
        (lambda: PyramidPooling("interpolate"), [2, 4]),
        (lambda: PyramidPooling("expand"), [2, 4]),
        (lambda: PyramidPooling("expand_as"), [2, 4]),
    ],
)
def test_own_networks_are_exact(build, strides):
    torch.manual_seed(0)
    stages = assert_stages_exact(build())
    assert list(stages.strides) == [(stride, stride) for stride in strides]


@pytest.mark.parametrize("way", ["interpolate", "expand"])
def test_a_pooled_branch_beside_patches_of_one_position(way):
    """Grown to the map, it changes no size."""
    network = PyramidPooling(way)
    network.join = nn.Conv2d(12, 8, 3, padding=1)
    assert_stages_exact(network)


def test_a_network_called_in_its_own_way():
    stages = assert_stages_exact(Detector(), call=call_detector)
    assert stages.strides == ((2, 2), (4, 4), (8, 8))
    names = [f"body.{name}" for name in ("fine", "middle", "coarse")]
    model = SparK(Detector(), image_size=32, call=call_detector, decoder_width=32, stages=names)
    model(torch.randn(2, 3, 32, 32)).loss.backward()
    assert model.untrained == ["head.weight", "head.bias"]
    with pytest.raises(UsageError, match="cannot be run"):
        Stages(Detector())


@pytest.mark.parametrize("in_chans", [1, 5, 12])
def test_any_number_of_channels(in_chans):
    assert_stages_exact(Zoo(in_chans), in_chans)
    model = SparK(timm.create_model("resnet10t", in_chans=in_chans), image_size=64, decoder_width=64)
    assert model(torch.randn(2, in_chans, 64, 64)).prediction.shape == (2, in_chans, 64, 64)


def test_named_stages_of_an_own_network():
    report = check(UpAndDown(), stages=["enter", "down1"], measure=False)
    assert report.exact and report.strides == [(2, 2), (4, 4)]
    assert report.untrained == ["down2", "up", "shuffle", "again"]


@pytest.mark.parametrize("patch_size", [(8, 16), (24, 8)])
def test_patches_that_are_not_square(patch_size):
    report = check(Zoo(), patch_size=patch_size, measure=False)
    assert report.exact and report.patch_size == patch_size
    model = SparK(Zoo(), image_size=(48, 32), patch_size=patch_size, decoder_width=32)
    assert model(torch.randn(2, 3, 48, 32)).grid.shape == (48 // patch_size[0], 32 // patch_size[1])


def test_a_network_that_fails_at_its_end_is_refused_where_convolutions_have_not_run():
    class TwoHalves(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = block(3, 8), block(8, 16)

        def forward(self, x):
            x = self.first(x)
            assert x.shape[-1] == 50, "takes images of 100 pixels alone"
            return self.last(x)

    with pytest.raises(UsageError, match="takes images of 100 pixels alone"):
        Stages(TwoHalves())
    assert Stages(TwoHalves(), image_size=(100, 100)).strides == ((2, 2), (4, 4))


# --------------------------------------------------------------------------------------------- by name


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n\n\n"
        "def tiny(width=8, in_chans=3):\n"
        "    return nn.Sequential(nn.Conv2d(in_chans, width, 4, 4), nn.ReLU(), nn.Conv2d(width, width, 2, 2))\n\n\n"
        "ready = tiny(4)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)


def test_a_network_by_import(own_module):
    assert find_network("my_networks:tiny")[0].out_channels == 8
    assert find_network("my_networks:tiny", model_args={"width": 16, "in_chans": 5}, channels=5)[0].out_channels == 16
    assert find_network("my_networks:ready")[0].out_channels == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("my_networks:tinny", {}, "did you mean tiny"),
        ("my_network_s:tiny", {}, "cannot be imported"),
        ("my_networks:number", {}, "cannot be called without arguments"),
        ("my_networks:tiny", {"model_args": {"depth": 3}}, "cannot be called with {'depth': 3}"),
        ("my_networks:ready", {"model_args": {"depth": 3}}, "is a network already"),
        ("my_networks:tiny", {"drop_path": 0.1}, "give my_networks:tiny its own"),
        ("torchvision:resnet81", {}, "did you mean resnet18"),
        ("torchvision:resnet18", {"model_args": {"width": 3}}, "cannot be built with"),
    ],
)
def test_names_that_cannot_be(own_module, name, options, message):
    with pytest.raises(UsageError, match=message):
        find_network(name, **options)


@pytest.mark.parametrize(
    ("name", "drop_path", "model_args", "rate"),
    [
        ("fasternet_t1", 0.0, None, 0.0),  # timm's own is 0.02
        ("fasternet_t1", 0.1, None, 0.1),
        ("resnet18", 0.0, {"drop_path_rate": 0.3}, 0.3),
        ("resnet18", 0.2, {"drop_path_rate": 0.3}, 0.2),
        ("vgg11", 0.0, None, 0.0),  # has none, and does not take a rate
    ],
)
def test_networks_have_the_stochastic_depth_that_was_asked_for(name, drop_path, model_args, rate):
    with torch.device("meta"):
        network = find_network(name, drop_path=drop_path, model_args=model_args)
    rates = [module.drop_prob for module in network.modules() if isinstance(module, timm.layers.DropPath)]
    assert max(rates, default=0.0) == pytest.approx(rate)


@pytest.mark.parametrize(("asked_for", "rate"), [({}, 0.05), ({"model_args": {"drop_path_rate": 0.3}}, 0.3)])
def test_the_papers_stochastic_depth_gives_way_to_that_of_model_args(asked_for, rate):
    with torch.device("meta"):
        network = named_backbone(PretrainSettings(model="resnet50", **asked_for))
    rates = [module.drop_prob for module in network.modules() if isinstance(module, timm.layers.DropPath)]
    assert max(rates) == pytest.approx(rate)


class SpaceToDepth(nn.Module):
    """Begins with no convolution, but makes 12 channels of 3."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(4 * channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))

    def forward(self, x):
        return self.convs(nn.functional.pixel_unshuffle(x, 2))


@pytest.mark.parametrize("channels", [3, 1])
def test_channels_of_images_are_not_those_of_the_first_convolution(channels):
    network = SpaceToDepth(channels)
    assert image_channels(network, (32, 32)) == channels
    assert SparK(network, 32).in_chans == channels
