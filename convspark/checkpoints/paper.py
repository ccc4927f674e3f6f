"""The checkpoints of the paper's own code, read and written.

Two layouts exist: the whole model (`*_withdecoder_1kpretrained_spark_style.pth`), and the backbone alone
(`*_1kpretrained_timm_style.pth`). In both, a ResNet has timm's key names and a ConvNeXt those of the official
ConvNeXt, which timm renamed. `load` and `state_dict` are an inverse pair for the first; `backbone_state_dict`
reads the backbone from either.
"""

import os
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..imagenet import IMAGENET_MEAN, IMAGENET_STD
from ..model.decoder import Decoder
from ..model.spark import SparK
from ..model.stages import Stages

Source = str | os.PathLike[str] | Mapping[str, Any]
"""A file, or the dictionary that such a file holds, or its `module` level alone."""

BACKBONE_PREFIX = "sparse_encoder.sp_cnn."


# Buffers that the paper's code registers but never uses, and a dictionary that is no tensor.
_NOT_WEIGHTS = ("imn_m", "imn_s", "norm_black", "config")

# Ours -> the paper's, for what is not the backbone. `{}` stands for an index.
_MODEL_KEYS = {
    "densify.{}.norm": "densify_norms.{}",
    "densify.{}.project": "densify_projs.{}",
    "densify.{}.mask_token": "mask_tokens.{}",
    "decoder.blocks.{}.up": "dense_decoder.dec.{}.up_sample",
    "decoder.blocks.{}.conv1": "dense_decoder.dec.{}.conv.0",
    "decoder.blocks.{}.norm1": "dense_decoder.dec.{}.conv.1",
    "decoder.blocks.{}.conv2": "dense_decoder.dec.{}.conv.3",
    "decoder.blocks.{}.norm2": "dense_decoder.dec.{}.conv.4",
    "decoder.head": "dense_decoder.proj",
}

# timm's ConvNeXt -> the official one. A longer name comes before one that it begins with.
_CONVNEXT_KEYS = {
    "stem.{}": "downsample_layers.0.{}",
    "stages.{}.downsample.{}": "downsample_layers.{}.{}",
    "stages.{}.blocks.{}.conv_dw": "stages.{}.{}.dwconv",
    "stages.{}.blocks.{}.norm": "stages.{}.{}.norm",
    "stages.{}.blocks.{}.mlp.fc1": "stages.{}.{}.pwconv1",
    "stages.{}.blocks.{}.mlp.fc2": "stages.{}.{}.pwconv2",
    "stages.{}.blocks.{}.gamma": "stages.{}.{}.gamma",
    "head.norm": "norm",
    "head.fc": "head",
}


def load(
    source: Source,
    backbone: nn.Module,
    *,
    image_size: int | Sequence[int] | None = None,
    mask_ratio: float | None = None,
    called: str | None = None,
) -> SparK:
    """The paper's whole model, with this backbone in it.

    Args:
        source: a `*_spark_style.pth` file, its dictionary, or the `module` level of it.
        backbone: a network of the checkpoint's architecture, timm's ResNet or ConvNeXt; its weights are
            overwritten, parameters after the deepest stage excepted.
        image_size: None takes the checkpoint's, or 224 where it does not say.
        mask_ratio: None takes the checkpoint's, or 0.6 where it does not say.
        called: name of the source in messages, where it is a dictionary.

    Width of the decoder and kind of the densify norms follow the tensors.

    Raises:
        UsageError: the source cannot be read, is of another layout, or does not fit the backbone.
    """
    content = _read(source)
    called = called or _title(source)
    weights = _module_level(content)
    _check_decoder(weights, called)
    config: Mapping[str, Any] = weights.get("config") or {}
    if image_size is None:
        image_size = image_size_of(content)
    if image_size is None and isinstance(weights.get("norm_black"), Tensor):
        image_size = tuple(weights["norm_black"].shape[2:])
    model = SparK(
        backbone,
        image_size=224 if image_size is None else image_size,
        mask_ratio=config.get("mask_ratio", 0.6) if mask_ratio is None else mask_ratio,
        decoder="paper",
        decoder_width=weights["dense_decoder.dec.0.up_sample.weight"].shape[0],
        densify_norm="batch" if "densify_norms.0.running_mean" in weights else "layer",
        prove=False,
    )
    names = model_names(model)
    tensors = {key: value for key, value in weights.items() if key not in _NOT_WEIGHTS}
    own = model.state_dict()
    excused = {f"backbone.{name}" for name in model.untrained}
    excused |= {key for key in own if key.endswith("num_batches_tracked")}  # a counter that nothing depends on
    expected = {names[key]: value for key, value in own.items() if key not in excused or names[key] in tensors}
    _check_fit(called, expected, tensors)
    loaded = {key: tensors[names[key]].reshape(own[key].shape) for key in own if names[key] in tensors}
    model.load_state_dict({**own, **loaded})
    return model


