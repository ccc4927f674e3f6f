"""Stages: found where people who know the network would put them, and nothing after the deepest is run."""

import copy
import pickle
import threading

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from convspark import SparK
from convspark.errors import UsageError
from convspark.model.stages import Stages


def conv(inward: int, outward: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inward, outward, 3, stride, 1, bias=False), nn.BatchNorm2d(outward), nn.ReLU())


class UNet(nn.Module):
    """Comes back to full resolution, and uses one pool for all levels."""

    def __init__(self):
        super().__init__()
        self.enter, self.pool = conv(3, 4), nn.MaxPool2d(2)
        self.down1, self.down2, self.bottom = conv(4, 8), conv(8, 16), conv(16, 16)
        self.up = nn.Upsample(scale_factor=2)
        self.up2, self.up1, self.leave = conv(32, 8), conv(16, 4), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        full = self.enter(x)
        half = self.down1(self.pool(full))
        quarter = self.down2(self.pool(half))
        deep = self.bottom(self.pool(quarter))
        x = self.up2(torch.cat([self.up(deep), quarter], 1))
        x = self.up1(torch.cat([self.up(x), half], 1))
        return self.leave(torch.cat([self.up(x), full], 1))


class Wrapped(nn.Module):
    """A network that does not announce its stages."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.inner = network

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).softmax(-1)


class FixedSize(nn.Module):
    """Its classifier takes images of 64 x 64 only; one ReLU serves the whole network; its head must not be run."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
        self.act, self.norm = nn.ReLU(), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 16 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv1(x))
        x = self.act(self.norm(self.conv2(x)))
        return self.fc(x.flatten(1))


class ConvolutionalClassifier(nn.Module):
    """For images of 224 pixels, though larger ones pass; most of its weights are after its pooling."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*(nn.Conv2d(i, o, 3, 2, 1) for i, o in [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]))
        self.head = nn.Sequential(nn.AvgPool2d(7, 1), nn.Conv2d(6, 999, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).flatten(1)


@pytest.mark.parametrize(
    ("build", "strides", "channels"),
    [
        (lambda: timm.create_model("resnet18"), (4, 8, 16, 32), (64, 128, 256, 512)),
        (lambda: timm.create_model("convnext_atto"), (4, 8, 16, 32), (40, 80, 160, 320)),
        (lambda: timm.create_model("efficientnet_b0"), (4, 8, 16, 32), (24, 40, 112, 320)),
        (lambda: timm.create_model("regnety_002", features_only=True), (4, 8, 16, 32), (24, 56, 152, 368)),
        (lambda: timm.create_model("resnet18", features_only=True, out_indices=(1, 3)), (4, 16), (64, 256)),
        (lambda: torchvision.models.resnet18(), (4, 8, 16, 32), (64, 128, 256, 512)),
        (lambda: torchvision.models.mobilenet_v3_small(), (4, 8, 16, 32), (16, 24, 48, 576)),
        (lambda: Wrapped(timm.create_model("resnet18")), (4, 8, 16, 32), (64, 128, 256, 512)),
        (lambda: Wrapped(timm.create_model("convnext_atto")), (4, 8, 16, 32), (40, 80, 160, 320)),
        (UNet, (2, 4, 8), (8, 16, 16)),
        (FixedSize, (2, 4), (4, 8)),
        (ConvolutionalClassifier, (4, 8, 16, 32), (3, 4, 5, 6)),  # 240 pixels make 8 cells, as with a stride of 30
    ],
)
def test_strides_and_channels(build, strides, channels):
    stages = Stages(build())
    assert stages.strides == tuple((s, s) for s in strides)
    assert stages.channels == channels
    features = stages(torch.zeros(1, stages.in_chans, 64, 64))
    assert [tuple(f.shape[1:]) for f in features] == [
        (c, 64 // s, 64 // s) for s, c in zip(strides, channels, strict=True)
    ]


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "regnety_002"])
def test_three_ways_to_the_same_features(name):
    """timm's own feature extractor is the truth for `forward_intermediates` and for stages found by watching."""
    network = timm.create_model(name).eval()
    extractor = timm.create_model(name, features_only=True).eval()
    state = {key.replace(".", "_"): value for key, value in network.state_dict().items()}
    extractor.load_state_dict({key: state[key.replace(".", "_")] for key in extractor.state_dict()})
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        truth = extractor(images)[-4:]
        for backbone in (network, extractor, Wrapped(network)):
            for ours, theirs in zip(Stages(backbone)(images), truth, strict=True):
                torch.testing.assert_close(ours, theirs)


