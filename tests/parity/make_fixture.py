"""Write `fixture.safetensors`: two small networks' numbers, computed without the engine.

    python tests/parity/make_fixture.py

The truth here is mask-and-multiply on whole images: each convolution and pool sees zeros at masked positions,
batch norm takes its statistics over visible ones. It shares no line with `convspark`: torch and timm's layers
only. Weights and images come from a formula rather than a random generator, so that the file holds results
alone and no version of torch changes them; large tensors are kept as two sums.

The decoder is written down again below, in the order and with the names of the paper's checkpoints.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers.squeeze_excite import SEModule
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SIZE, PATCH, WIDTH = 64, 32, 32
VISIBLE = torch.tensor([[[1, 0], [0, 1]], [[0, 0], [1, 0]], [[1, 1], [1, 0]]], dtype=torch.bool)


def wave(shape: tuple[int, ...], seed: float) -> Tensor:
    """A fixed pattern in (-1, 1) without any period in sight."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(index.square() * 0.0137 + index * (1.0 + seed) + seed).reshape(shape)


def build(kind: str) -> nn.Module:
    """The backbones, in float64, with PyTorch's names and no values yet."""
    if kind == "resnet":
        backbone = ResNet(
            BasicBlock,
            (1, 1, 1, 1),
            channels=(4, 8, 8, 16),
            stem_width=4,
            stem_type="deep",
            avg_down=True,
            num_classes=0,
            global_pool="",
            block_args={"attn_layer": SEModule},
        )
    else:
        backbone = ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 8, 8, 16), num_classes=0, ls_init_value=0.5)
    return backbone.double()


