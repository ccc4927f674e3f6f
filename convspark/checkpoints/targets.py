"""A backbone in the layouts of other libraries, by tables of names; each is checked before it is kept."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConvsparkError, UsageError
from ..files import written_whole
from ..model.stages import image_channels
from ..names import in_code, many

_MMDET_CONVNEXTS = tuple(f"convnext_{s}" for s in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large"))

# timm name -> torchvision name, where both are the same network.
_TORCHVISION = {
    **{name: name for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
    **{name: name for name in ("wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d")},
    **{f"convnext_{size}": f"convnext_{size}" for size in ("tiny", "small", "base", "large")},
}

_CONVNEXT_TO_TORCHVISION = (
    (r"^stem\.(\d)\.", r"features.0.\1."),
    (r"^stages\.(\d+)\.downsample\.(\d)\.", lambda m: f"features.{2 * int(m[1])}.{m[2]}."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.", lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}."),
    (r"\.conv_dw\.", ".block.0."),
    (r"\.norm\.", ".block.2."),
    (r"\.mlp\.fc1\.", ".block.3."),
    (r"\.mlp\.fc2\.", ".block.5."),
    (r"\.gamma$", ".layer_scale"),
)
_CONVNEXT_TO_MMDET = (
    (r"^stem\.(\d)\.", r"downsample_layers.0.\1."),
    (r"^stages\.(\d+)\.downsample\.(\d)\.", r"downsample_layers.\1.\2."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.\2."),
    (r"\.conv_dw\.", ".depthwise_conv."),
    (r"\.mlp\.fc1\.", ".pointwise_conv1."),
    (r"\.mlp\.fc2\.", ".pointwise_conv2."),
)
_RESNET_TO_DETECTRON2 = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


@dataclass(frozen=True)
class Written:
    """A file, or for timm and the paper's code a folder, in another library's layout.

    Attributes:
        file: where it lies.
        target: timm, torchvision, onnx, detectron2, mmdet or paper.
        tensors: in it.
        checked: how it was checked.
        use: how that library loads it.
    """

    file: str
    target: str
    tensors: int
    checked: str
    use: str

    def __str__(self) -> str:
        return f"{self.file}: {many(self.tensors, 'tensor')} for {self.target}; {self.checked}\n{self.use}"


def export_torchvision(backbone: nn.Module, name: str, file: str | os.PathLike[str], size: tuple[int, int]) -> Written:
    """A .pth file of torchvision's names, loaded into torchvision's network and compared in its features.

    Raises:
        UsageError: torchvision has no such network.
        ConvsparkError: the features differ.
    """
    from torchvision import models

    own = name.startswith("torchvision:")
    architecture = name.removeprefix("torchvision:") if own else name.partition(".")[0]
    if own:
        return _save(
            _state(backbone),
            file,
            "torchvision",
            "read back, every tensor equal",
            f"torchvision.models.{architecture}().load_state_dict(torch.load({in_code(file)}), strict=False)",
        )
    if architecture not in _TORCHVISION:
        raise UsageError(f"torchvision has no network that equals timm's {architecture}: it has {_list(_TORCHVISION)}")
    state = _plain(backbone)
    if architecture.startswith("convnext"):
        state = renamed(state, _CONVNEXT_TO_TORCHVISION)
        state = {n: t[:, None, None] if n.endswith("layer_scale") else t for n, t in state.items()}
    theirs = models.get_model(_TORCHVISION[architecture], weights=None)
    if (have := next(t.shape[1] for t in state.values() if t.ndim == 4)) != 3:
        raise UsageError(
            f"torchvision's {architecture} takes colour images, and these weights are of images of "
            f"{many(have, 'channel')}: use --to timm or onnx"
        )
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    head = {n for n in missing if n.startswith(("fc.", "classifier."))}
    if unexpected or set(missing) - head:
        raise ConvsparkError(
            f"names do not fit torchvision's {architecture}: {sorted({*missing, *unexpected} - head)[:5]}"
        )
    theirs.eval()
    if hasattr(theirs, "fc"):
        theirs.fc = nn.Identity()
        expected = backbone.eval()(images := _images(backbone, size))
    else:
        theirs = theirs.get_submodule("features")  # a ConvNeXt's head norm comes after what is pre-trained
        expected = backbone.eval().forward_features(images := _images(backbone, size))  # type: ignore[operator]
    with torch.no_grad():
        difference = float((theirs(images) - expected).abs().max() / expected.abs().max())
    if not difference < 1e-4:
        raise ConvsparkError(
            f"torchvision's {architecture} gives other features with these weights ({difference:.2g}): was the network "
            "built with arguments (--model-args) that torchvision's does not have? Use --to timm or onnx"
        )
    return _save(
        state,
        file,
        "torchvision",
        f"loaded by torchvision, features equal to {difference:.1e}",
        f"torchvision.models.{_TORCHVISION[architecture]}().load_state_dict(torch.load({in_code(file)}), strict=False)",
    )


def export_detectron2(backbone: nn.Module, name: str, file: str | os.PathLike[str]) -> Written:
    """A .pth file of detectron2's names for its ResNets (`MODEL.WEIGHTS`), by a table."""
    _needs_resnet(backbone, name, "detectron2")
    state = {f"backbone.bottom_up.{n}": t for n, t in renamed(_plain(backbone), _RESNET_TO_DETECTRON2).items()}
    state = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    use = (
        f'MODEL.WEIGHTS: "{file}"; MODEL.RESNETS.STRIDE_IN_1X1: False; INPUT.FORMAT: RGB; '
        "PIXEL_MEAN and PIXEL_STD: those of pre-training times 255"
    )
    return _save({"model": state, "matching_heuristics": False}, file, "detectron2", _BY_TABLE, use)


