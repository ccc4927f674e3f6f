"""A pre-trained backbone as a folder that timm loads: `timm.create_model("local-dir:FOLDER", pretrained=True)`."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..data import PLAIN, Pixels
from ..errors import ConvsparkError
from ..files import beside, disk_errors
from ..model.networks import copied
from ..model.stages import image_channels
from .card import timm_card
from .weights import load_state

# What timm's entry says of weights that are not these.
_OF_OTHER_WEIGHTS = (
    "tag",
    "license",
    "origin_url",
    "paper_ids",
    "paper_name",
    "description",
    "notes",
    "test_crop_pct",
)


@dataclass(frozen=True)
class ExportReport:
    """An export that was loaded again and found equal.

    Attributes:
        folder: where it lies.
        architecture: timm's name of the network; None for a network that timm does not know, whose folder then holds
            the weights and the card alone.
        tensors: number of tensors written.
        difference: largest difference between the features of the backbone and of the reloaded export.
        untrained: names of the tensors that pre-training did not touch.
    """

    folder: Path
    architecture: str | None
    tensors: int
    difference: float
    untrained: list[str]


def export_timm(
    backbone: nn.Module,
    folder: str | os.PathLike[str],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    image_size: tuple[int, int] = (224, 224),
    model_name: str | None = None,
    untrained: Sequence[str] = (),
    card: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    pixels: Pixels = PLAIN,
    crop: float | Literal["whole"] = 1.0,
) -> ExportReport:
    """Write `model.safetensors`, timm's `config.json` and a model card, load them again and compare the features.

    The weights have timm's plain names, no decoder, and no classifier unless its classes are given. The folder appears
    whole or not at all; one that is there already is replaced. The backbone is not changed.

    Args:
        backbone: a timm model, plain or `features_only`, or any other module (weights and card alone).
        folder: where to write.
        mean, std: the normalisation it was trained with, one number a channel.
        image_size: (height, width) it was trained at, in pixels.
        model_name: timm's name of the architecture; None takes it from the backbone.
        untrained: names of the backbone's tensors that pre-training did not touch; named in the card.
        card: lines of the card's table: what the weights were trained on, and how.
        classes: names of the classes that the network's classifier tells apart; None leaves the classifier out.
        pixels: how picture files were read; kept in `config.json`, unless they are plain.
        crop: share of a picture's shorter side that the network is to see, at its centre; "whole" squeezes the picture.

    Raises:
        ConvsparkError: the reloaded export is not equal to the backbone.
    """
    folder = Path(folder)
    source = copied(backbone).cpu().to(memory_format=torch.contiguous_format).eval()
    architecture = model_name or _architecture(backbone)
    in_chans = image_channels(source, image_size) if architecture else 0
    input_size = (in_chans, *image_size)
    plain = _plain_timm(source, architecture, input_size, classes is not None) if architecture else None
    fresh = beside(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        with disk_errors(folder):
            if plain is not None and not _write_timm(plain, fresh, mean, std, input_size, classes, pixels, crop):
                plain = None
            if plain is None:
                architecture = None
                tensors = _write_weights(source.state_dict(), fresh)
                names_untrained = list(untrained)
                difference = _compare_weights(source, fresh)
            else:
                tensors = len(plain.state_dict())
                names_untrained = _plain_untrained(source, plain, untrained)
                difference = _compare_features(source, fresh, input_size)
            text = timm_card(architecture, folder, names_untrained, mean, std, image_size, card or {}, classes)
            (fresh / "README.md").write_text(text, encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return ExportReport(folder, architecture, tensors, difference, names_untrained)


def _architecture(backbone: nn.Module) -> str | None:
    import timm

    config = getattr(backbone, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, Mapping) else getattr(config, "architecture", None)
    return name if name and timm.is_model(name) else None


def _plain_timm(
    backbone: nn.Module, architecture: str, input_size: tuple[int, int, int], keep_classifier: bool
) -> nn.Module | None:
    """A plain timm model with these weights; None where the module is not what its name says."""
    import timm

    in_chans = input_size[0]
    if hasattr(backbone, "reset_classifier") and hasattr(backbone, "pretrained_cfg"):
        plain = backbone
        if not keep_classifier:
            plain.reset_classifier(0)  # type: ignore[operator]
        return plain
    try:
        plain = timm.create_model(architecture, num_classes=0, in_chans=in_chans).eval()
        load_state(plain, backbone.state_dict(), "the backbone")
        if not _are_equal(backbone, _features_only(backbone, architecture, in_chans=in_chans), input_size):
            return None
    except Exception:  # a subclass, or built with arguments that are not recorded: exported as any other module
        return None
    return plain


def _features_only(backbone: nn.Module, name: str, **options: Any) -> nn.Module:
    """The network of a name as `backbone` is, of the features of the same stages, with its weights."""
    import timm

    stages = tuple(backbone.feature_info.out_indices)  # type: ignore[union-attr]
    again = timm.create_model(name, features_only=True, out_indices=stages, **options).eval()
    again.load_state_dict(backbone.state_dict())
    return again


def _are_equal(one: nn.Module, other: nn.Module, input_size: tuple[int, int, int]) -> bool:
    """Whether two networks make the same features of an image."""
    images = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = zip(_features(one, images), _features(other, images), strict=True)
        return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in pairs)


def _plain_untrained(source: nn.Module, plain: nn.Module, untrained: Sequence[str]) -> list[str]:
    """Untrained tensors by their plain names: those named, and those that the trained module did not even have."""
    flat = {name.replace(".", "_") for name in untrained}
    known = {name.replace(".", "_").removeprefix("model_") for name in source.state_dict()} | flat
    return [
        name for name in plain.state_dict() if name.replace(".", "_") in flat or name.replace(".", "_") not in known
    ]


def _write_weights(state: Mapping[str, Tensor], folder: Path) -> int:
    from safetensors.torch import save

    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    return len(tensors)


def _write_timm(
    plain: nn.Module,
    folder: Path,
    mean: Sequence[float],
    std: Sequence[float],
    input_size: tuple[int, int, int],
    classes: Sequence[str] | None,
    pixels: Pixels,
    crop: float | Literal["whole"],
) -> bool:
    """Weights and `config.json` as timm itself writes them, less what it says of other weights.

    Returns:
        False, with nothing written, where the network was built with arguments that JSON cannot hold, such as a class.
    """
    from timm.models import save_for_hf

    data = {
        "mean": tuple(mean),
        "std": tuple(std),
        "input_size": input_size,
        "interpolation": "bicubic",
        "crop_pct": 1.0 if crop == "whole" else crop,
        "crop_mode": "squash" if crop == "whole" else "center",
    }
    try:
        save_for_hf(plain, str(folder), safe_serialization=True, data_config=data)
    except (TypeError, ValueError):
        for file in folder.iterdir():
            file.unlink()
        return False
    path = folder / "config.json"
    shutil.copymode(path, folder / "model.safetensors")  # safetensors lets nobody but the owner read
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in _OF_OTHER_WEIGHTS:
        config["pretrained_cfg"].pop(key, None)
    if classes is not None:
        config["label_names"] = list(classes)
    if not pixels.is_plain:
        config["pixels"] = pixels.as_dict()
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return True


def _compare_features(source: nn.Module, folder: Path, input_size: tuple[int, int, int]) -> float:
    """Largest difference between the features of the backbone and of the export as plain timm loads it."""
    import timm

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *input_size, generator=generator)
    options: dict[str, Any] = {}
    if not hasattr(source, "reset_classifier"):
        options = {"features_only": True, "out_indices": tuple(source.feature_info.out_indices)}  # type: ignore[union-attr]
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True, **options).eval()
    with torch.no_grad():
        pairs = list(zip(_features(source, images), _features(loaded, images), strict=True))
    difference = torch.stack([(ours - theirs).abs().max() for ours, theirs in pairs]).max()
    largest = torch.stack([ours.abs().max() for ours, _ in pairs]).max()
    # The same weights through the same code; where memory lies may change the order of a sum.
    return _accepted(difference, 1e-5 * largest, folder)


def _compare_weights(source: nn.Module, folder: Path) -> float:
    from safetensors.torch import load_file

    written = load_file(folder / "model.safetensors")
    pairs = [(tensor, written[name]) for name, tensor in source.state_dict().items() if tensor.numel()]
    difference = torch.stack([(a.double() - b.double()).abs().max() for a, b in pairs]).max()
    return _accepted(difference, torch.zeros(()), folder)


def _accepted(difference: Tensor, most: Tensor, folder: Path) -> float:
    if not difference <= most:  # nor is a difference that is not a number accepted
        raise ConvsparkError(
            f"the export in {folder} does not give the backbone's features back (largest difference "
            f"{float(difference):.3g}); it was removed. The run's checkpoints are whole: please report this with the "
            "network's name"
        )
    return float(difference)


def _features(model: nn.Module, images: Tensor) -> list[Tensor]:
    if getattr(model, "num_classes", 0) or not hasattr(model, "forward_features"):
        output = model(images)
    else:
        output = model.forward_features(images)  # type: ignore[operator]
    return list(output) if isinstance(output, list | tuple) else [output]
