"""Existing weights into a backbone: from a run, an export, a file, timm, or one of the paper's checkpoints."""

import argparse
import logging
import os
import pickle
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..runs.checkpoints import damage

logger = logging.getLogger(__name__)

# Levels that checkpoints wrap their weights in.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "backbone")
_MOST_LEVELS = 10  # a file may hold itself
_EXPORTED_WEIGHTS = "model.safetensors"
_SOME = 0.1  # share of a network's tensors that stay random, above which a warning says so
_MOST = 0.5  # and above which it is an error


@dataclass(frozen=True)
class LoadReport:
    """What became of loading weights: `str(report)` is the sentence for the log.

    Attributes:
        source: where the weights came from.
        loaded: names of the backbone's tensors that were filled.
        missing: names of the backbone's tensors that the source has nothing for; they keep their values.
        unused: names of the source's tensors that the backbone has no place for.
        adapted: names of the loaded tensors that were made for colour images and now take others, as timm does it.
    """

    source: str
    loaded: list[str]
    missing: list[str]
    unused: list[str]
    adapted: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing)
        text = f"{len(self.loaded)}/{total} tensors loaded from {self.source}"
        if self.missing:
            text += f", missing: {summarise(self.missing)}"
        if self.unused:
            text += f", not used: {summarise(self.unused)}"
        if self.adapted:
            text += f", fitted to the images' channels as timm does it: {summarise(self.adapted)}"
        return text

    @property
    def missing_share(self) -> float:
        """The share of the backbone's tensors that are missing."""
        return len(self.missing) / (len(self.missing) + len(self.loaded))

    @property
    def warning(self) -> str | None:
        """A warning where much of the network stays as it was; else None."""
        if self.missing_share <= _SOME:
            return None
        return f"{100 * self.missing_share:.0f} % of the network stays random ({self}): is it the right --model?"

    def check_whole(self) -> None:
        """Raise UsageError where most of the network, or a whole kind of its tensors, has nothing from the source.

        A kind is the tensors with the same name in each block (all `mlp.grn.weight`). What the network has once, like a
        classifier, may be missing, and so may whole stages.
        """
        if self.missing_share > _MOST:
            lacks = f"{100 * self.missing_share:.0f} % of the network"
        else:
            there = {_kind(name) for name in self.loaded}
            kinds = Counter(_kind(name) for name in self.missing if not name.endswith("num_batches_tracked"))
            gone = [
                f"*.{kind}" for kind, count in kinds.items() if kind is not None and count > 1 and kind not in there
            ]
            if not gone:
                return
            lacks = f"all of {summarise(gone)}"
        raise UsageError(
            f"{self.source} has no weights for {lacks}, which would stay random ({self}). Choose the --model it was "
            "made with, or add --partial to go on"
        )


def load_backbone_weights(backbone: nn.Module, source: str | os.PathLike[str], partial: bool = False) -> LoadReport:
    """Fill a backbone with existing weights.

    Args:
        backbone: the network, changed in place.
        source: a run folder, an export folder, a `.safetensors` or PyTorch file (one of the paper's checkpoints,
            too), or a timm name, whose weights timm then fetches if it does not have them. `FILE:PREFIX` takes those of
            a file whose names begin so (`FILE:encoder`).
        partial: whether to go on where most of the network, or a whole kind of its tensors, stays as it is.

    Raises:
        UsageError: nothing there, a file that holds no weights, no tensor that fits, one of another shape, or too few.
    """
    path, prefix = split_prefix(source)
    report = load_state(backbone, read_state(path, backbone, prefix), str(source), prefix)
    if not partial:
        report.check_whole()
    logger.log(logging.INFO if report.warning is None else logging.WARNING, "%s", report.warning or report)
    return report


def split_prefix(source: str | os.PathLike[str]) -> tuple[str | os.PathLike[str], str | None]:
    """`FILE:PREFIX` to the file and the prefix; None where there is none."""
    file, colon, prefix = os.fspath(source).rpartition(":")
    return (file, prefix) if colon and not Path(source).exists() and Path(file).exists() else (source, None)


