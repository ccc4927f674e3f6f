"""Existing weights into a backbone: from a run, an export, a file, timm, or one of the paper's checkpoints."""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UsageError

# Levels that checkpoints wrap their weights in.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "backbone")
_EXPORTED_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class LoadReport:
    """What became of loading weights: `str(report)` is the sentence for the log.

    Attributes:
        source: where the weights came from.
        loaded: names of the backbone's tensors that were filled.
        missing: names of the backbone's tensors that the source has nothing for; they keep their values.
        unused: names of the source's tensors that the backbone has no place for.
    """

    source: str
    loaded: list[str]
    missing: list[str]
    unused: list[str]

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing)
        text = f"{len(self.loaded)}/{total} tensors loaded from {self.source}"
        if self.missing:
            text += f", missing: {summarise(self.missing)}"
        if self.unused:
            text += f", not used: {summarise(self.unused)}"
        return text


def load_backbone_weights(backbone: nn.Module, source: str | os.PathLike[str]) -> LoadReport:
    """Fill a backbone with existing weights.

    Args:
        backbone: the network, changed in place.
        source: a run folder, an export folder, a `.safetensors` or PyTorch file (one of the paper's checkpoints,
            too), or a timm name, whose weights timm then fetches if it does not have them.

    Raises:
        UsageError: nothing there, a file that holds no weights, no tensor that fits, or one of another shape.
    """
    state = read_state(source, backbone)
    return load_state(backbone, state, str(source))


def load_state(backbone: nn.Module, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """Fill a backbone from a state dict, whatever prefix its names have.

    Names are compared with `.` and `_` alike, so that a `features_only` model (`stages_0.`) fits a plain one.

    Raises:
        UsageError: no tensor fits, or a tensor has another shape than the backbone's.
    """
    own = backbone.state_dict()
    prefix = _common_prefix(state, own)
    given = {_flat(name.removeprefix(prefix)): name for name in state if name.startswith(prefix)}
    found = {name: state[given[_flat(name)]] for name in own if _flat(name) in given}
    used = {given[_flat(name)] for name in found}
    misfits = [
        f"{name} is {_shape(tensor)}, the network's is {_shape(own[name])}"
        for name, tensor in found.items()
        if tensor.shape != own[name].shape
    ]
    if misfits:
        raise UsageError(
            f"{source} belongs to another network than {type(backbone).__name__}: {'; '.join(misfits[:3])}"
            f"{f'; and {len(misfits) - 3} more' if len(misfits) > 3 else ''}. Choose the --model it was made with"
        )
    if not any(value.is_floating_point() and value.ndim for value in found.values()):
        raise UsageError(
            f"none of the {len(state)} tensors in {source} has a name of {type(backbone).__name__} "
            f"(there: {summarise(list(state))}; expected: {summarise(list(own))}). "
            "Choose the --model it was made with"
        )
    backbone.load_state_dict({**own, **found})
    return LoadReport(
        source,
        loaded=list(found),
        missing=[name for name in own if name not in found],
        # What lies outside the prefix is not the backbone's: a decoder, an optimiser.
        unused=[name for name in state if name.startswith(prefix) and name not in used],
    )


def read_state(source: str | os.PathLike[str], backbone: nn.Module) -> Mapping[str, Tensor]:
    """The state dict that `source` holds for a network like `backbone`; see `load_backbone_weights`."""
    path = Path(source)
    if path.is_dir():
        path = _file_in(path)
    if path.is_file():
        return _read_file(path, backbone)
    return _read_timm(str(source), backbone)


def read_checkpoint(path: Path) -> object:
    """A PyTorch file's content, tensors and plain values only (nothing in it is ever executed).

    Raises:
        UsageError: it is no such file.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0][:200]
        raise UsageError(
            f"{path} cannot be read as plain weights ({reason}). It may hold code, which is not run here: save its "
            "state dict with safetensors and give that file"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UsageError(f"{path} is not a PyTorch file, or is damaged ({error})") from None


def summarise(names: list[str], most: int = 4) -> str:
    """A few of many names; those of one module are told as `module.*`."""
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    if len(names) <= most:
        return ", ".join(names)
    if len(modules) <= most:
        return ", ".join(f"{module}.*" if module else "*" for module in modules)
    return f"{', '.join(names[:most])}, … ({len(names)} in all)"


def _file_in(folder: Path) -> Path:
    """The weights of a run folder or an export folder."""
    candidates = (
        folder / _EXPORTED_WEIGHTS,
        folder / "export" / _EXPORTED_WEIGHTS,
        folder / "checkpoints" / "last.ckpt",
    )
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UsageError(
        f"the folder {folder} holds no weights: expected a run folder or an export, with one of "
        f"{', '.join(str(c.relative_to(folder)) for c in candidates)}"
    )


def _read_file(path: Path, backbone: nn.Module) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UsageError(f"{path} is not a safetensors file, or is damaged ({error})") from None
    state = _tensors(read_checkpoint(path), path)
    if _is_papers(state):
        from .paper import backbone_state_dict

        return backbone_state_dict(path, backbone)
    return state


def _is_papers(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the paper's code: its encoder's prefix, or the official ConvNeXt's."""
    return any(name.startswith(("sparse_encoder.", "downsample_layers.")) for name in state)


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, out of the levels they are wrapped in."""
    while isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    raise UsageError(f"{path} holds no weights: expected a state dict of tensors, bare or under {', '.join(_WRAPPERS)}")


def _read_timm(name: str, backbone: nn.Module) -> Mapping[str, Tensor]:
    import timm

    architecture = name.partition(".")[0]
    if "/" in name or "\\" in name or not timm.is_model(architecture):
        nearest = get_close_matches(name, timm.list_models(pretrained=True), n=3)
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        raise UsageError(
            f"there is no file or folder {name!r}, nor does timm know a network of that name{hint}. Expected a run "
            "folder, an export, a .safetensors or .pth file, or a timm name such as resnet50.a1_in1k"
        )
    in_chans = next(m.in_channels for m in backbone.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, in_chans=in_chans).state_dict()
    except Exception as error:  # whatever the hub's client raises without a network
        raise UsageError(
            f"timm could not give the weights of {name!r} ({type(error).__name__}: {str(error)[:200]}); "
            "where there is no network, give a file instead"
        ) from error


def _common_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The prefix of the source's names under which most of the backbone's are found."""
    wanted = {_flat(name) for name in own}
    prefixes = {""}
    for name in state:
        parts = name.split(".")
        prefixes.update(".".join(parts[:depth]) + "." for depth in range(1, min(len(parts), 5)))

    def matches(prefix: str) -> int:
        return sum(_flat(name.removeprefix(prefix)) in wanted for name in state if name.startswith(prefix))

    return max(sorted(prefixes, key=len), key=matches)


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _shape(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "a single number"
