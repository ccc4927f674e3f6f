"""Which checkpoint a run goes on from: the newest that is whole. Imports no torch by itself."""

import logging
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConvsparkError
from .folder import RunFolder

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def whole_checkpoint(folder: RunFolder) -> Path | None:
    """The last checkpoint of a run, or the one before, with a warning, if that is damaged; None if there is none.

    Raises:
        ConvsparkError: there are some, and none is whole.
    """
    there = [path for path in (folder.last_checkpoint, folder.previous_checkpoint) if path.is_file()]
    damaged = []
    for path in there:
        reason = damage(path)
        if reason is None:
            if damaged:
                logger.warning("%s: going on from %s, of an earlier step", damaged[0], path.name)
            return path
        damaged.append(f"{path} is damaged ({reason})")
    if damaged:
        raise ConvsparkError(f"{', and '.join(damaged)}: the run cannot go on; start a new one with its --config")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, by the checksums that it holds; None if nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("data.pkl") for name in archive.namelist()):
                return "it is an archive of something else"
            wrong = archive.testzip()
            return None if wrong is None else f"the checksum of {wrong} differs"
    except zipfile.BadZipFile:
        return "it is cut, or no checkpoint" if path.stat().st_size else "it is empty"
    except (OSError, EOFError, zlib.error, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        return str(error).strip() or type(error).__name__


def check_content(path: Path, expected: dict[str, Any], optimizer: "torch.optim.Optimizer | None" = None) -> None:
    """Raise ConvsparkError unless a checkpoint holds the run's own state.

    Args:
        expected: the state dict of what is trained.
        optimizer: one like that which trains it.
    """
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise ConvsparkError(f"{path} cannot be read: {str(error).strip().splitlines()[0]}") from None
    parts = ("state_dict", "convspark_epoch", "loops", "callbacks")  # without loops Lightning begins anew
    needed = {"optimizer_states": list, "global_step": int, **dict.fromkeys(parts, dict)}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in needed.items()):
        raise ConvsparkError(f"{path} is not a checkpoint of a run: it holds no training state")
    state = content["state_dict"]
    wrong = [name for name in {**expected, **state} if name not in state or name not in expected]
    shapes = {name: getattr(value, "shape", None) for name, value in state.items()}
    wrong += [name for name in expected if name in state and shapes[name] != expected[name].shape]
    if wrong:
        raise ConvsparkError(
            f"{path} is of another network than this run's: {len(wrong)} of {len(expected)} tensors differ, {wrong[0]} "
            "among them. Put the run's own checkpoint there, or start a new run"
        )
    if optimizer is not None and not _fits(content["optimizer_states"], optimizer):
        raise ConvsparkError(
            f"{path} holds the state of another optimiser than this run's, or of other groups of layers. Put the run's "
            "own checkpoint and its config.yaml there, or start a new run"
        )


def _fits(states: list[Any], optimizer: "torch.optim.Optimizer") -> bool:
    """Whether the optimisers in a checkpoint are one like this, with the same parameters."""
    own = optimizer.param_groups
    try:
        (state,) = states
        groups, values = state["param_groups"], state["state"]
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in own]:
            return False
        numbers = [number for group in groups for number in group["params"]]
        shapes = dict(zip(numbers, (value.shape for group in own for value in group["params"]), strict=True))
        tensors = ((number, value) for number, kept in values.items() for value in kept.values())
        return (
            all(not getattr(value, "ndim", 0) or value.shape == shapes[number] for number, value in tensors)
            and len({frozenset(kept) for kept in values.values()}) < 2
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