def load_state(backbone: nn.Module, state: Mapping[str, Tensor], source: str, prefix: str | None = None) -> LoadReport:
    """Fill a backbone from a state dict, whatever prefix its names have.

    Names are compared with `.` and `_` alike, so that a `features_only` model (`stages_0.`) fits a plain one. Names of
    other code that timm knows how to read are changed by timm. A first convolution made for colour images is fitted to
    other channels as timm does it.

    Args:
        prefix: of the names to take; None finds the one under which most fit.

    Raises:
        UsageError: no tensor fits, several sets of tensors do, or a tensor has another shape than the backbone's or no
            finite numbers.
    """
    own = backbone.state_dict()
    if prefix is not None:
        prefix = prefix.rstrip(".") + "."
        if not any(name.startswith(prefix) for name in state):
            raise UsageError(f"no tensor of {source} begins with {prefix!r}; there: {summarise(_beginnings(state))}")
        state = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    state = _renamed_by_timm(state, backbone)
    prefix = _common_prefix(state, own, source)
    names = {_flat(name.removeprefix(prefix)): name for name in state if name.startswith(prefix)}
    tensors = {name: state[names[_flat(name)]] for name in own if _flat(name) in names}
    used = {names[_flat(name)] for name in tensors}
    _check_values(tensors, own, source)
    adapted = _fit_channels(tensors, own, backbone)
    misfits = [
        f"{name} is {_shape(tensor)}, the network's is {_shape(own[name])}"
        for name, tensor in tensors.items()
        if tensor.shape != own[name].shape
    ]
    if misfits:
        raise UsageError(
            f"{source} belongs to another network than {type(backbone).__name__}: {'; '.join(misfits[:3])}"
            f"{f'; and {len(misfits) - 3} more' if len(misfits) > 3 else ''}. Choose the --model it was made with"
        )
    if not any(value.is_floating_point() and value.ndim for value in tensors.values()):
        raise UsageError(
            f"none of the {len(state)} tensors in {source} has a name of {type(backbone).__name__} "
            f"(there: {summarise(_beginnings(state))}; expected: {summarise(list(own))}). "
            "Choose the --model it was made with, or FILE:PREFIX if it lies under another name"
        )
    backbone.load_state_dict({**own, **tensors})
    return LoadReport(
        source,
        loaded=list(tensors),
        missing=[name for name in own if name not in tensors],
        # What lies outside the prefix is not the backbone's: a decoder, an optimiser.
        unused=[name for name in state if name.startswith(prefix) and name not in used],
        adapted=adapted,
    )


def _renamed_by_timm(state: Mapping[str, Tensor], backbone: nn.Module) -> Mapping[str, Tensor]:
    """Renamed by timm's function for other code's files of this network, if more names fit then.

    That function knows names as they are, without the prefix that all of them may have (`module.`, of several GPUs).
    """
    rename = getattr(sys.modules.get(type(backbone).__module__), "checkpoint_filter_fn", None)
    if rename is None:
        return state
    own_names = {_flat(name) for name in backbone.state_dict()}
    levels = zip(*(name.split(".")[:-1] for name in state), strict=False)
    shared = "".join(f"{level[0]}." for level in takewhile(lambda level: len(set(level)) == 1, levels))
    try:
        renamed = rename({name.removeprefix(shared): tensor for name, tensor in state.items()}, backbone)
    except Exception:  # whatever it raises where names are not those that it expects
        return state
    before, after = (sum(_flat(name) in own_names for name in names) for names in (state, renamed))
    return renamed if after > before else state


