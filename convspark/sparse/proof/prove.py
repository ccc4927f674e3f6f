"""Prove that a network runs exactly on visible patches; name what does not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NotExactError
from ..grid import PatchGrid
from ..tensor import VisiblePatches, gather, scatter
from .draws import SameDraws
from .gradients import gradients as gradients_of
from .oracle import MaskAndMultiply

Forward = Callable[[Tensor], Sequence[Tensor]]

TOLERANCE = 1e-8
"""Largest deviation allowed in float64, relative to the largest value of a map."""

_NOISE = 1e-15  # relative; a few roundings of float64
_AMPLIFIED = 1e3  # how many times the reaction to such noise the roundings of a whole network may add up to
_BLIND = 1e-4  # a network that amplifies roundings beyond this proves nothing
_NUDGE = 0.02  # added to parameters, so that none stays at 0 or 1, where mistakes would not show
_NUDGES = 65_537


@dataclass(frozen=True)
class Proof:
    """How far a network's run on visible patches is from the truth, in float64.

    Deviations are relative to the largest value of each map (gradient, statistic).

    Attributes:
        dense: of the features from the dense network's, with every patch visible.
        features: from mask-and-multiply's, with some patches masked.
        gradients: of all parameters, likewise.
        statistics: of all running statistics, likewise.
        leak: whether an output depends on a masked pixel.
        sensitivity: what a relative change of the input by 1e-15 does to mask-and-multiply's features and gradients;
            None where no deviation gave reason to ask.
        tolerance: the largest deviation allowed.
        reason: why the network is not exact, or None.
        unmatched: why it was compared in evaluation mode only, though training was asked for: what it draws at random
            could not get the same numbers in both runs. Else None.
    """

    dense: float
    features: float
    gradients: float
    statistics: float
    leak: bool
    sensitivity: float | None
    tolerance: float
    reason: str | None
    unmatched: str | None = None

    @property
    def exact(self) -> bool:
        return self.reason is None

    @property
    def largest(self) -> float:
        """The largest of the four deviations."""
        return max(self.dense, self.features, self.gradients, self.statistics)


def examine(
    forward: Forward,
    module: nn.Module,
    in_chans: int,
    image_size: Sequence[int],
    patch_size: Sequence[int],
    training: bool = True,
    tolerance: float = TOLERANCE,
    images: int = 3,
    run_size: Sequence[int] | None = None,
) -> Proof:
    """Run a network densely, by mask-and-multiply and on visible patches, and compare.

    In float64, with slightly changed parameters, and with the same random numbers: what a network draws in training
    (dropout, noise, stochastic depth) is drawn alike. Where that cannot be, it is compared in evaluation mode, and the
    verdict says so. Parameters, buffers, modes and random state are left as they were.

    Args:
        forward: images or visible patches -> the features of each stage.
        module: the network that `forward` runs, whose parameters are taken to float64 meanwhile.
        in_chans: channels of its images.
        image_size: sides of its images; at most four patches a side are used.
        patch_size: sides of a patch.
        training: in training mode, where norms take their statistics from the batch.
        images: in the batch; the last one shows nothing.
        run_size: sides of the images that it will be run on, which a network may branch on: one such image as well,
            with every patch visible, against the dense network.

    Returns:
        The verdict, also where mask-and-multiply could not be run.

    Raises:
        NotExactError: a function was refused, or the network cannot be run at these sizes.
    """
    small = _Trial(forward, module, in_chans, image_size, patch_size, images, most=4)
    with _whatever_happens(module):
        proof = _judged(small, training, tolerance)
        if run_size is None or not proof.exact:
            return proof
        of_size = partial(_Trial, forward, module, in_chans, run_size, patch_size)
        return _at_full_size(small, of_size, proof, training)


@contextmanager
def _whatever_happens(module: nn.Module) -> Iterator[None]:
    """A foreign network may return anything: what cannot be compared is not exact."""
    try:
        yield
    except NotExactError:
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise NotExactError(f"What {type(module).__name__} returns cannot be compared: {message}") from error


def _judged(trial: _Trial, training: bool, tolerance: float) -> Proof:
    with trial.set_up(training):
        proof, unmatched = _compared(trial, tolerance)
        if proof.exact or not training:
            return proof
        unmatched = unmatched or trial.unseen_draws()
    if unmatched is None:
        return proof
    with trial.set_up(training=False):
        return replace(_compared(trial, tolerance)[0], unmatched=unmatched)


def _compared(trial: _Trial, tolerance: float) -> tuple[Proof, str | None]:
    """The verdict in one mode, and what was not drawn alike."""
    dense, everything = trial.run(_densely()), _on_patches(trial.everything)
    opened = trial.run(everything)
    off_dense = _features_apart(dense, opened)
    unmatched = dense.first_other_draw(opened)
    if by_position := dense.drawn_by_position(opened):
        raise NotExactError(
            f"{type(trial.module).__name__} draws {by_position} for each position of a map. On patches of one position "
            "these numbers look like those that drop whole images. Make them from the patches: torch.rand_like(x)"
        )
    if off_dense > tolerance:
        return trial.not_dense(off_dense, tolerance), unmatched
    if trial.masks_nothing:
        return Proof(off_dense, 0.0, 0.0, 0.0, False, None, tolerance, None), unmatched
    ours = trial.run(_on_patches(trial.some), gradients=True)
    try:
        theirs = trial.run(_masked(trial.some), gradients=True)
    except NotExactError as error:  # whatever mask-and-multiply does not foresee
        reason = (
            "with every patch visible it equals the dense network, but with some masked nothing is known: "
            f"mask-and-multiply, which it is compared with, failed. {error}"
        )
        return Proof(off_dense, math.nan, math.nan, math.nan, False, None, tolerance, reason), unmatched
    unmatched = unmatched or theirs.first_other_draw(ours)
    off = {
        "features": _features_apart(theirs, ours),
        "gradients": _apart(theirs.gradients, ours.gradients),
        "statistics": _apart(theirs.statistics, ours.statistics),
    }
    sensitivity = None
    if not max(off.values()) <= tolerance:
        noisy = trial.images * (1 + _NOISE * torch.randn_like(trial.images))
        shaken = trial.run(_masked(trial.some), noisy, gradients=True)
        sensitivity = max(_features_apart(theirs, shaken), _apart(theirs.gradients, shaken.gradients))
        if not max(off.values()) <= min(_AMPLIFIED * sensitivity, _BLIND):
            what = next(name for name, value in off.items() if not value <= tolerance)
            culprit = trial.culprit(_masked(trial.some), _on_patches(trial.some), tolerance)
            truth = "with some patches masked, the same network run by mask-and-multiply"
            return _failed(truth, off[what], culprit, tolerance, off_dense, sensitivity, what, **off), unmatched
    leak = trial.leaks(ours)
    reason = "its output depends on pixels of masked patches" if leak else None
    return Proof(
        off_dense, off["features"], off["gradients"], off["statistics"], leak, sensitivity, tolerance, reason
    ), unmatched


def _at_full_size(small: _Trial, full: Callable[[int], _Trial], proof: Proof, training: bool) -> Proof:
    """The verdict on `small`, unless the dense network is another one at full size: on so many images as need be."""
    one = full(1)
    if one.size == small.size:
        return proof
    try:
        verdict = _at_its_size(one, proof, training)
        if math.isfinite(verdict.dense):
            return verdict
    except NotExactError:  # a batch norm of pooled values, one an image, cannot be trained on a single one
        pass
    return _at_its_size(full(2), proof, training)  # nor has a single one a variance


def _at_its_size(full: _Trial, proof: Proof, training: bool) -> Proof:
    with full.set_up(training):
        dense, ours = full.run(_densely()), full.run(_on_patches(full.everything))
        off = _features_apart(dense, ours)
        if off <= proof.tolerance:
            return proof
        unmatched = training and (dense.first_other_draw(ours) or full.unseen_draws())
        if not unmatched:
            return full.not_dense(off, proof.tolerance)
    return replace(_at_its_size(full, proof, training=False), unmatched=unmatched)


def prove(
    forward: Forward,
    module: nn.Module,
    in_chans: int,
    image_size: Sequence[int],
    patch_size: Sequence[int],
    tolerance: float = TOLERANCE,
) -> Proof:
    """What each new `SparK` does: that the network is exact as it will be trained.

    `examine` in training mode, with gradients, on two images of three patches a side, or more of fewer patches; then,
    with every patch visible, at the very size of the run, which a network may branch on; then a step as it is, dropout
    and all, so that what is refused is refused now.

    Returns:
        The verdict, exact.

    Raises:
        NotExactError: the results differ; names the first module whose output does. Or a function was refused.
    """
    of_size = partial(_Trial, forward, module, in_chans, image_size, patch_size)
    patches = math.prod(max(1, min(side // p, 3)) for side, p in zip(image_size, patch_size, strict=True))
    # One shows nothing. Batch norms over two or three positions amplify roundings: the others have some nine patches.
    small = of_size(1 + max(1, round(9 / patches)), most=3)
    with _whatever_happens(module):
        proof = _judged(small, True, tolerance)
        if proof.exact:
            proof = _at_full_size(small, of_size, proof, training=True)
    if proof.reason is not None:
        raise NotExactError(
            f"{type(module).__name__} is not exact on visible patches: {proof.reason} "
            "Take stages before that module, or give the function a meaning with convspark.sparse.meaning."
        )
    with small.set_up(training=True):
        small.run(_on_patches(small.some), as_it_is=True)
    return proof


def _failed(
    truth: str,
    deviation: float,
    culprit: str,
    tolerance: float,
    dense: float,
    sensitivity: float | None = None,
    what: str = "features",
    features: float = math.nan,
    gradients: float = math.nan,
    statistics: float = math.nan,
) -> Proof:
    reason = f"{truth} gives other {what} (relative deviation {deviation:.2g}, tolerated {tolerance:.0e}). {culprit}"
    return Proof(dense, features, gradients, statistics, False, sensitivity, tolerance, reason)


# ------------------------------------------------------------------------------------------------ running


@dataclass(frozen=True)
class _Outcome:
    features: list[Tensor]  # whole maps, 0 where masked
    gradients: dict[str, Tensor]
    statistics: dict[str, Tensor]
    draws: list[tuple[str, tuple[int, ...]]]
    state: Tensor  # of the random numbers, afterwards

    def first_other_draw(self, other: _Outcome) -> str | None:
        """The first function by which this run and another one did not draw alike."""
        for one, two in itertools.zip_longest(self.draws, other.draws):
            if one != two:
                return (one or two)[0]  # type: ignore[index]
        return None if torch.equal(self.state, other.state) else "random numbers of an unknown kind"

    def drawn_by_position(self, other: _Outcome) -> str | None:
        """The first function by which this dense run drew a map where the other one drew a number for each image."""
        for (name, dense), (own, sparse) in zip(self.draws, other.draws, strict=False):
            like = name == own and len(dense) == len(sparse) and dense[:1] == sparse[:1]
            if like and math.prod(sparse) == math.prod(dense[:1]) < math.prod(dense):
                return name
        return None


@dataclass(frozen=True)
class _Way:
    """How a network is run: what becomes of images, and of what it returns."""

    enter: Callable[[Tensor], Tensor]
    leave: Callable[[Tensor], Tensor]
    mode: AbstractContextManager[Any] = field(default_factory=nullcontext)
    grid: PatchGrid | None = None


def _densely() -> _Way:
    return _Way(torch.clone, lambda feature: feature)


def _on_patches(visible: Tensor) -> _Way:
    grid = PatchGrid(visible)

    def leave(feature: Tensor) -> Tensor:
        return scatter(feature) if isinstance(feature, VisiblePatches) else feature

    return _Way(lambda images: gather(images, grid), leave, grid=grid)


def _masked(visible: Tensor) -> _Way:
    oracle = MaskAndMultiply(visible)
    return _Way(oracle.masked, oracle.zero_filled, oracle)


class _Trial:
    """Images, masks, and runs of the network on them that all start from the same state."""

    def __init__(
        self,
        forward: Forward,
        module: nn.Module,
        in_chans: int,
        image_size: Sequence[int],
        patch_size: Sequence[int],
        images: int,
        most: int | None = None,
    ):
        """`images` of at most so many patches a side."""
        self.forward, self.module = forward, module
        shape = [max(min(side // p, most or side), 1) for side, p in zip(image_size, patch_size, strict=True)]
        sides = [h * p for h, p in zip(shape, patch_size, strict=True)]
        self.device = next((p.device for p in module.parameters()), torch.device("cpu"))
        if self.device.type == "meta":
            raise NotExactError(
                f"{type(module).__name__} is on the device meta, where tensors have no values, so that nothing can be "
                "proved: give it its weights first (to_empty, load_state_dict)"
            )
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(images, in_chans, *sides, generator=generator, dtype=torch.float64)
        self.images = pixels.to(self.device)
        self.everything = torch.ones(images, *shape, dtype=torch.bool, device=self.device)
        some = torch.rand(images, *shape, generator=generator) < 0.5
        some.view(images, -1)[0, 0] = True
        if images > 1:
            some[-1] = False  # an image that shows nothing
        self.some = some.to(self.device)
        self.masks_nothing = math.prod(shape) == 1

    @contextmanager
    def set_up(self, training: bool) -> Iterator[None]:
        """The network as it is compared: in float64, in one mode; random state is left as it was."""
        devices = [self.device] if self.device.type == "cuda" else []
        as_it_is = torch.autocast(self.device.type, enabled=False)
        with in_float64(self.module, training, dropout=True), torch.random.fork_rng(devices), as_it_is:
            yield

    def unseen_draws(self) -> str | None:
        """Whether two dense runs differ: numbers are drawn by something else than torch."""
        one, other = self.run(_densely()), self.run(_densely())
        alike = all(torch.equal(a, b) for a, b in zip(one.features, other.features, strict=True))
        return None if alike else "random numbers that torch does not draw"

    def not_dense(self, deviation: float, tolerance: float) -> Proof:
        """The verdict on a network that differs from its dense self with every patch visible."""
        culprit = self.culprit(_densely(), _on_patches(self.everything), tolerance)
        truth = f"with every patch visible, at {self.size} pixels, the dense network"
        return _failed(truth, deviation, culprit, tolerance, dense=deviation)

    @property
    def size(self) -> str:
        return "x".join(map(str, self.images.shape[2:]))

    def run(
        self,
        way: _Way,
        images: Tensor | None = None,
        gradients: bool = False,
        as_it_is: bool = False,
    ) -> _Outcome:
        """Features, gradients of a random weighting of them, and statistics; the module is as before afterwards.

        Args:
            as_it_is: draw random numbers as they come.
        """
        tied = position_embedding(self.module, self.images.dim() - 2)
        remark = f" {tied[0].upper()}{tied[1:]}." if tied else ""
        before = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        parameters = {n: p for n, p in self.module.named_parameters() if p.is_floating_point()}
        torch.manual_seed(1)
        same = SameDraws(way.grid, as_it_is)
        try:
            with torch.set_grad_enabled(gradients):
                x = way.enter(self.images if images is None else images)
                with same, way.mode:
                    features = self.forward(x)
                maps = [way.leave(feature) for feature in features]
            slopes: Sequence[Tensor | None] = ()
            if gradients and parameters and any(m.requires_grad for m in maps):
                with same, way.mode:  # a checkpoint runs again on the way back
                    slopes = _slopes(maps, list(parameters.values()))
            by_name = {n: slope for n, slope in zip(parameters, slopes, strict=False) if slope is not None}
            after = {n: b.clone() for n, b in self.module.named_buffers() if b.is_floating_point()}
        except NotExactError as error:
            raise NotExactError(f"{error}{remark if 'spatial extent' in str(error) else ''}") from None
        except Exception as error:  # whatever a foreign network raises at a size that it does not take
            what = "images" if way.grid is None else "visible patches of images"
            any_size = (
                " Expected a network that takes images of any size and number, as patches are."
                if way.grid is None
                else ""
            )
            message = (str(error).strip() or "no reason given").splitlines()[0]
            raise NotExactError(
                f"{type(self.module).__name__} cannot be run on {what} of {self.size} pixels: "
                f"{type(error).__name__}: {message}.{any_size}{remark}"
            ) from error
        finally:
            with torch.no_grad():
                for name, buffer in self.module.named_buffers():
                    if name in before:
                        buffer.copy_(before[name])
        return _Outcome([m.detach() for m in maps], by_name, after, same.draws, torch.get_rng_state())

    def leaks(self, clean: _Outcome) -> bool:
        """Whether a bit of the output changes when masked pixels do."""
        mask = self.some[:, None]
        for axis, side in enumerate(self.images.shape[2:], start=2):
            mask = mask.repeat_interleave(side // mask.shape[axis], axis)
        dirty = self.run(_on_patches(self.some), torch.where(mask, self.images, math.nan))
        return not all(torch.equal(a, b) for a, b in zip(clean.features, dirty.features, strict=True))

    def culprit(self, one: _Way, other: _Way, tolerance: float) -> str:
        """Sentence naming the first module whose output deviates."""
        expected, actual = self._outputs(one), self._outputs(other)
        assert other.grid is not None
        for name, kind, output, _ in actual:
            if type(output) is Tensor and output.shape[0] == other.grid.num_visible > len(self.images):
                return (
                    f"The module {name} ({kind}) returned a plain tensor for visible patches: TorchScript, torch.vmap, "
                    "torch.func, torch.autograd.Variable and as_subclass leave them; write that module without."
                )
        called = [{(name, kind) for name, kind, *_ in outputs} for outputs in (expected, actual)]
        for name, kind, *_ in (*expected, *actual):
            if (name, kind) not in called[0] & called[1]:
                where = "whole images" if (name, kind) in called[0] else "visible patches"
                return (
                    f"The module {name} ({kind}) is called on {where} alone: the network chooses by what size it sees."
                )
        for (name, kind, _, e), (_, _, _, f) in zip(expected, actual, strict=False):
            if e is not None and f is not None and e.shape == f.shape and not _relative(e, f) <= tolerance:
                return (
                    f"The first module to differ is {name} ({kind}). A function there may act by the size of its input "
                    "(coordinates, a pooling over the whole map)."
                )
        return "No single module could be made out."

    def _outputs(self, way: _Way) -> list[tuple[str, str, Tensor, Tensor | None]]:
        """Path, class and output of each module, as it is and as a whole map, in the order in which they finish."""
        outputs: list[tuple[str, str, Tensor, Tensor | None]] = []

        def remember(name: str) -> Callable[..., None]:
            def hook(owner: nn.Module, _args: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.dim() >= 3:
                    path, whole = name or "the network itself", _as_whole_map(way, output)
                    outputs.append((path, type(owner).__name__, output, whole))

            return hook

        handles = [owner.register_forward_hook(remember(name)) for name, owner in self.module.named_modules()]
        try:
            self.run(way)
        finally:
            for handle in handles:
                handle.remove()
        return outputs


def position_embedding(module: nn.Module, dims: int) -> str:
    """A sentence on a parameter that seems to be added to the whole map, (1, C, *sides) or (1, rows, C); "" if none."""
    for path, owner in module.named_modules():
        for name, value in owner.named_parameters(prefix=path, recurse=False):
            rows = value.dim() == 3 and value.shape[0] == 1 < value.shape[1]
            a_map = value.dim() == dims + 2 and value.shape[0] == 1 and min(value.shape[2:]) > 1
            if (rows or a_map) and not isinstance(owner, nn.modules.conv._ConvNd):
                return (
                    f"its parameter {name}, {tuple(value.shape)}, seems to be a position embedding, which is tied to "
                    "the whole map of one image size: leave it out, or take stages from before it is added"
                )
    return ""


def _as_whole_map(way: _Way, output: Tensor) -> Tensor | None:
    """What became of a module's output, as a whole map, or as it is where it has the rows of images."""
    try:
        with torch._C.DisableTorchFunction():  # the run's modes
            values = way.leave(output) if way.grid is None or isinstance(output, VisiblePatches) else output
            return values.detach().as_subclass(Tensor).clone()
    except Exception:  # a form that cannot be put back into an image says nothing
        return None