def image_size_of(content: Mapping[str, Any]) -> int | None:
    """Side of the images in pixels, where a checkpoint's dictionary says it."""
    config = _module_level(content).get("config")
    inner = config.get("sparse_encoder.input_size") if isinstance(config, Mapping) else None
    side = content.get("input_size", inner)
    return side if isinstance(side, int) else None


def has_decoder(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's dictionary is a whole model's."""
    return "dense_decoder.proj.weight" in _module_level(content)


def channels_of(content: Mapping[str, Any], called: str | None = None) -> int:
    """Channels of the images of a whole model's dictionary.

    Raises:
        UsageError: it holds no decoder.
    """
    weights = _module_level(content)
    _check_decoder(weights, called or _title(content))
    return weights["dense_decoder.proj.weight"].shape[0]


def state_dict(model: SparK, *, sync_batchnorm: bool = False) -> "OrderedDict[str, Any]":
    """The model in the layout of the paper's code (the `module` level of its files), dead buffers included.

    Args:
        model: of a timm ResNet or ConvNeXt, if the paper's code is to take it.
        sync_batchnorm: what `config` is to say of it; the paper's code compares it with its own setting.

    What lies after the deepest stage is left out, as the paper's networks have no classifier. Tensors are
    detached, and share memory with the model's.

    Raises:
        UsageError: the layout has no place for the model; see `no_place_for`.
    """
    reason = no_place_for(model)
    if reason is not None:
        raise UsageError(f"model cannot be written in the paper's layout: {reason}; or export its backbone")
    names = model_names(model)
    others = {names[key]: value for key, value in model.state_dict().items() if not key.startswith("backbone.")}
    channels = model.in_chans
    mean, deviation = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.0,) * channels, (1.0,) * channels)
    ones = (1,) * len(model.image_size)
    out: OrderedDict[str, Any] = OrderedDict()
    out["imn_m"] = torch.tensor(mean).view(1, channels, *ones)
    out["imn_s"] = torch.tensor(deviation).view(1, channels, *ones)
    out["norm_black"] = torch.zeros(1, channels, *model.image_size)
    encoder = backbone_in_layout(model.backbone, model.untrained)
    out.update((BACKBONE_PREFIX + name, value) for name, value in encoder.items())
    for prefix in ("dense_decoder.", "densify_norms.", "densify_projs.", "mask_tokens."):
        out.update((key, value) for key, value in others.items() if key.startswith(prefix))
    out["config"] = {
        "mask_ratio": model.mask_ratio,
        "densify_norm_str": {"batch": "bn", "layer": "ln"}[model.densify_norm],
        "sbn": sync_batchnorm,
        "hierarchy": len(model.stages.strides),
        "sparse_encoder.input_size": model.image_size[0],
        "dense_decoder.width": model.decoder_width,
    }
    return out


def no_place_for(model: SparK) -> str | None:
    """Why the layout of a whole model has no place for this one; None if it has."""
    if not isinstance(model.decoder, Decoder):
        return "its decoder is the lean one, and the layout holds the paper's alone (decoder='paper', --decoder paper)"
    if len(set(model.image_size)) > 1:
        return f"its images are {'x'.join(map(str, model.image_size))} pixels, and the layout holds one side alone"
    if model.patch_size != model.stages.strides[-1]:
        patch, stride = ("x".join(map(str, sides)) for sides in (model.patch_size, model.stages.strides[-1]))
        return f"its patches are {patch} pixels, and in the layout they are the deepest stride, {stride}"
    stages = Stages(model.backbone, None, model.in_chans, model.image_size)
    if model.stages.strides != stages.strides:
        return f"it decodes {len(model.stages.strides)} stages, and the layout has {len(stages.strides)} of the network"
    if model.encoding != "sparse" or model.target != "normalised" or model.densify[0].mask_token is None:
        return "a part of the method was taken away (encoding, target or mask token), which the layout cannot say"
    return None


def backbone_in_layout(backbone: nn.Module, untrained: Collection[str]) -> "OrderedDict[str, Tensor]":
    """A backbone's weights under the names of the paper's code, as in `*_1kpretrained_timm_style.pth`.

    Args:
        untrained: names of what lies after the deepest stage, which is left out.
    """
    own = backbone.state_dict()
    names = backbone_names(own)
    weights = {names[key]: value for key, value in own.items() if key not in untrained}
    for key, value in weights.items():
        if re.search(r"\.pwconv\d\.weight$", key):
            weights[key] = value.flatten(1)  # Linear in the official ConvNeXt, in timm's a 1x1 convolution at times
    return OrderedDict((key, weights[key]) for key in sorted(weights, key=_is_convnext_stage))


def backbone_state_dict(source: Source, backbone: nn.Module) -> dict[str, Tensor]:
    """The backbone's weights in a checkpoint of either layout, under this backbone's names.

    Weights that the backbone has no place for keep their names, so that the caller can report them;
    whether the weights are complete is for the caller to judge.
    """
    weights = _module_level(_read(source))
    if any(key.startswith(BACKBONE_PREFIX) for key in weights):
        weights = {k.removeprefix(BACKBONE_PREFIX): v for k, v in weights.items() if k.startswith(BACKBONE_PREFIX)}
    own = backbone.state_dict()
    ours = {paper: name for name, paper in backbone_names(own).items()}
    out = {}
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            continue
        name = key if key in own else ours.get(key, key)
        fits = name in own and value.numel() == own[name].numel()
        out[name] = value.reshape(own[name].shape) if fits and _pointwise(value, own[name]) else value
    return out


def is_paper_layout(weights: Mapping[str, Any]) -> bool:
    """Whether this dictionary looks like one of the paper's files, rather than a plain timm one."""
    weights = _module_level(weights)
    return any(key.startswith((BACKBONE_PREFIX, "downsample_layers.")) for key in weights)


def backbone_names(state: Mapping[str, Any]) -> dict[str, str]:
    """A backbone's own key names -> the paper's."""
    names = {}
    plain = {key: re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", key) for key in state}  # of features_only models
    convnext = any(".conv_dw." in key and key.startswith("stages.") for key in plain.values())
    for key, name in plain.items():
        names[key] = _translate(name, _CONVNEXT_KEYS) if convnext else name
    return names


def model_names(model: SparK) -> dict[str, str]:
    """All keys of a model's state dict -> the paper's."""
    in_backbone = backbone_names(model.backbone.state_dict())
    names = {f"backbone.{key}": BACKBONE_PREFIX + name for key, name in in_backbone.items()}
    others = (key for key in model.state_dict() if key not in names)
    return names | {key: _translate(key, _MODEL_KEYS) for key in others}


def _translate(key: str, table: Mapping[str, str]) -> str:
    for ours, paper in table.items():
        pattern = re.escape(ours).replace(r"\{\}", r"(\d+)")
        match = re.fullmatch(pattern + r"(|\..*)", key)
        if match:
            *indices, rest = match.groups()
            return paper.format(*indices) + rest
    return key


def _is_convnext_stage(key: str) -> bool:
    """The official ConvNeXt holds its stages after all downsampling layers; elsewhere the order is the same."""
    return key.startswith("stages.")


def _pointwise(one: Tensor, other: Tensor) -> bool:
    """Whether two weights of equal numbers are one linear layer, as a Linear and as a 1x1 convolution."""
    strip = {tuple(n for n in t.shape[:2]) for t in (one, other)}
    return len(strip) == 1 and all(n == 1 for t in (one, other) for n in t.shape[2:])


def _check_fit(called: str, own: Mapping[str, Tensor], tensors: Mapping[str, Any]) -> None:
    missing = [key for key in own if key not in tensors]
    unknown = [key for key in tensors if key not in own]
    other = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in tensors
        and tensors[key].shape != own[key].shape
        and not (tensors[key].numel() == own[key].numel() and _pointwise(tensors[key], own[key]))
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:3])}{', …' if len(keys) > 3 else ''}"
        for what, keys in (("missing", missing), ("of no place in it", unknown), ("of another shape", other))
        if keys
    ]
    if problems:
        raise UsageError(
            f"source={called} does not fit the backbone: {len(own) - len(missing)} of {len(own)} "
            f"tensors found; {'; '.join(problems)}. Expected a network of the architecture that was saved"
        )


def _check_decoder(weights: Mapping[str, Any], called: str) -> None:
    if not has_decoder(weights):
        raise UsageError(
            f"source={called} holds no decoder (dense_decoder.*): expected a whole model of the paper's code, "
            "*_withdecoder_1kpretrained_spark_style.pth. For a backbone alone, use backbone_state_dict"
        )


def _module_level(content: Mapping[str, Any]) -> Mapping[str, Any]:
    for level in ("module", "state_dict", "model"):
        if isinstance(content.get(level), Mapping):
            return content[level]
    return content


def _read(source: Source) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    if not Path(source).is_file():
        raise UsageError(f"source={_title(source)} is no file; expected a .pth checkpoint of the paper's code")
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch raises where bytes are not what it expects
        raise UsageError(
            f"source={_title(source)} cannot be read as weights: {error}. Files that hold more than tensors "
            "and plain values are refused, because loading them could run any code"
        ) from error
    if not isinstance(content, Mapping):
        raise UsageError(f"source={_title(source)} holds a {type(content).__name__}; expected a dictionary of weights")
    return content


def _title(source: Source) -> str:
    return f"a dictionary of {len(source)} entries" if isinstance(source, Mapping) else repr(str(source))
