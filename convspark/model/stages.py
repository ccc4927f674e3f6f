"""The backbone as a pyramid of stages: any `nn.Module`, called as it is, up to its deepest stage."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from operator import index
from typing import Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import UsageError
from ..sparse.compiled import all_shown
from ..sparse.proof.gradients import gradients
from ..sparse.proof.prove import position_embedding
from .find_stages import (
    Call,
    CallBackbone,
    Intermediates,
    ModuleCalls,
    ReturnedMaps,
    all_calls,
    call_giving,
    maps_in,
    outermost_stages,
    plainly,
    recording,
    runs_after,
    stride_of,
)
from .networks import check_module
from .strides import MAX_FACTOR, Sides, as_text, decodable, divides, sides_of, upsampling

# Not square, so that no pooled value looks like a map; small; divisible by every usual stride, the second by 7 and 14,
# the last ones by 5 and 9.
_PROBE_SIZES: dict[int, list[Sides]] = {
    1: [(128,), (112,), (240,), (180,)],
    2: [(128, 192), (112, 168), (240, 480), (180, 360)],
    3: [(64, 96, 64), (60, 90, 60)],
}


_HEADS = ("num_heads", "n_heads", "num_attention_heads")  # what attention modules call the number of their heads


class _Stage(NamedTuple):
    stride: Sides
    channels: int
    name: str
    key: Any  # an index into a list of maps, or a module's call


Way = Callable[[nn.Module, Tensor], list[Tensor]]
"""How to run a backbone and get at the features of its stages."""

_WayOf = Callable[[tuple[Any, ...]], Way]


class Stages:
    """What of a backbone is decoded: calling it gives the features of each stage, finest first.

    Stages are found by one small dense run: by timm's `forward_intermediates`, as the maps that the network
    returns (a `features_only` model), or else as the output of the outermost module at each resolution. Where
    that finds the wrong ones, name the modules: `stages=("layer1", "layer2", "layer3")`.

    The probing runs leave parameters, gradients, running statistics and training modes as they are.

    Args:
        backbone: a convolutional network for 2-D or 3-D images.
        stages: names of the modules whose outputs are the stages, or None to find them.
        in_chans: channels of the images; None takes those of the backbone's first convolution or, if it begins with
            something else, the first of timm's configuration, 3 and 1 that it runs on.
        image_size: sides in pixels, for networks that run at one size only, or have an unusual stride.
        patch_size: side of a masked patch in pixels, or one a spatial dimension: stages whose stride does not divide
            it are left out, so that a patch finer than the network's total stride trains the stages above; None takes
            the total stride.
        call: how to call the backbone on images where `backbone(images)` is not the way.
        levels: how many stages to decode, the deepest ones; None takes all, at most four.

    Attributes:
        backbone: the very module passed in.
        strides: of the decoded stages, one number a spatial dimension, finest first: at most four, each of which
            divides the next.
        patch_size: side of a patch on each spatial dimension, a multiple of the deepest stride.
        channels: of the decoded stages.
        names: where each stage comes from, for people to read.
        in_chans: channels of the images.
        dims: number of spatial dimensions, 1 to 3.
        probe_size: sides of the images that they were found on, which the network can be run on.
        dtype, device: of the backbone's first convolution, wherever it was moved since.
        untrained: names of the backbone's parameters and buffers after the deepest stage, which pre-training
            does not reach: they get no gradient and no statistics.
        modules: names of the modules that are called on the way to the deepest stage.

    Raises:
        UsageError: the backbone is not a convolutional network with stages.
    """

    def __init__(
        self,
        backbone: nn.Module,
        stages: Sequence[str] | None = None,
        in_chans: int | None = None,
        image_size: int | Sequence[int] | None = None,
        patch_size: int | Sequence[int] | None = None,
        call: CallBackbone | None = None,
        levels: int | None = None,
    ):
        if torch.is_inference_mode_enabled():
            raise UsageError(
                "a network cannot be looked at within torch.inference_mode, as this takes gradients: leave that mode"
            )
        check_module(backbone, "backbone")
        _check_parts(backbone)
        if in_chans is not None and (not isinstance(in_chans, SupportsIndex) or index(in_chans) < 1):
            raise UsageError(f"in_chans is {in_chans!r}: expected a whole number above 0, the channels of the images")
        kernel, _ = _first_kernel(backbone)
        self.backbone = backbone
        self.dims = kernel.ndim - 2
        channels = [in_chans] if in_chans else _likely_channels(backbone)
        self._run = call or plainly
        self._called_otherwise = call is not None
        sizes = _PROBE_SIZES[self.dims]
        if image_size is not None:
            sizes = [*sizes[:1], sides_of(image_size, self.dims, "image_size"), *sizes[1:]]
        probes = [kernel.detach().new_zeros(1, c, *size) for size in sizes for c in channels]
        with evaluating(backbone):
            probe, way, candidates = self._probe(probes, stages)
            patch_sides = None if patch_size is None else sides_of(patch_size, self.dims, "patch_size")
            self.in_chans = probe.shape[1]
            self.probe_size = tuple(probe.shape[2:])
            decoded = _decodable(candidates, backbone, patch_sides, levels)
            self.strides = tuple(stage.stride for stage in decoded)
            self.patch_size = patch_sides or self.strides[-1]
            self.channels = tuple(stage.channels for stage in decoded)
            self.names = [stage.name for stage in decoded]
            self._way = way(tuple(stage.key for stage in decoded))
            self.untrained, self.modules = self._reach(probe)
        # Attention after the deepest stage belongs to a head, unless the stages hold less than half of the parameters.
        few_trained = stages is None and patch_size is None and self._trained_share() < 0.5
        _refuse_attention(backbone, [n for n, _ in backbone.named_modules()] if few_trained else self.modules)

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Features of each stage, finest first: visible patches for visible patches, dense for dense."""
        with all_shown():
            return self._way(self.backbone, x)

    @property
    def dtype(self) -> torch.dtype:
        return _first_kernel(self.backbone)[0].dtype

    @property
    def device(self) -> torch.device:
        return _first_kernel(self.backbone)[0].device

    @property
    def untrained_parts(self) -> list[str]:
        """`untrained` in brief: the largest modules that lie wholly after the deepest stage."""
        untrained = set(self.untrained)
        every = [name for name, _ in (*self.backbone.named_parameters(), *self.backbone.named_buffers())]
        reached = {prefix for name in every if name not in untrained for prefix in _prefixes(name)}
        parts = (next(p for p in _prefixes(name) if p not in reached) for name in self.untrained)
        return list(dict.fromkeys(parts))

    def _trained_share(self) -> float:
        """The share of the parameters up to the deepest stage."""
        untrained = set(self.untrained)
        sizes = {name: p.numel() for name, p in self.backbone.named_parameters()}
        return sum(n for name, n in sizes.items() if name not in untrained) / max(1, sum(sizes.values()))

    def _probe(self, probes: Sequence[Tensor], names: Sequence[str] | None) -> tuple[Tensor, _WayOf, list[_Stage]]:
        """Find the stages at the first size at which the backbone runs; to its end, if there is such a size."""
        failure: Exception | None = None
        nothing: tuple[Tensor, _WayOf, list[_Stage]] | None = None
        by_chance = False
        for to_the_end, probe in itertools.product((True, False), probes):
            try:
                with torch.no_grad():
                    way, stages = self._find(probe, names, to_the_end)
                    if self._by_chance(stages, way, probe):
                        by_chance = True
                        continue
                if any(math.prod(stage.stride) > 1 for stage in stages):
                    return probe, way, stages
                nothing = (probe, way, stages)  # its strides do not divide this size
            except UsageError:
                raise
            except Exception as error:  # whatever a foreign network raises at a size that it does not take
                failure = failure or error
        _refuse_attention(self.backbone, [name for name, _ in self.backbone.named_modules()])
        if by_chance:
            raise UsageError(
                f"backbone={type(self.backbone).__name__}: its maps are no whole fraction of the image's (convolutions "
                "or poolings without padding), so that a patch has no cells of its own. Expected a network whose "
                "convolutions are padded; or name modules in `stages` before that point; or, if it is for images of "
                "one size only, pass image_size (--size)"
            )
        if nothing is not None:
            return nothing
        shape = " x ".join(str(n) for n in probes[0].shape)
        advice = (
            "if its images have one size only, pass image_size (--size); if they have another number of channels, "
            "pass in_chans (--channels); if it is not called on images alone, pass call"
        )
        raise UsageError(
            f"backbone={type(self.backbone).__name__} cannot be run on an image of shape {shape}: "
            f"{type(failure).__name__}: {failure}. Expected a convolutional network that takes images of any "
            f"size; {position_embedding(self.backbone, self.dims) or advice}"
        ) from failure

    def _find(self, probe: Tensor, names: Sequence[str] | None, to_the_end: bool) -> tuple[_WayOf, list[_Stage]]:
        """The kind of way that leads to the stages, and all stages there are."""
        size = probe.shape[2:]
        if names is None and not self._called_otherwise and Intermediates.offered_by(self.backbone):
            return self._announced(probe)
        failure: Exception | None = None
        output = None
        with recording(self.backbone, size) as calls:
            try:
                output = self._run(self.backbone, probe)
            except Exception as error:
                if to_the_end:
                    raise
                failure = error  # a classifier may take one size only, long after the stages
        if names is None:
            maps = maps_in(output)
            returned = _stages_among(maps, size, "output")
            if returned and (hasattr(self.backbone, "feature_info") or _is_pyramid(returned)):
                return self._of_maps(returned, maps, calls) or (partial(ReturnedMaps, call=self._run), returned)
            stage_calls = outermost_stages(calls)
        else:
            stage_calls = _named_calls(self.backbone, calls, names)
        if failure is not None and not (stage_calls and _mostly_ran(calls, self.backbone)):
            raise failure
        return partial(ModuleCalls, call=self._run), _stages_of(stage_calls)

    def _by_chance(self, stages: Sequence[_Stage], way: _WayOf, probe: Tensor) -> bool:
        """Whether unusual strides are those of this one size: without padding, or where a side is rounded up.

        8 cells of 240 pixels look like a stride of 30; of 480 pixels, stride 32 makes 15.
        """
        chain = decodable([stage.stride for stage in stages])
        chosen = [stage for stage in stages if stage.stride in chain]
        if all(len(set(s.stride)) == 1 and _is_power_of_two(s.stride[0]) for s in chosen):
            return False
        deepest = chain[-1]
        steps = [step if _is_power_of_two(step) else n for n, step in zip(probe.shape[2:], deepest, strict=True)]
        size = [side + step for side, step in zip(probe.shape[2:], steps, strict=True)]
        try:
            maps = way(tuple(stage.key for stage in chosen))(self.backbone, probe.new_zeros(*probe.shape[:2], *size))
        except Exception:  # it takes one size only
            return False
        return any(stride_of(features, size) != stage.stride for features, stage in zip(maps, chosen, strict=True))

    def _announced(self, probe: Tensor) -> tuple[_WayOf, list[_Stage]]:
        """Stages by timm's `forward_intermediates`."""
        with recording(self.backbone, probe.shape[2:]) as calls:
            maps = Intermediates()(self.backbone, probe)
        stages = _stages_among(maps, probe.shape[2:], "forward_intermediates")
        return self._of_maps(stages, maps, calls) or (Intermediates, stages)

    def _of_maps(
        self, stages: list[_Stage], maps: Sequence[Tensor], calls: Sequence[Call]
    ) -> tuple[_WayOf, list[_Stage]] | None:
        """Stages that a network hands out, by the modules that make them, if it runs on after the deepest one.

        As the last blocks of timm's GhostNet and ReXNet do, and detectors, which hand out no maps while they train.
        """
        stages = sorted(stages, key=lambda stage: math.prod(stage.stride))
        givers = [giver for stage in stages if (giver := call_giving(maps[stage.key], calls))]
        if not stages or len(givers) < len(stages) or not runs_after(givers[-1], calls):
            return None
        return partial(ModuleCalls, call=self._run), _stages_of(givers)

    def first_stage_of_parameters(self) -> dict[str, int]:
        """Of each parameter on the way to the deepest stage, the first stage (from 0) that depends on it."""
        probe = torch.zeros(1, self.in_chans, *self.probe_size, dtype=self.dtype, device=self.device)
        with evaluating(self.backbone):
            reached = self._parameters_of(probe, lambda features: [[feature] for feature in features])
        first_stage: dict[str, int] = {}
        for stage, names in enumerate(reached):
            for name in names:
                first_stage.setdefault(name, stage)
        return first_stage

    def _reach(self, probe: Tensor) -> tuple[list[str], list[str]]:
        """What lies after the deepest stage, and the modules called before, by a dense backward pass."""
        with recording(self.backbone, probe.shape[2:]) as calls:
            (trained,) = self._parameters_of(probe, lambda features: [features])
        if not trained:
            raise UsageError(f"backbone={type(self.backbone).__name__}: its features depend on no parameter")
        called = {call.point[0] for call in all_calls(calls)} | {n.rpartition(".")[0] for n in trained}
        untrained = [n for n, p in self.backbone.named_parameters() if p.is_floating_point() and n not in trained]
        untrained += [n for n, _ in self.backbone.named_buffers() if n.rpartition(".")[0] not in called]
        return untrained, sorted(called)

    def _parameters_of(self, probe: Tensor, parts: Callable[[list[Tensor]], list[list[Tensor]]]) -> list[set[str]]:
        """The parameters that each of some parts of the features depends on, by dense backward passes.

        They run on stand-ins for parameters and buffers, so that frozen parameters count like all others.
        """
        parameters = {n: p for n, p in self.backbone.named_parameters() if p.is_floating_point()}
        stand_ins = {n: p.detach().requires_grad_() for n, p in parameters.items()}
        instead = {id(p): stand_ins[n] for n, p in parameters.items()}
        instead |= {id(b): b.clone() for b in self.backbone.buffers()}
        names: list[set[str]] = []
        try:
            with torch.enable_grad(), replaced(self.backbone, instead):
                for part in parts(self(probe)):
                    outputs = [f for f in part if f.requires_grad]
                    tensors, ones = list(stand_ins.values()), [torch.ones_like(f) for f in outputs]
                    slopes = gradients(outputs, tensors, ones, retain_graph=True) if outputs else [None] * len(tensors)
                    names.append({n for n, slope in zip(stand_ins, slopes, strict=True) if slope is not None})
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UsageError(
                f"backbone={type(self.backbone).__name__} cannot be trained: on a whole image, with no patch masked, "
                f"forward and backward pass fail: {error}"
            ) from error
        return names


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _prefixes(name: str) -> list[str]:
    """`a.b.c` -> a, a.b, a.b.c."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


@contextmanager
def replaced(module: nn.Module, instead: Mapping[int, Tensor]) -> Iterator[None]:
    """Other tensors in the place of a module's own, by their `id`, on the way back, too, when a checkpoint runs again.

    Not by `torch.func.functional_call`, which does not put back those of a module that has two names.
    """
    dictionaries: list[dict[str, Any]] = [
        own for submodule in module.modules() for own in (submodule._parameters, submodule._buffers)
    ]
    places = [(own, name, tensor) for own in dictionaries for name, tensor in own.items() if id(tensor) in instead]
    try:
        for own, name, tensor in places:
            own[name] = instead[id(tensor)]
        yield
    finally:
        for own, name, tensor in places:
            own[name] = tensor


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then each submodule gets back the mode that it had."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode


def _first_kernel(backbone: nn.Module) -> tuple[Tensor, int]:
    """Weight of the first convolution, (out, in / groups, *kernel), and the channels that go in."""
    for kinds in ((nn.Conv2d, nn.Conv3d), nn.Conv1d):  # networks for images have a Conv1d over channels at times
        for module in backbone.modules():
            if isinstance(module, kinds):
                return module.weight, module.in_channels
    exported = isinstance(backbone, torch.fx.GraphModule)
    own = [] if exported else [parameter for parameter in backbone.parameters() if parameter.ndim in (4, 5)]
    if own:  # of convolutions that the network writes itself
        first = min(own, key=Tensor.dim)
        return first, first.shape[1]
    hidden = " (torch.export hides them: give the module that it was made from)" if exported else ""
    raise UsageError(
        f"backbone={type(backbone).__name__} is not a convolutional network: it has no Conv2d and no "
        f"Conv3d{hidden}. Expected a convnet such as timm's resnet50 or convnext_tiny"
    )


def _check_parts(backbone: nn.Module) -> None:
    """Refuse lazy layers, which would take their sizes from a probing image, and what can have no gradient or hooks."""
    for name, module in backbone.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(
                f"backbone={type(backbone).__name__}: {name or 'it'} was compiled by TorchScript (torch.jit.script or "
                "trace), which does not know visible patches: use the module that it was made from"
            )
    for name, tensor in itertools.chain(backbone.named_parameters(), backbone.named_buffers()):
        if is_lazy(tensor):
            raise UsageError(
                f"backbone={type(backbone).__name__}: {name} of a lazy layer gets its size from the first image that "
                "the network sees. Call the network once on an image of the size that it is meant for, before this"
            )
        if tensor.is_inference():
            raise UsageError(
                f"backbone={type(backbone).__name__}: {name} was made within torch.inference_mode, and cannot be "
                "trained: make it outside"
            )


def _mostly_ran(calls: Sequence[Call], backbone: nn.Module) -> bool:
    """Whether a run that failed in the end, in a classifier for one size, had come past most of the convolutions.

    Past most of their number: a classifier may be a convolution itself, with most of the weights.
    """
    finished = {call.point[0] for call in all_calls(calls) if call.output is not None}
    convs = {name for name, module in backbone.named_modules() if isinstance(module, nn.modules.conv._ConvNd)}
    return len(convs & finished) > len(convs) / 2


def image_channels(network: nn.Module, size: Sequence[int]) -> int:
    """Channels of the images that a network takes, by calling it: it may begin with something else than a convolution.

    Args:
        size: sides of images that it takes, in pixels.

    Raises:
        UsageError: it runs on none that are likely.
    """
    weight, failure = _first_kernel(network)[0], None
    for channels in _likely_channels(network):
        try:
            with evaluating(network), torch.no_grad():
                network(weight.new_zeros(1, channels, *size))
            return channels
        except Exception as error:  # whatever a foreign network raises
            failure = failure or error
    raise UsageError(
        f"{type(network).__name__} cannot be run on images of {'x'.join(map(str, size))} pixels "
        f"({type(failure).__name__}: {failure})"
    )


def _likely_channels(network: nn.Module) -> list[int]:
    config = getattr(network, "pretrained_cfg", None)
    input_size = config.get("input_size") if isinstance(config, dict) else None
    return list(dict.fromkeys([_first_kernel(network)[1], *(input_size or ())[:1], 3, 1]))


def _stages_among(maps: Iterable[Tensor], size: Sequence[int], what: str) -> list[_Stage]:
    """The last map of each stride."""
    by_stride: dict[Sides, _Stage] = {}
    for i, feature_map in enumerate(maps):
        stride = stride_of(feature_map, size)
        if stride is not None:
            by_stride[stride] = _Stage(stride, feature_map.shape[1], f"{what}[{i}]", i)
    return list(by_stride.values())


def _stages_of(calls: Iterable[Call]) -> list[_Stage]:
    return [
        _Stage(call.out_stride, call.out_channels, call.point[0] or "output", call.point)
        for call in calls
        if call.out_stride is not None
    ]


def _is_pyramid(stages: Sequence[_Stage]) -> bool:
    """Ever coarser maps of different widths, as an encoder returns.

    Not the outputs of deep supervision, nor an image beside the code that it was decoded from.
    """
    strides = [math.prod(stage.stride) for stage in stages]
    several = sum(stride > 1 for stride in strides) > 1
    return several and strides == sorted(strides) and len({stage.channels for stage in stages}) > 1


def _named_calls(backbone: nn.Module, calls: Sequence[Call], names: Sequence[str]) -> list[Call]:
    last = {call.point[0]: call for call in all_calls(calls)}
    known = [name for name, _ in backbone.named_modules() if name]
    chosen: dict[Sides, Call] = {}
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise UsageError(f"stages: {name!r} is no module of {type(backbone).__name__}{hint}")
        stride = last[name].out_stride if name in last else None
        if stride is None:
            raise UsageError(
                f"stages: module {name!r} gives no map of features (B, C, *spatial) whose side divides the "
                "image's; name a module that does"
            )
        if stride in chosen:
            raise UsageError(
                f"stages: {chosen[stride].point[0]!r} and {name!r} both have stride {as_text(stride)}; name one of them"
            )
        chosen[stride] = last[name]
    return list(chosen.values())


def _decodable(
    stages: Sequence[_Stage], backbone: nn.Module, patch_size: Sides | None, levels: int | None
) -> list[_Stage]:
    """The stages that a decoder can take up on its way from the deepest one that the patch allows, finest first."""
    by_stride = {stage.stride: stage for stage in stages if math.prod(stage.stride) > 1}
    kind = type(backbone).__name__
    if not by_stride:
        raise UsageError(
            f"backbone={kind} has no stages: found no map (B, C, *spatial) whose side is a whole fraction "
            "of the image's (all convolutions padded). Expected a convolutional network that makes its maps "
            "smaller; or name modules in `stages`; or pass an image size that is a multiple of its stride"
        )
    chain = decodable(list(by_stride))
    if patch_size is not None and not (min(patch_size) > 0 and divides(chain[-1], patch_size)):
        # A patch finer than the total stride trains the stages above it; one that is larger must fit the whole.
        finer = all(p <= s for p, s in zip(patch_size, chain[-1], strict=True)) and min(patch_size) > 0
        chain = decodable([s for s in by_stride if divides(s, patch_size)]) if finer else []
        if not chain:
            known = sorted(by_stride, key=math.prod)
            raise UsageError(
                f"patch_size={as_text(patch_size)}: expected a multiple of the deepest stage's stride, "
                f"{as_text(known[-1])}, or of a finer stage's to train {kind} up to that stage; its strides are "
                f"{', '.join(map(as_text, known))}"
            )
    if levels is not None:
        if not 0 < levels <= len(chain):
            raise UsageError(f"levels={levels}: expected 1 to {len(chain)}, the stages of {kind} that can be decoded")
        chain = chain[-levels:]
    largest = max(n for factors in upsampling(chain) for factor in factors for n in factor)
    if largest > MAX_FACTOR:
        raise UsageError(
            f"backbone={kind} has stages of strides {', '.join(map(as_text, chain))}: between them, or in front of "
            f"them, the decoder would have to make a map {largest} times larger at once; it goes up to {MAX_FACTOR}. "
            "Name other modules in `stages`"
        )
    return [by_stride[stride] for stride in chain]


def has_heads(module: nn.Module) -> bool:
    """Whether a module seems to be self-attention."""
    return any(hasattr(module, heads) for heads in _HEADS)


def _refuse_attention(backbone: nn.Module, names: Iterable[str]) -> None:
    """Masked patches cannot be left out of self-attention by a convnet's rules; heads give it away."""
    # Not the whole network: its heads may be those of several tasks, and what has attention inside is found inside.
    attention = [name for name in names if name and has_heads(backbone.get_submodule(name))]
    if attention:
        kind = type(backbone.get_submodule(attention[0])).__name__
        raise UsageError(
            f"backbone={type(backbone).__name__} is not a convolutional network: it has self-attention "
            f"({kind} at {attention[0]!r}, {len(attention)} in all). Expected a convnet such as timm's resnet50 or "
            "convnext_tiny. If convolutions come first, name modules before it in `stages`; for transformers, "
            "use masked autoencoders made for them (MAE, BEiT)"
        )