def _check_values(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """Raise UsageError for tensors whose numbers are missing, coded, all 0, or not finite where the network's are."""
    coded = [
        f"{name} ({'without data' if tensor.is_meta else f'{tensor.dtype}, {tensor.layout}'.replace('torch.', '')})"
        for name, tensor in tensors.items()
        if tensor.is_meta
        or tensor.layout is not torch.strided
        or (own[name].is_floating_point() and not tensor.is_floating_point())
    ]
    if coded:
        raise UsageError(
            f"{source} holds no plain numbers for {summarise(coded)}: save its weights as ordinary float tensors"
        )
    broken = [n for n, tensor in tensors.items() if _is_finite(own[n]) and not _is_finite(tensor.to(own[n].dtype))]
    if broken:
        raise UsageError(f"{source} holds numbers that are not finite (NaN, infinity), in {summarise(broken)}")
    weights = [name for name, tensor in tensors.items() if tensor.ndim > 1 and own[name].any()]
    if weights and not any(tensors[name].any() for name in weights):
        raise UsageError(
            f"{source} holds nothing but zeros: it was not written to its end, or is of no trained network"
        )


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _fit_channels(tensors: dict[str, Tensor], own: Mapping[str, Tensor], backbone: nn.Module) -> list[str]:
    """Fit the first convolution's weights to the images' channels in `tensors`; returns their names."""
    from timm.models import adapt_input_conv

    config = getattr(backbone, "pretrained_cfg", None) or {}
    said = config.get("first_conv") if isinstance(config, Mapping) else None
    first = next((n for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d)), None)
    names = [f"{n}.weight" for n in ([said] if isinstance(said, str) else said or [first]) if n is not None]
    adapted = []
    for name in names:
        theirs, ours = tensors.get(name), own.get(name)
        if theirs is None or ours is None or theirs.shape == ours.shape or theirs.ndim != 4 or theirs.shape[1] != 3:
            continue
        if (theirs.shape[0], *theirs.shape[2:]) == (ours.shape[0], *ours.shape[2:]):
            tensors[name] = adapt_input_conv(ours.shape[1], theirs)
            adapted.append(name)
    return adapted


def _kind(name: str) -> str | None:
    """A tensor's name within its block: `stages.2.blocks.0.mlp.grn.weight` -> `mlp.grn.weight`."""
    numbered = re.match(r".*(?<![^._])\d+[._](.+)", name)
    return numbered[1] if numbered else None


def _beginnings(state: Mapping[str, Tensor]) -> list[str]:
    """The first parts of the names, if these are fewer; else the names."""
    first = list(dict.fromkeys(name.partition(".")[0] + ".*" for name in state if "." in name))
    return first if 1 < len(first) < len(state) else list(state)


def read_state(source: str | os.PathLike[str], backbone: nn.Module, prefix: str | None = None) -> Mapping[str, Tensor]:
    """The state dict that `source` holds for a network like `backbone`; see `load_backbone_weights`.

    Args:
        prefix: of the names that are wanted. Where it is a level of the file (`ema`), the names are those of the level,
            with it in front.
    """
    path = Path(source)
    if path.is_dir():
        path = _file_in(path)
    if path.is_file():
        return _read_file(path, backbone, prefix)
    return _read_timm(str(source), backbone)


def read_checkpoint(path: Path) -> object:
    """A PyTorch file's content, tensors and plain values only (nothing in it is ever executed).

    Raises:
        UsageError: it is no such file.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # options, which many training scripts keep
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} cannot be read as plain weights: it holds {_foreign(path, error)}. Code in a file is not run "
            "here: save its state dict with safetensors and give that file"
        ) from None
    except Exception as error:  # whatever torch raises where bytes are not what it expects
        raise UsageError(
            f"{path} is not a PyTorch file, or is damaged ({str(error) or type(error).__name__})"
        ) from None
    reason = damage(path) if zipfile.is_zipfile(path) else None  # torch does not look at the checksums
    if reason is not None:
        raise UsageError(f"{path} is damaged: {reason}")
    return content


def _foreign(path: Path, error: Exception) -> str:
    """What a file holds besides tensors and plain values."""
    try:
        types = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # damaged, or of an old format
        types = re.findall(r"GLOBAL ([\w.]+)", str(error))
    return f"objects of type {', '.join(sorted(types)[:3])}" if types else "what is no checkpoint of PyTorch's"


def summarise(names: list[str], most: int = 4) -> str:
    """A few of many names; those of one module are written as `module.*`."""
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


def _read_file(path: Path, backbone: nn.Module, prefix: str | None) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UsageError(f"{path} is not a safetensors file, or is damaged ({error})") from None
    content, level = read_checkpoint(path), (prefix or "").rstrip(".")
    if isinstance(content, Mapping) and isinstance(content.get(level), Mapping):
        return {f"{level}.{name}": tensor for name, tensor in _tensors(content[level], path).items()}
    state = _tensors(content, path)
    if any(name.startswith("sparse_encoder.") for name in state):
        from .paper import backbone_state_dict

        return backbone_state_dict(path, backbone)
    return state


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, out of the levels they are wrapped in."""
    tensors: dict[str, Tensor] = {}
    for _ in range(_MOST_LEVELS):
        if not isinstance(content, Mapping):
            break
        # A level inside comes first: beside it may lie an accuracy, which is a tensor, too.
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)} or tensors
        others = [(name, level) for name, level in content.items() if isinstance(level, Mapping)]
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        twins = [name for name, level in others if content and level is not content and level.keys() == content.keys()]
        if twins:
            message = "%s also holds %s, other weights of the same network: FILE:%s takes them"
            logger.info(message, path, twins[0], twins[0])
        if content is None and not tensors:  # levels of other names, such as student and teacher: prefixes
            tensors = {f"{name}.{n}": t for name, level in others for n, t in level.items() if isinstance(t, Tensor)}
    if tensors:
        return tensors
    raise UsageError(f"{path} holds no weights: expected a state dict of tensors, bare or under {', '.join(_WRAPPERS)}")


