"""What each module of a network does on visible patches, seen by watching one run."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..sparse import PatchGrid, PerImage, VisiblePatches, gather
from ..sparse.registry import meaning_of

# What a function does, from the least to the most; a module does the most that any function in it does.
AS_IT_IS = "each position alone, as it is"
ON_IMAGES = "on one row an image"
OVER_IMAGE = "over each image's visible positions"
OVER_BATCH = "over all visible positions"
NEIGHBOURS = "with its neighbours in other patches, 0 where masked"
_RANKS = (AS_IT_IS, ON_IMAGES, OVER_IMAGE, OVER_BATCH, NEIGHBOURS)


@dataclass(frozen=True)
class ModuleRow:
    """Modules of one class that do the same."""

    kind: str
    """Class, and size of the window where there is one: `Conv2d 3x3 /2`."""
    count: int
    """How many such modules ran."""
    action: str
    """What they do on visible patches."""
    first: str
    """Path of the first of them."""


def watch_modules(
    forward: Callable[[Tensor], Sequence[Tensor]],
    module: nn.Module,
    in_chans: int,
    patch_size: Sequence[int],
) -> list[ModuleRow]:
    """Run the network once on a few visible patches and note what each of its modules called.

    Functions that a module with children calls itself are its own row. Evaluation mode; nothing is changed.

    Args:
        forward: images or visible patches -> features, which runs `module`.
        module: the network.
        in_chans: channels of its images.
        patch_size: sides of a patch.
    """
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    images = like.detach().new_zeros(2, in_chans, *(2 * side for side in patch_size))
    visible = torch.ones(2, *(2,) * len(patch_size), dtype=torch.bool, device=like.device)
    visible[:, 0] = False
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    actions: dict[str, str] = {}
    kinds: dict[str, str] = {}
    module.eval()
    try:
        with torch.no_grad(), _running(module) as stack, _Watch(stack, actions, kinds):
            forward(gather(images, PatchGrid(visible)))
    finally:
        for submodule, training in modes:
            submodule.training = training
    counted = Counter((kinds[path], action) for path, action in actions.items())
    first = {(kinds[path], action): path for path, action in reversed(actions.items())}
    rows = [ModuleRow(kind, n, action, first[kind, action]) for (kind, action), n in counted.items()]
    return sorted(rows, key=lambda row: (-_RANKS.index(row.action), row.kind))


@contextmanager
def _running(module: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """The modules that are running, outermost first, with their paths."""
    stack: list[tuple[str, nn.Module]] = []

    def enter(path: str) -> Callable[..., None]:
        return lambda submodule, _args: stack.append((path, submodule))

    def leave(*_: object) -> None:
        stack.pop()

    handles: list[Any] = []
    for path, submodule in module.named_modules():
        handles.append(submodule.register_forward_pre_hook(enter(path or type(module).__name__)))
        handles.append(submodule.register_forward_hook(leave))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchFunctionMode):
    """Notes, for each running module, the most that a function called in it does."""

    def __init__(self, stack: list[tuple[str, nn.Module]], actions: dict[str, str], kinds: dict[str, str]):
        self.stack, self.actions, self.kinds = stack, actions, kinds

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(issubclass(t, (VisiblePatches, PerImage)) for t in types) and self.stack:
            action = _action(func, args, kwargs or {}, out)
            if action is not None:
                path, module = self.stack[-1]
                self.kinds[path] = _kind(module)
                self.actions[path] = max(self.actions.get(path, action), action, key=_RANKS.index)
        return out


def _action(func: Any, args: tuple, kwargs: dict, out: Any) -> str | None:
    """What a call does, or None where it only asks or moves axes."""
    meaning = meaning_of(func)
    family = meaning.__module__.rpartition(".")[2] if meaning is not None else ""
    if family in ("query", "shape") or meaning is None:
        return None
    if not any(isinstance(a, VisiblePatches) for a in (*args, *kwargs.values())):
        return ON_IMAGES
    if isinstance(out, PerImage) or "adaptive" in func.__name__ or func.__name__ in ("group_norm", "instance_norm"):
        return OVER_IMAGE
    if func.__name__ == "batch_norm" or (family == "reduce" and not isinstance(out, VisiblePatches)):
        return OVER_BATCH
    if family in ("conv", "pool", "pad", "whole") or func.__name__ in ("interpolate", "upsample"):
        return NEIGHBOURS if _looks_around(func, args, kwargs) else AS_IT_IS
    return AS_IT_IS


def _looks_around(func: Any, args: tuple, kwargs: dict) -> bool:
    """Whether a window reaches out of its patch."""
    if "conv" in func.__name__:
        names = ("input", "weight", "bias", "stride", "padding")
    elif "pool" in func.__name__:
        names = ("input", "kernel_size", "stride", "padding")
    else:
        return func.__name__ not in ("interpolate", "upsample") or kwargs.get("mode", "nearest") != "nearest"
    arguments = dict(zip(names, args, strict=False)) | kwargs
    padded = getattr(arguments["input"], "pending", None) is not None
    if "weight" in arguments:
        kernel, stride = arguments["weight"].shape[2:], _several(arguments.get("stride", 1))
    else:
        kernel = _several(arguments["kernel_size"])
        stride = _several(arguments.get("stride") or kernel)
    return (
        padded
        or any(side not in (0, "valid") for side in _several(arguments.get("padding", 0)))
        or any(k > s for k, s in zip(kernel, stride * 3, strict=False))
    )


def _several(value: Any) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,)


def _kind(module: nn.Module) -> str:
    """Class and window of a module."""
    name = type(module).__name__
    kernel, stride = getattr(module, "kernel_size", None), getattr(module, "stride", None)
    of_numbers = all(isinstance(side, int) for side in (*_several(kernel), *_several(stride)) if side is not None)
    if kernel is None or not of_numbers or any(module.children()):
        return name
    dims = int(name[-2]) if name[-1:] == "d" and name[-2:-1].isdigit() else 1
    sides = _several(kernel) * (dims if len(_several(kernel)) == 1 else 1)
    text = f"{name} {'x'.join(map(str, sides))}"
    steps = set(_several(stride)) - {None}
    text += f" /{'x'.join(map(str, sorted(steps)))}" if steps and steps != {1} else ""
    return text + (" depthwise" if 1 < getattr(module, "groups", 1) == getattr(module, "in_channels", 0) else "")