def _slopes(maps: Sequence[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Gradients of a random weighting of maps."""
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(m.shape, generator=generator, dtype=m.dtype).to(m.device) for m in maps]
    maps, weights = zip(*((m, w) for m, w in zip(maps, weights, strict=True) if m.requires_grad), strict=True)
    # torch.autograd.grad would hand itself over to the mode of the run, and go on without it.
    return gradients_of(maps, parameters, weights)


@contextmanager
def in_float64(module: nn.Module, training: bool, dropout: bool = False) -> Iterator[None]:
    """The module's floating-point tensors in float64, nudged, in one mode, without dropout; put back afterwards.

    So are its attributes: what it kept from its first call would otherwise be there at the first one of the run.
    """
    parameters = [p for p in module.parameters() if p.is_floating_point()]
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    registered = [(owner, dict(owner._buffers)) for owner in module.modules()]  # a network may put others there
    originals = [(t, t.data, t.requires_grad) for t in (*parameters, *buffers)]
    attributes = [(owner, dict(vars(owner))) for owner in module.modules()]  # mode, and what they keep
    generator = torch.Generator().manual_seed(3)
    # The same numbers again and again, a prime of them: to draw one for each weight takes longer than all else.
    nudges = torch.randn(_NUDGES, generator=generator, dtype=torch.float64) * _NUDGE
    try:
        module.train(training)  # first of all: it freezes parameters in some networks
        for parameter in parameters:
            repeated = nudges.repeat(-(-parameter.numel() // _NUDGES))[: parameter.numel()]
            parameter.data = parameter.data.double() + repeated.view(parameter.shape).to(parameter.device)
            parameter.requires_grad_(True)
        for buffer in buffers:
            buffer.data = buffer.data.double()
        for owner in [] if dropout else module.modules():
            if isinstance(owner, nn.modules.dropout._DropoutNd) or type(owner).__name__ == "StochasticDepth":
                owner.eval()
        yield
    finally:
        for owner, kept in registered:
            owner._buffers.update(kept)
        for tensor, data, requires_grad in originals:
            tensor.data = data
            tensor.requires_grad_(requires_grad)
        for owner, kept in attributes:
            vars(owner).clear()
            vars(owner).update(kept)


# ------------------------------------------------------------------------------------------------ comparing


def _features_apart(expected: _Outcome, actual: _Outcome) -> float:
    pairs = zip(expected.features, actual.features, strict=True)
    return max(_relative(e, f) for e, f in pairs)


def _apart(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> float:
    """Largest relative difference between named tensors; one that is missing counts as 0.

    A bias in front of a norm has the gradient 0 up to rounding: it is held against a millionth of the largest.
    """
    floor = 1e-6 * max((float(e.abs().max()) for e in expected.values() if e.numel()), default=1.0)
    worst = 0.0
    for name in expected.keys() | actual.keys():
        e, f = expected.get(name), actual.get(name)
        e, f = (torch.zeros_like(f) if e is None and f is not None else e), (torch.zeros_like(e) if f is None else f)  # type: ignore[arg-type]
        assert e is not None
        worst = max(worst, _relative(e, f, floor))
    return worst


def _relative(expected: Tensor, actual: Tensor, floor: float = 0.0) -> float:
    """Largest difference relative to the largest expected value; infinite where they cannot be compared."""
    if expected.shape != actual.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    scale = max(float(expected.abs().max()), floor)
    difference = float((expected - actual).abs().max())
    if not math.isfinite(scale) or math.isnan(difference):
        return math.inf
    return difference / scale if scale > 0 else difference