def check_timm_name(name: str) -> None:
    """Raise UsageError, with the nearest names, unless timm has such a network and such weights of it."""
    import timm

    architecture, _, tag = name.partition(".")
    if "/" in name or "\\" in name or not timm.is_model(architecture):
        nearest = get_close_matches(name, timm.list_models(pretrained=True), n=3)
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        raise UsageError(
            f"there is no file or folder {name!r}, nor does timm know a network of that name{hint}. Expected a run "
            "folder, an export, a .safetensors, .pth or .ckpt file, or a timm name such as resnet50.a1_in1k"
        )
    tags = [cfg.partition(".")[2] for cfg in timm.list_models(f"{architecture}.*", pretrained=True)]
    if "." in name and tag not in tags:
        raise UsageError(f"timm has no weights {tag!r} of {architecture}: it has {', '.join(tags) or 'none'}")


def _read_timm(name: str, backbone: nn.Module) -> Mapping[str, Tensor]:
    import timm

    check_timm_name(name)
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # whatever the hub's client raises without a network
        raise UsageError(
            f"timm could not give the weights of {name!r} ({type(error).__name__}: {str(error)[:200]}); "
            "without access to the internet, give a file instead"
        ) from error


def _common_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> str:
    """The prefix of the source's names under which most of the backbone's are found.

    Raises:
        UsageError: as many are found under several, with other values: student and teacher, raw and averaged.
    """
    own_names = {_flat(name) for name in own}
    prefixes = {""}
    for name in state:
        parts = name.split(".")
        prefixes.update(".".join(parts[:depth]) + "." for depth in range(1, min(len(parts), 5)))

    def matches(prefix: str) -> int:
        return sum(_flat(name.removeprefix(prefix)) in own_names for name in state if name.startswith(prefix))

    fits = {prefix: matches(prefix) for prefix in sorted(prefixes, key=lambda prefix: (len(prefix), prefix))}
    best = max(fits, key=lambda prefix: fits[prefix])
    if best and fits[best] > len(own_names) / 2:  # bare names mean themselves, and a few may fit by chance
        alike = sorted(prefix for prefix in fits if fits[prefix] == fits[best])  # a classifier may be in none of them
        tensors = [{_flat(n.removeprefix(p)): t for n, t in state.items() if n.startswith(p)} for p in alike]
        kept = [{name: t for name, t in of_one.items() if name in own_names} for of_one in tensors]
        if any(not _are_equal(kept[0], others) for others in kept[1:]):
            raise UsageError(
                f"{source} holds several networks that fit: {', '.join(p.rstrip('.') for p in alike)}. "
                f"Choose one by FILE:PREFIX, as {source}:{alike[-1].rstrip('.')}"
            )
    return best


def _are_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _shape(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "a single number"
