"""How the features of a network's stages are got at, and how they are found where nothing announces them.

There are three ways: ask timm (`Intermediates`), take the maps that the network returns (`ReturnedMaps`), or
watch its modules (`ModuleCalls`). For the last, a stage is the output of the outermost module of a resolution.
The last map of a resolution would be, in ConvNeXt, the norm in front of the next downsampling, and in
EfficientNet the next block's expansion.
"""

import inspect
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .strides import Sides

StagePoint = tuple[str, int]
"""A module's name, and which of its calls in one forward pass is meant (one ReLU may serve many stages)."""

CallBackbone = Callable[[nn.Module, Tensor], object]
"""How to call a backbone on images."""


def plainly(backbone: nn.Module, x: Tensor) -> object:
    """The usual way to call a backbone."""
    return backbone(x)


@dataclass(frozen=True)
class Intermediates:
    """Features by timm's `forward_intermediates`, which can stop at the deepest one that is wanted."""

    indices: tuple[int, ...] | None = None

    @staticmethod
    def offered_by(backbone: nn.Module) -> bool:
        method = getattr(backbone, "forward_intermediates", None)
        return callable(method) and "intermediates_only" in inspect.signature(method).parameters

    def __call__(self, backbone: nn.Module, x: Tensor) -> list[Tensor]:
        method: Callable[..., list[Tensor]] = backbone.forward_intermediates  # type: ignore[assignment]
        preferred = {"stop_early": True, "norm": False, "intermediates_only": True}
        known = inspect.signature(method).parameters
        options = {name: value for name, value in preferred.items() if name in known}
        indices = None if self.indices is None else list(self.indices)
        return list(method(x, indices=indices, **options))


@dataclass(frozen=True)
class ReturnedMaps:
    """Features from a network that returns them: timm's `features_only`, or a list or dictionary of maps."""

    indices: tuple[int, ...]
    call: CallBackbone = plainly

    def __call__(self, backbone: nn.Module, x: Tensor) -> list[Tensor]:
        maps = maps_in(self.call(backbone, x))
        return [maps[i] for i in self.indices]


@dataclass(frozen=True)
class ModuleCalls:
    """Features as the outputs of certain module calls; the forward pass is left at the last of them.

    The hooks live for one call and listen to its thread alone, so that two runs do not disturb each other.
    """

    points: tuple[StagePoint, ...]
    call: CallBackbone = plainly

    def __call__(self, backbone: nn.Module, x: Tensor) -> list[Tensor]:
        features: dict[StagePoint, Tensor] = {}
        counts: Counter[str] = Counter()
        thread = None if torch.compiler.is_compiling() else threading.get_ident()

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
                if thread is not None and threading.get_ident() != thread:
                    return
                point = (name, counts[name])
                counts[name] += 1
                if point in self.points:
                    features[point] = output
                    if len(features) == len(self.points):
                        raise _DeepestReached

            return hook

        names = {name for name, _ in self.points}
        listened = [backbone.get_submodule(name) for name in names]
        removals = [_listen(module, keep(name)) for module, name in zip(listened, names, strict=True)]
        try:
            self.call(backbone, x)
        except _DeepestReached:
            pass
        finally:
            for remove in removals:
                remove()
        if len(features) < len(self.points):
            missing = next(name for name, _ in (point for point in self.points if point not in features))
            raise UsageError(
                f"stages: module {missing!r} is not called at this size of image, though at others it is; name modules "
                "that always are"
            )
        return [features[point] for point in self.points]


def _listen(module: nn.Module, hook: Callable[..., None]) -> Callable[[], None]:
    """Register a forward hook; what is returned removes it."""
    if not torch.compiler.is_compiling():
        return module.register_forward_hook(hook).remove
    # Dynamo traces neither the counter that handles take their numbers from, nor a change of this dictionary.
    hooks = module._forward_hooks
    module._forward_hooks = OrderedDict(hooks, convspark=hook)  # type: ignore[call-overload, arg-type]

    def remove() -> None:
        module._forward_hooks = OrderedDict(
            hooks
        )  # or else an old Dynamo leaves a dict, which nothing can refer to weakly

    return remove


class _DeepestReached(Exception):
    """Leaves a backbone's forward pass once the deepest stage is there."""


def maps_in(output: object) -> list[Tensor]:
    """The tensors of an output made of lists, tuples, dictionaries and dataclasses, however nested; else nothing."""
    return [] if isinstance(output, Tensor) else list(_tensors_in(output))