def test_stages_of_a_watched_network_are_after_the_activation():
    network = FixedSize()
    images = torch.randn(2, 1, 64, 64)
    fine, coarse = Stages(network)(images)
    torch.testing.assert_close(fine, network.conv1(images).relu())
    assert (coarse >= 0).all() and (coarse == 0).any()


def test_a_stage_is_what_its_container_makes_of_it():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 8, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).relu()).relu()

    network = Functional()
    images = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(Stages(network)(images)[-1], network(images))


@pytest.mark.parametrize(
    ("build", "after"),
    [
        (lambda: timm.create_model("resnet18"), "fc"),
        (lambda: torchvision.models.resnet18(), "fc"),
        (lambda: timm.create_model("ghostnet_100"), "blocks.8"),
        (lambda: timm.create_model("rexnet_100"), "features.16"),
    ],
)
def test_nothing_runs_behind_the_deepest_stage(build, after):
    class Forbidden(nn.Module):
        def forward(self, x):
            raise AssertionError("this must not be run")

    network = build()
    stages = Stages(network)
    network.set_submodule(after, Forbidden())
    assert len(stages(torch.zeros(2, 3, 64, 64))) == 4


@pytest.mark.parametrize(
    ("build", "after"),
    [
        (lambda: timm.create_model("resnet18"), {"fc"}),
        (lambda: timm.create_model("convnext_atto"), {"head.norm", "head.fc"}),
        (lambda: timm.create_model("efficientnet_b0"), {"conv_head", "bn2", "classifier"}),
        (lambda: timm.create_model("rexnet_100"), {"features.16.conv", "features.16.bn", "head.fc"}),
        (lambda: timm.create_model("efficientnet_b0", features_only=True), set()),
        (lambda: torchvision.models.resnet18(), {"fc"}),
        (UNet, {"up2.0", "up2.1", "up1.0", "up1.1", "leave"}),
    ],
)
def test_untrained_are_the_tensors_behind_the_deepest_stage(build, after):
    network = build()
    expected = [name for name in network.state_dict() if name.rpartition(".")[0] in after]
    assert sorted(Stages(network).untrained) == sorted(expected)


def test_a_frozen_parameter_is_not_behind():
    network = timm.create_model("resnet18")
    network.conv1.weight.requires_grad_(False)
    assert Stages(network).untrained == ["fc.weight", "fc.bias"]
    assert not network.conv1.weight.requires_grad


@pytest.mark.parametrize("build", [lambda: timm.create_model("resnet18"), torchvision.models.resnet18, UNet])
def test_finding_stages_leaves_the_network_as_it_was(build):
    network = build().train()
    some = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    some.eval()
    before = copy.deepcopy(network.state_dict())
    modes = [m.training for m in network.modules()]
    random_state = torch.get_rng_state()
    Stages(network)(torch.zeros(1, 3, 64, 64).requires_grad_())
    modes_after = [m.training for m in network.modules()]
    assert modes_after == modes and not some.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    network.load_state_dict(before)  # the call above, in training mode, may change statistics; the finding may not
    Stages(network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Detector(nn.Module):
    """Returns the maps that its head saw, though not in training, when it returns what its head made of them."""

    def __init__(self):
        super().__init__()
        self.one, self.two = conv(3, 4, 2), conv(4, 8, 2)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor):
        one = self.one(x)
        two = self.two(one)
        predicted = self.head(two).flatten(1)
        return predicted if self.training else (predicted, [one, two])


def test_returned_maps_are_those_of_modules_where_a_head_runs_on():
    network = Detector()
    stages = Stages(network)
    assert stages.names == ["one", "two"]
    assert stages.untrained == ["head.weight", "head.bias"]
    assert network.training
    assert [f.shape[1:] for f in stages(torch.randn(2, 3, 8, 8))] == [(4, 4, 4), (8, 2, 2)]


class VariationalAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 4, 2), conv(4, 8, 2))
        self.mean, self.deviation = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)
        self.decoder = nn.ConvTranspose2d(2, 3, 4, 4)

    def forward(self, x: Tensor):
        code = self.encoder(x)
        mean, deviation = self.mean(code), self.deviation(code).exp()
        return self.decoder(mean), mean, deviation