def fill(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values for each entry of a state dict, by name: weights around 0, scales and variances around 1."""
    out = {}
    for i, (name, value) in enumerate(sorted(state.items())):
        if name.endswith("num_batches_tracked"):
            out[name] = torch.zeros_like(value)
            continue
        values = wave(tuple(value.shape), 0.61803 * (i + 1) % 1.0)
        if value.ndim <= 1 and name.endswith(("weight", "running_var", "gamma")):
            out[name] = 1.0 + 0.2 * values
        else:
            fan_in = max(1, value[0].numel()) if value.ndim > 1 else 50
            out[name] = values / math.sqrt(fan_in)
    return out


def fit(mask: Tensor, x: Tensor) -> Tensor:
    """(B, h, w) -> (B, 1, H, W), as large as the map x."""
    return F.interpolate(mask[:, None].to(x.dtype), size=x.shape[2:], mode="nearest")


class MaskAndMultiply(TorchFunctionMode):
    """Dense layers that behave as if only visible patches existed."""

    NEIGHBOURHOOD = (F.conv2d, F.max_pool2d, F.avg_pool2d, torch.max_pool2d)

    def __init__(self, visible: Tensor):
        super().__init__()
        self.visible = visible

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.NEIGHBOURHOOD and args[0].shape[-1] > 1:
            return func(args[0] * fit(self.visible, args[0]), *args[1:], **kwargs)
        if func is F.batch_norm and args[0].shape[-1] > 1:
            return self.batch_norm(*args, **kwargs)
        if func is Tensor.mean and args[0].ndim == 4:  # squeeze-and-excite
            mask = fit(self.visible, args[0])
            return (args[0] * mask).sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True)
        return func(*args, **kwargs)

    def batch_norm(self, x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
        if training:
            mask = fit(self.visible, x)
            count = mask.sum()
            batch_mean = (x * mask).sum((0, 2, 3)) / count
            centred = (x - batch_mean.view(1, -1, 1, 1)) * mask
            batch_var = centred.square().sum((0, 2, 3)) / count
            with torch.no_grad():
                mean.lerp_(batch_mean, momentum)
                var.lerp_(batch_var * count / (count - 1), momentum)
            mean, var = batch_mean, batch_var
        scale = weight / torch.sqrt(var + eps)
        return (x - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def paper_names(kind: str, name: str) -> str:
    """timm's key of a backbone's tensor -> the paper's; written out for these networks."""
    if kind == "convnext":
        parts = name.split(".")
        if parts[0] == "stem":
            parts = ["downsample_layers", "0", *parts[1:]]
        elif parts[2] == "downsample":
            parts = ["downsample_layers", parts[1], *parts[3:]]
        else:
            rest = ".".join(parts[4:])
            for timm, official in (("conv_dw", "dwconv"), ("mlp.fc1", "pwconv1"), ("mlp.fc2", "pwconv2")):
                rest = rest.replace(timm, official)
            parts = ["stages", parts[1], parts[3], rest]
        name = ".".join(parts)
    return "sparse_encoder.sp_cnn." + name


def decoder_shapes(channels: list[int], batch_norm: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all that is not the backbone, for WIDTH and five blocks."""
    shapes: dict[str, tuple[int, ...]] = {}
    for k in range(5):
        wide, narrow = WIDTH >> k, WIDTH >> (k + 1)
        block = f"dense_decoder.dec.{k}."
        shapes |= {block + "up_sample.weight": (wide, wide, 4, 4), block + "up_sample.bias": (wide,)}
        shapes |= {block + "conv.0.weight": (wide, wide, 3, 3), block + "conv.3.weight": (narrow, wide, 3, 3)}
        for norm, width in ((".1.", wide), (".4.", narrow)):
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[block + "conv" + norm + part] = (width,)
    shapes |= {"dense_decoder.proj.weight": (3, WIDTH >> 5, 1, 1), "dense_decoder.proj.bias": (3,)}
    for i, c in enumerate(reversed(channels)):
        parts = ("weight", "bias", "running_mean", "running_var") if batch_norm else ("weight", "bias")
        shapes |= {f"densify_norms.{i}.{part}": (c,) for part in parts}
        kernel = 1 if i == 0 else 3
        shapes |= {
            f"densify_projs.{i}.weight": (WIDTH >> i, c, kernel, kernel),
            f"mask_tokens.{i}": (1, c, 1, 1),
        }
        shapes[f"densify_projs.{i}.bias"] = (WIDTH >> i,)
    return shapes


def decode(features: list[Tensor], visible: Tensor, p: dict[str, Tensor], mode: MaskAndMultiply) -> Tensor:
    """Densify and decode: `features` finest first -> the prediction, with p's running statistics updated."""

    def norm(x: Tensor, name: str) -> Tensor:
        statistics = p[name + ".running_mean"], p[name + ".running_var"]
        return F.batch_norm(x, *statistics, p[name + ".weight"], p[name + ".bias"], training=True)

    x = torch.zeros(())
    for k in range(5):
        if k < 4:
            name, feature = f"densify_norms.{k}", features[3 - k]
            if name + ".running_mean" in p:
                statistics = p[name + ".running_mean"], p[name + ".running_var"]
                y = mode.batch_norm(feature, *statistics, p[name + ".weight"], p[name + ".bias"], training=True)
            else:
                centred = feature - feature.mean(1, keepdim=True)
                y = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + 1e-6)
                y = y * p[name + ".weight"].view(1, -1, 1, 1) + p[name + ".bias"].view(1, -1, 1, 1)
            mask = fit(visible, y)
            y = y * mask + p[f"mask_tokens.{k}"] * (1 - mask)
            weight = p[f"densify_projs.{k}.weight"]
            x = x + F.conv2d(y, weight, p[f"densify_projs.{k}.bias"], padding=weight.shape[-1] // 2)
        block = f"dense_decoder.dec.{k}."
        x = F.conv_transpose2d(x, p[block + "up_sample.weight"], p[block + "up_sample.bias"], stride=2, padding=1)
        x = norm(F.conv2d(x, p[block + "conv.0.weight"], padding=1), block + "conv.1").clamp(0, 6)
        x = norm(F.conv2d(x, p[block + "conv.3.weight"], padding=1), block + "conv.4")
    return F.conv2d(x, p["dense_decoder.proj.weight"], p["dense_decoder.proj.bias"])


def masked_loss(images: Tensor, prediction: Tensor, visible: Tensor) -> Tensor:
    """The loss patch by patch, as one would explain it."""
    losses = []
    for b in range(len(images)):
        for row in range(visible.shape[1]):
            for column in range(visible.shape[2]):
                if not visible[b, row, column]:
                    cut = (b, slice(None), slice(row * PATCH, (row + 1) * PATCH))
                    cut = (*cut, slice(column * PATCH, (column + 1) * PATCH))
                    target = images[cut]
                    target = (target - target.mean()) / torch.sqrt(target.var(unbiased=True) + 1e-6)
                    losses.append((prediction[cut] - target).square().mean())
    return torch.stack(losses).sum() / (len(losses) + 1e-8)


def two_sums(x: Tensor) -> Tensor:
    """A tensor as two numbers: its product with a fixed pattern, and its norm."""
    x = x.detach()
    return torch.stack([(x * wave(tuple(x.shape), 0.3)).sum(), x.norm()])


def images() -> Tensor:
    return wave((len(VISIBLE), 3, SIZE, SIZE), 0.77)


def initial_state(kind: str) -> dict[str, Tensor]:
    """A whole model's weights, in the paper's layout."""
    channels = [4, 8, 8, 16]
    state = {paper_names(kind, k): v for k, v in build(kind).state_dict().items() if not k.startswith("head.")}
    shapes = decoder_shapes(channels, batch_norm=kind == "resnet")
    state |= {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    return fill(state)


def compute(kind: str) -> dict[str, Tensor]:
    """One training step's numbers."""
    state = initial_state(kind)
    backbone = build(kind).train()
    own = {name: state[paper_names(kind, name)] for name in backbone.state_dict() if not name.startswith("head.")}
    backbone.load_state_dict(own, strict=False)
    rest = {name: value.clone() for name, value in state.items() if not name.startswith("sparse_encoder.")}
    for name, value in rest.items():
        value.requires_grad_("running" not in name)

    mode = MaskAndMultiply(VISIBLE)
    x = images() * fit(VISIBLE, images())
    with mode:
        features = backbone.forward_intermediates(x, intermediates_only=True)[-4:]
    features = [feature * fit(VISIBLE, feature) for feature in features]
    prediction = decode(features, VISIBLE, rest, mode)
    loss = masked_loss(images(), prediction, VISIBLE)
    loss.backward()

    out = {
        "loss": loss.detach(),
        "prediction": two_sums(prediction),
        "features.deepest": features[-1].detach().contiguous(),
    }
    out["prediction.corner"] = prediction.detach()[:, :, ::16, ::16].contiguous()
    out |= {f"features.{i}": two_sums(feature) for i, feature in enumerate(features)}
    parameters = dict(rest) | {paper_names(kind, n): p for n, p in backbone.named_parameters() if "head." not in n}
    after = dict(rest) | {paper_names(kind, n): b for n, b in backbone.named_buffers()}
    for name in state:
        if "running" in name:
            out[f"after.{name}"] = two_sums(after[name])
        elif "num_batches" not in name:
            out[f"grad.{name}"] = two_sums(parameters[name].grad)
    return out


if __name__ == "__main__":
    tensors = {f"{kind}.{name}": t for kind in ("resnet", "convnext") for name, t in compute(kind).items()}
    target = Path(__file__).with_name("fixture.safetensors")
    save_file(tensors, target)
    print(f"{target.name}: {len(tensors)} tensors, {target.stat().st_size / 1024:.0f} KiB")