def _tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, Mapping):
        value = list(value.values())
    elif is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, attribute.name) for attribute in fields(value)]
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors_in(part)


def stride_of(value: object, size: Sequence[int]) -> Sides | None:
    """The stride at which `value` is a map (B, C, *spatial) of an input of this size; None if it is none.

    A single cell counts as a globally pooled value, not as a map, and so does an axis of one cell beside others.
    """
    if not isinstance(value, Tensor) or value.ndim != len(size) + 2:
        return None
    cells = value.shape[2:]
    if not all(cells) or all(n == 1 for n in cells) or any(side % n for side, n in zip(size, cells, strict=True)):
        return None
    strides = tuple(side // n for side, n in zip(size, cells, strict=True))
    return strides if len(set(strides)) == 1 or 1 not in cells else None


@dataclass(eq=False)
class Call:
    """One call of a module: the strides of its first input and of its output (None: no map of features)."""

    point: StagePoint
    in_stride: Sides | None
    output: object = None
    out_stride: Sides | None = None
    out_channels: int = 0
    children: list["Call"] = field(default_factory=list)

    def descendants(self) -> Iterator["Call"]:
        for child in self.children:
            yield child
            yield from child.descendants()


@contextmanager
def recording(module: nn.Module, size: Sequence[int]) -> Iterator[list[Call]]:
    """Record the calls of `module` and of all below it as a tree; the list holds the outermost calls."""
    roots: list[Call] = []
    open_calls: list[Call] = []
    counts: Counter[str] = Counter()
    handles = []

    def enter(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            first_input = next(_tensors_in((args, named)), None)
            call = Call((name, counts[name]), stride_of(first_input, size))
            counts[name] += 1
            (open_calls[-1].children if open_calls else roots).append(call)
            open_calls.append(call)

        return hook

    def leave(_module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        call = open_calls.pop()
        call.output, call.out_stride = output, stride_of(output, size)
        if isinstance(output, Tensor) and call.out_stride is not None:
            call.out_channels = output.shape[1]

    try:
        for name, submodule in module.named_modules():
            handles.append(submodule.register_forward_pre_hook(enter(name), with_kwargs=True))
            handles.append(submodule.register_forward_hook(leave))
        yield roots
    finally:
        for handle in handles:
            handle.remove()


def all_calls(calls: Sequence[Call]) -> Iterator[Call]:
    """Every recorded call, in the order in which they began."""
    for call in calls:
        yield call
        yield from call.descendants()


def call_giving(value: Tensor, calls: Sequence[Call]) -> Call | None:
    """The outermost call whose output is this very tensor."""
    return next((call for call in all_calls(calls) if call.output is value), None)


def runs_after(last: Call, calls: Sequence[Call]) -> bool:
    """Whether anything was called after this call."""
    every = list(all_calls(calls))
    return every.index(last) + 1 + sum(1 for _ in last.descendants()) < len(every)


def outermost_stages(calls: Sequence[Call]) -> list[Call]:
    """The stage of each stride above 1, finest first, up to the deepest; what runs after that is ignored.

    A module that stays at the resolutions of its own input and output is one unit, also if it halves one axis after
    the other; one that passes further resolutions is a container, and counts by its parts. The last unit at a stride
    is the stage.
    """
    units = [(unit.out_stride, unit) for call in calls for unit in _units(call) if unit.out_stride is not None]
    deepest = max((math.prod(stride) for stride, _ in units), default=0)
    until = max((i for i, (stride, _) in enumerate(units) if math.prod(stride) == deepest), default=-1)
    stages = dict(units[: until + 1])
    return [stages[stride] for stride in sorted(stages, key=math.prod) if math.prod(stride) > 1]


def _units(call: Call) -> list[Call]:
    inside = {below.out_stride for below in call.descendants() if below.out_stride is not None}
    if call.out_stride is not None and all(_within(stride, call.in_stride, call.out_stride) for stride in inside):
        return [call]
    units = [unit for child in call.children for unit in _units(child)]
    return units if call.out_stride is None else [*units, call]


def _within(stride: Sides, begin: Sides | None, end: Sides) -> bool:
    """Whether a module from stride `begin` to `end` may pass this one on its way."""
    if begin is None or stride in (begin, end):
        return stride in (begin, end)
    return all(b <= s <= e <= 2 * b for b, s, e in zip(begin, stride, end, strict=True))