def test_an_image_returned_beside_its_code_is_no_pyramid():
    stages = Stages(VariationalAutoencoder())
    assert (stages.strides, stages.names) == (((2, 2), (4, 4)), ["encoder.0", "deviation"])


def test_named_stages():
    stages = Stages(torchvision.models.resnet18(), stages=["layer1", "layer3"])
    assert (stages.strides, stages.channels, stages.names) == (((4, 4), (16, 16)), (64, 256), ["layer1", "layer3"])
    assert {name.split(".")[0] for name in stages.untrained} == {"layer4", "fc"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["layer5"], r"stages: 'layer5' is no module of ResNet; did you mean layer\d"),
        (["layer1", "maxpool"], r"stages: 'layer1' and 'maxpool' both have stride 4"),
        (["layer1", "avgpool"], r"stages: module 'avgpool' gives no map of features"),
    ],
)
def test_named_stages_that_cannot_be(names, message):
    with pytest.raises(UsageError, match=message):
        Stages(torchvision.models.resnet18(), stages=names)


@pytest.mark.parametrize(
    "name",
    [
        "coatnet_0_rw_224",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")),
    ],
)
def test_networks_with_attention_are_refused(name):
    network = timm.create_model(name)
    with pytest.raises(UsageError, match=r"it has self-attention .* resnet50.* in `stages`"):
        Stages(network)


class EqualConv(nn.Module):
    """As StyleGAN has it: a convolution that is no nn.Conv2d."""

    def __init__(self, inward, outward, kernel, stride):
        super().__init__()
        self.weight, self.stride = nn.Parameter(torch.randn(outward, inward, kernel, kernel)), stride
        self.scale = (inward * kernel**2) ** -0.5

    def forward(self, x):
        return F.conv2d(x, self.weight * self.scale, stride=self.stride, padding=self.weight.shape[2] // 2)


def test_heads_of_a_whole_network_are_no_attention():
    network = UNet()
    network.num_heads = 3
    assert Stages(network).channels == (8, 16, 16)


def test_convolutions_that_are_no_modules_of_torch():
    network = nn.Sequential(EqualConv(3, 8, 3, 2), nn.LeakyReLU(0.2), EqualConv(8, 16, 3, 2), EqualConv(16, 16, 1, 1))
    model = SparK(network, 32, decoder_width=16)
    assert model.stages.strides == ((2, 2), (4, 4)) and model.in_chans == 3
    assert model.stages.dtype == torch.float32


class Overwritten(nn.Module):
    def forward(self, x):
        gate = x.sigmoid()
        return gate.mul_(2)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (torch.fx.symbolic_trace(EqualConv(3, 4, 3, 2)), "torch.export hides them: give the module that it was made"),
        (nn.Linear(3, 3), "Linear is not a convolutional network: it has no Conv2d"),
        (nn.Conv2d(3, 4, 3, padding=1), "Conv2d has no stages"),
        (nn.Conv2d(3, 4, 5, 2), "Conv2d has no stages"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 11, 11)),
            "has no stages: .* pass an image size that is a multiple of its stride",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(5, 5)),
            "cannot be run on an image .* 1 x 3 x 128.* image_size",
        ),
        (nn.Sequential(nn.LazyConv2d(4, 2, 2)), "0.weight of a lazy layer .* Call the network once on an image"),
        (nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten(), nn.LazyLinear(3)), "2.weight of a lazy layer"),
        (nn.Sequential(nn.Conv2d(3, 4, 2, 2), Overwritten()), "on a whole image, .* fail: .* inplace"),
    ],
)
def test_other_networks_that_cannot_be(network, message):
    with pytest.raises(UsageError, match=message):
        Stages(network)


def test_a_stride_that_is_no_power_of_two():
    network = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))
    assert Stages(network).strides == ((4, 4), (8, 8))

    class Thirds(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 6, 6)

        def forward(self, x):
            assert x.shape[-1] == 96, "fixed size"
            return self.conv(x)

    assert Stages(Thirds(), image_size=(96, 96)).strides == ((6, 6),)
    with pytest.raises(UsageError, match=r"strides 11: .* 11 times larger at once; it goes up to 7"):
        Stages(nn.Conv2d(3, 4, 11, 11), image_size=(88, 110))