def export_mmdet(backbone: nn.Module, name: str, file: str | os.PathLike[str]) -> Written:
    """A .pth file of MMDetection's names for its ResNets and ConvNeXts, by a table."""
    architecture = name.partition(".")[0]
    if architecture in _MMDET_CONVNEXTS:
        state = renamed(_plain(backbone), _CONVNEXT_TO_MMDET)
        # timm's smallest have 1x1 convolutions where MMDetection's have the same as linear layers.
        state = {n: t[:, :, 0, 0] if "pointwise" in n and t.ndim == 4 else t for n, t in state.items()}
    else:
        _needs_resnet(backbone, name, "mmdet")
        state = _plain(backbone)
    state = {f"backbone.{n}": t for n, t in state.items()}
    use = f'init_cfg=dict(type="Pretrained", checkpoint="{file}", prefix="backbone.")'
    return _save({"state_dict": state}, file, "mmdet", _BY_TABLE, use)


def export_onnx(network: nn.Module, file: str | os.PathLike[str], size: tuple[int, int]) -> Written:
    """An .onnx file with batches of any size, run by onnxruntime and compared.

    Raises:
        UsageError: onnx or onnxruntime is not installed.
        ConvsparkError: its outputs differ.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  what torch's exporter is built on
    except ImportError as error:
        raise UsageError(f"--to onnx needs {error.name}: pip install 'convspark[onnx]'") from None
    network.cpu().eval()
    images = _images(network, size)
    path = Path(file)
    with written_whole(path) as temporary, torch.no_grad():
        torch.onnx.export(
            network,
            (images,),
            temporary,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["images"],
            output_names=["output"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        more = torch.cat([images, images.flip(0), images[:1]])  # another batch than the traced one
        (outputs,) = session.run(None, {"images": more.numpy()})
        expected = network(more)
        difference = float((torch.from_numpy(outputs) - expected).abs().max() / expected.abs().max())
        if not difference < 1e-3:
            raise ConvsparkError(
                f"onnxruntime gives other outputs than the network ({difference:.2g}); nothing written"
            )
        tensors = len(onnx.load(str(temporary)).graph.initializer)
    use = f'onnxruntime.InferenceSession({in_code(file)}).run(None, {{"images": images}})'
    return Written(str(file), "onnx", tensors, f"run by onnxruntime, outputs equal to {difference:.1e}", use)


def renamed(state: Mapping[str, Tensor], table: tuple) -> dict[str, Tensor]:
    """A state dict with each (pattern, replacement) of a table applied to its names.

    Raises:
        ConvsparkError: two tensors would get the same name.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in table:
            new = re.sub(pattern, replacement, new)
        if new in tensors:
            raise ConvsparkError(f"two tensors would both be called {new}")
        tensors[new] = tensor
    return tensors


_BY_TABLE = "named by a table (the library itself was not run)"


def _state(backbone: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().cpu().contiguous() for n, t in backbone.state_dict().items()}


def _plain(backbone: nn.Module) -> dict[str, Tensor]:
    """Without a classifier, and without a ConvNeXt's head norm, which pre-training does not reach."""
    return {n: t for n, t in _state(backbone).items() if not n.startswith(("fc.", "head.", "classifier."))}


def _needs_resnet(backbone: nn.Module, name: str, target: str) -> None:
    names = set(backbone.state_dict())
    if not {"conv1.weight", "bn1.weight", "layer4.0.conv1.weight"} <= names or any(".se." in n for n in names):
        raise UsageError(f"--to {target} has a table for plain ResNets only, not for {name}; use --to timm or onnx")


def _images(network: nn.Module, size: tuple[int, int]) -> Tensor:
    return torch.randn(2, image_channels(network, size), *size, generator=torch.Generator().manual_seed(0))


def _save(content: Mapping[str, object], file: str | os.PathLike[str], target: str, checked: str, use: str) -> Written:
    with written_whole(Path(file)) as temporary:
        torch.save(dict(content), temporary)
        tensors, back = _tensors(content), _tensors(torch.load(temporary, weights_only=True))
        if back.keys() != tensors.keys() or not all(torch.equal(back[n], t) for n, t in tensors.items()):
            raise ConvsparkError(f"{file} could not be read back as it was written; nothing kept")
    return Written(str(file), target, len(tensors), checked, use)


def _tensors(content: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Bare, or under the one level that they lie in."""
    return next((v for v in content.values() if isinstance(v, Mapping)), content)


def _list(names: Mapping[str, str]) -> str:
    return ", ".join(names)