@pytest.mark.parametrize(("stride", "nearest"), [(3, "222x222 or 225x225"), (5, "220x220 or 225x225"), (9, "216x216")])
def test_sizes_that_an_unusual_stride_divides_are_named(stride, nearest):
    network = nn.Sequential(nn.Conv2d(3, 4, stride, stride), nn.ReLU())
    with pytest.raises(UsageError, match=f"224x224 is not divisible by the patch of {stride} pixels.*{nearest}"):
        SparK(network, image_size=224, decoder_width=8)
    assert SparK(network, image_size=8 * stride, decoder_width=8).patch_size == (stride, stride)


def test_channels_of_a_network_that_begins_with_a_rearrangement():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.pretrained_cfg = {"input_size": (3, 224, 224)}
            self.fold, self.conv = nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 1)

        def forward(self, x):
            return self.conv(self.fold(x))

    assert Stages(Blocks()).in_chans == 3
    with pytest.raises(UsageError, match=r"1 x 5 x 128 x 192.* pass in_chans"):
        Stages(Blocks(), in_chans=5)


def test_a_volume():
    network = nn.Sequential(nn.Conv3d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv3d(4, 8, 3, 2, 1), nn.ReLU())
    stages = Stages(network)
    assert (stages.dims, stages.in_chans, stages.strides, stages.channels) == (3, 2, ((2, 2, 2), (4, 4, 4)), (4, 8))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda stages: pickle.loads(pickle.dumps(stages))])
@pytest.mark.parametrize("build", [lambda: timm.create_model("resnet18"), UNet])
def test_a_copy_runs_its_own_backbone(build, duplicate):
    stages = Stages(build().eval())
    images = torch.randn(1, 3, 32, 32)
    before = stages(images)
    other = duplicate(stages)
    with torch.no_grad():
        for parameter in other.backbone.parameters():
            parameter.zero_()
    for ours, then in zip(stages(images), before, strict=True):
        assert torch.equal(ours, then)
    assert all((f == 0).all() for f in other(images))


def test_two_threads_do_not_mix_their_features():
    network = UNet().eval()
    stages = Stages(network)
    images = [torch.randn(1, 3, 64, 64) for _ in range(4)]
    with torch.no_grad():
        alone = [stages(x) for x in images]
        together: list[list[Tensor] | None] = [None] * len(images)

        def run(i: int) -> None:
            with torch.no_grad():
                for _ in range(10):
                    together[i] = stages(images[i])

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(images))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for features, expected in zip(together, alone, strict=True):
        assert features is not None
        for ours, theirs in zip(features, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_shared_modules_and_tied_weights_keep_their_parameters():
    shared, tied = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    tied.weight = shared.weight
    network = nn.Sequential(conv(3, 8, 2), shared, nn.ReLU(), shared, tied, conv(8, 16, 2))
    before = {name: id(p) for name, p in network.named_parameters(remove_duplicate=False)}
    stages = Stages(network)
    stages.first_stage_of_parameters()
    assert {name: id(p) for name, p in network.named_parameters(remove_duplicate=False)} == before
    assert all(isinstance(p, nn.Parameter) for p in network.parameters()) and stages.untrained == []
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    kept = shared.weight.detach().clone()
    stages(torch.randn(2, 3, 16, 16))[-1].sum().backward()
    optimizer.step()
    assert not torch.equal(shared.weight, kept) and tied.weight is shared.weight


def test_networks_without_weights_that_train_are_refused_in_words():
    with pytest.raises(UsageError, match=r"lazy layer.*Call the network once on an image"):
        Stages(nn.Sequential(nn.LazyConv2d(8, 3, 2, 1), nn.ReLU()))
    with torch.inference_mode():
        made_within = conv(3, 8, 2)
        with pytest.raises(UsageError, match="leave that mode"):
            Stages(conv(3, 8, 2))
    with pytest.raises(UsageError, match=r"made within torch\.inference_mode"):
        Stages(made_within)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(1, 8, 4, 4))])
def test_modules_compiled_by_torchscript_are_refused_by_name(compiled):
    with pytest.raises(UsageError, match=r"1 was compiled by TorchScript .*use the module that it was made from"):
        Stages(nn.Sequential(conv(3, 8, 2), compiled(nn.ReLU()), conv(8, 16, 2)))
