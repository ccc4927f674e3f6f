"""Prove that a given network runs exactly on visible patches; name what does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import NotExactError
from ..grid import PatchGrid
from ..meanings.random import drops_images
from ..tensor import VisiblePatches, gather, scatter
from .oracle import MaskedMap, masked_map, visible_part

Forward = Callable[[Tensor], Sequence[Tensor]]

TOLERANCE = 1e-8
"""Largest deviation allowed in float64, relative to the largest value of a map."""

_NOISE = 1e-15  # relative; a few roundings of float64
_AMPLIFIED = 1e3  # how many times the reaction to such noise the roundings of a whole network may add up to
_BLIND = 1e-4  # a network that amplifies roundings beyond this proves nothing
_NUDGE = 0.02  # added to parameters, so that none stays at 0 or 1, where mistakes would not show


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
    """

    dense: float
    features: float
    gradients: float
    statistics: float
    leak: bool
    sensitivity: float | None
    tolerance: float
    reason: str | None

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
) -> Proof:
    """Run a network densely, by mask-and-multiply and on visible patches, and compare.

    In float64, with slightly changed parameters and without dropout, whose draws cannot be compared. A network that
    draws random numbers of other kinds in training is compared in evaluation mode. Parameters, buffers, modes and
    random state are left as they were.

    Args:
        forward: images or visible patches -> the features of each stage.
        module: the network that `forward` runs, whose parameters are taken to float64 meanwhile.
        in_chans: channels of its images.
        image_size: sides of its images; at most four patches a side are used.
        patch_size: sides of a patch.
        training: in training mode, where norms take their statistics from the batch.
        images: in the batch; the last one shows nothing.

    Returns:
        The verdict, also where the network, or mask-and-multiply, could not be run.

    Raises:
        NotExactError: a function was refused.
    """
    return _judged(_Trial(forward, module, in_chans, image_size, patch_size, images, most=4), training, tolerance)


def _judged(trial: _Trial, training: bool, tolerance: float) -> Proof:
    proof = _compared(trial, training, tolerance)
    if not proof.exact and training and trial.draws():
        return _compared(trial, False, tolerance)
    return proof


def _compared(trial: _Trial, training: bool, tolerance: float) -> Proof:
    """In one mode."""
    with trial.quiet(training):
        dense = trial.run(trial.images.clone())
        opened = trial.run(gather(trial.images, PatchGrid(trial.everything)))
        off_dense = _features_apart(dense, opened)
        if off_dense > tolerance:
            return trial.not_dense(off_dense, tolerance)
        if trial.masks_nothing:
            return Proof(off_dense, 0.0, 0.0, 0.0, False, None, tolerance, None)
        grid = PatchGrid(trial.some)
        ours = trial.run(gather(trial.images, grid), gradients=True)
        try:
            theirs = trial.run(masked_map(trial.images, trial.some), gradients=True)
        except Exception as error:  # whatever a network does that mask-and-multiply does not foresee
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = (
                "with every patch visible it equals the dense network, but with some masked nothing is known: mask-and-"
                f"multiply, which it is compared with, cannot run it ({type(error).__name__}: {said})."
            )
            return Proof(off_dense, math.nan, math.nan, math.nan, False, None, tolerance, reason)
        off = {
            "features": _features_apart(theirs, ours),
            "gradients": _apart(theirs.gradients, ours.gradients),
            "statistics": _apart(theirs.statistics, ours.statistics),
        }
        sensitivity = None
        if max(off.values()) > tolerance:
            noisy = trial.images * (1 + _NOISE * torch.randn_like(trial.images))
            shaken = trial.run(masked_map(noisy, trial.some), gradients=True)
            sensitivity = max(_features_apart(theirs, shaken), _apart(theirs.gradients, shaken.gradients))
            if not max(off.values()) <= min(_AMPLIFIED * sensitivity, _BLIND):
                what = next(name for name, value in off.items() if not value <= tolerance)
                culprit = trial.culprit(masked_map(trial.images, trial.some), gather(trial.images, grid), tolerance)
                truth = "with some patches masked, the same network run by mask-and-multiply"
                return _failed(truth, off[what], culprit, tolerance, off_dense, sensitivity, what, **off)
        leak = trial.leaks(ours)
        reason = "its output depends on pixels of masked patches" if leak else None
        return Proof(off_dense, **off, leak=leak, sensitivity=sensitivity, tolerance=tolerance, reason=reason)


def prove(
    forward: Forward,
    module: nn.Module,
    in_chans: int,
    image_size: Sequence[int],
    patch_size: Sequence[int],
    tolerance: float = TOLERANCE,
) -> float:
    """What each new `SparK` does: that the network is exact as it will be trained.

    `examine` in training mode, with gradients, on two images of three patches a side; then, with every patch visible,
    at the very size of the run, which a network may branch on; then a step as it is, dropout and all, so that what is
    refused is refused now.

    Returns:
        The largest deviation.

    Raises:
        NotExactError: the results differ; names the first module whose output does. Or a function was refused.
    """
    small, full = (
        _Trial(forward, module, in_chans, image_size, patch_size, n, most) for n, most in ((2, 3), (1, None))
    )
    proof = _judged(small, True, tolerance)
    if proof.exact and full.images.shape[2:] != small.images.shape[2:]:
        off, training = full.apart_from_dense(training=True), True
        if off > tolerance and full.draws():
            off, training = full.apart_from_dense(training=False), False
        if off > tolerance:
            with full.quiet(training):
                proof = full.not_dense(off, tolerance)
    if proof.reason is not None:
        raise NotExactError(
            f"{type(module).__name__} is not exact on visible patches: {proof.reason} "
            "Take stages before that module, or give the function a meaning with convspark.sparse.meaning."
        )
    with in_float64(module, training=True, dropout=True), small.random_state():
        small.run(gather(small.images, PatchGrid(small.some)))
    return proof.largest


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
    reason = (
        f"{truth} gives other {what} (relative deviation {deviation:.2g}, tolerated {tolerance:.0e}). {culprit} "
        "A function there may act by the size of what it is given (coordinates, a pooling over the whole map)."
    )
    return Proof(dense, features, gradients, statistics, False, sensitivity, tolerance, reason)


# ------------------------------------------------------------------------------------------------ running


@dataclass(frozen=True)
class _Outcome:
    features: list[Tensor]  # whole maps, 0 where masked
    gradients: dict[str, Tensor]
    statistics: dict[str, Tensor]


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
    def quiet(self, training: bool) -> Iterator[None]:
        """The network as it is compared: in float64, in one mode, without dropout, random state kept."""
        with in_float64(self.module, training), self.random_state(), _Steady():
            yield

    def random_state(self) -> AbstractContextManager[None]:
        """Left as it was."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    def apart_from_dense(self, training: bool) -> float:
        """How far the features are from the dense network's, with every patch visible."""
        with self.quiet(training):
            dense = self.run(self.images.clone())
            return _features_apart(dense, self.run(gather(self.images, PatchGrid(self.everything))))

    def draws(self) -> bool:
        """Whether the dense network's features in training depend on random numbers, dropout's apart."""
        with self.quiet(training=True):
            one, other = self.run(self.images.clone()), self.run(self.images.clone(), seed=2)
        return any(not torch.equal(a, b) for a, b in zip(one.features, other.features, strict=True))

    def not_dense(self, deviation: float, tolerance: float) -> Proof:
        """The verdict on a network that differs from its dense self with every patch visible."""
        culprit = self.culprit(self.images, gather(self.images, PatchGrid(self.everything)), tolerance)
        truth = f"with every patch visible, at {'x'.join(map(str, self.images.shape[2:]))} pixels, the dense network"
        return _failed(truth, deviation, culprit, tolerance, dense=deviation)

    def run(self, x: Tensor, gradients: bool = False, seed: int = 1) -> _Outcome:
        """Features, gradients of a random weighting of them, and statistics; the module is as before afterwards."""
        before = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        parameters = {n: p for n, p in self.module.named_parameters() if p.is_floating_point()}
        torch.manual_seed(seed)
        try:
            with torch.set_grad_enabled(gradients):
                maps = [_whole(feature) for feature in self.forward(x)]
            slopes: Sequence[Tensor | None] = ()
            if gradients and parameters:
                generator = torch.Generator().manual_seed(2)
                weights = [torch.randn(m.shape, generator=generator, dtype=m.dtype).to(m.device) for m in maps]
                total = torch.stack([(m * w).sum() for m, w in zip(maps, weights, strict=True)]).sum()
                slopes = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
            found = {n: slope for n, slope in zip(parameters, slopes, strict=False) if slope is not None}
            after = {n: b.clone() for n, b in self.module.named_buffers() if b.is_floating_point()}
        finally:
            with torch.no_grad():
                for name, buffer in self.module.named_buffers():
                    if name in before:
                        buffer.copy_(before[name])
        return _Outcome([m.detach() for m in maps], found, after)

    def leaks(self, clean: _Outcome) -> bool:
        """Whether a bit of the output changes when masked pixels do."""
        mask = self.some[:, None]
        for axis, side in enumerate(self.images.shape[2:], start=2):
            mask = mask.repeat_interleave(side // mask.shape[axis], axis)
        spoilt = torch.where(mask, self.images, math.nan)
        dirty = self.run(gather(spoilt, PatchGrid(self.some)))
        return not all(torch.equal(a, b) for a, b in zip(clean.features, dirty.features, strict=True))

    def culprit(self, whole: Tensor, visible: Tensor, tolerance: float) -> str:
        """Sentence naming the first module whose output deviates."""
        with torch.no_grad():
            expected, found = self._outputs(whole), self._outputs(visible)
        for name, kind, output in found:
            if type(output) is Tensor and output.shape[0] == visible.shape[0] > len(self.images):
                return (
                    f"The module {name} ({kind}) returned a plain tensor for visible patches: TorchScript, torch.vmap, "
                    "torch.func, torch.autograd.Variable and as_subclass leave them; write that module without."
                )
        for (name, kind, e), (_, _, f) in zip(expected, found, strict=False):
            if e.shape[1:2] == f.shape[1:2] and not _deviation(e, f) <= tolerance:
                return f"The first module to differ is {name} ({kind})."
        return "No single module could be made out."

    def _outputs(self, x: Tensor) -> list[tuple[str, str, Tensor]]:
        """Path, class and output of each module, in the order in which they finish."""
        seen: list[tuple[str, str, Tensor]] = []

        def remember(name: str) -> Callable[..., None]:
            def hook(owner: nn.Module, _args: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.dim() >= 3:
                    seen.append((name or "the network itself", type(owner).__name__, output))

            return hook

        handles = [owner.register_forward_hook(remember(name)) for name, owner in self.module.named_modules()]
        try:
            self.run(x)
        finally:
            for handle in handles:
                handle.remove()
        return seen


def _whole(feature: Tensor) -> Tensor:
    if isinstance(feature, VisiblePatches):
        return scatter(feature)
    return visible_part(feature) if isinstance(feature, MaskedMap) else feature


_DROPOUTS = {
    torch.dropout,
    *(getattr(nn.functional, f"dropout{dims}") for dims in ("", "1d", "2d", "3d")),
    nn.functional.alpha_dropout,
    nn.functional.feature_alpha_dropout,
}


class _Steady(TorchFunctionMode):
    """Keeps float64 where a network goes to float32 for its statistics; leaves out dropout and stochastic depth."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is Tensor.float:
            return args[0].double()
        if func in _DROPOUTS and isinstance(args[0], Tensor):
            return args[0]
        if func in (torch.rand, Tensor.bernoulli_) and drops_images():
            return args[0].fill_(1) if func is Tensor.bernoulli_ else torch.full_like(func(*args, **kwargs), 0.5)
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*(torch.float64 if a is torch.float32 else a for a in args), **kwargs)


@contextmanager
def in_float64(module: nn.Module, training: bool, dropout: bool = False) -> Iterator[None]:
    """The module's floating-point tensors in float64, nudged, in one mode, without dropout; put back afterwards."""
    parameters = [p for p in module.parameters() if p.is_floating_point()]
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    originals = [(t, t.data, t.requires_grad) for t in (*parameters, *buffers)]
    modes = [(owner, owner.training) for owner in module.modules()]
    generator = torch.Generator().manual_seed(3)
    try:
        for parameter in parameters:
            nudge = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * _NUDGE
            parameter.data = parameter.data.double() + nudge.to(parameter.device)
            parameter.requires_grad_(True)
        for buffer in buffers:
            buffer.data = buffer.data.double()
        module.train(training)
        for owner in [] if dropout else module.modules():
            if isinstance(owner, nn.modules.dropout._DropoutNd) or type(owner).__name__ == "StochasticDepth":
                owner.eval()
        yield
    finally:
        for tensor, data, wanted_gradient in originals:
            tensor.data = data
            tensor.requires_grad_(wanted_gradient)
        for owner, mode in modes:
            owner.training = mode


# ------------------------------------------------------------------------------------------------ comparing


def _features_apart(expected: _Outcome, found: _Outcome) -> float:
    pairs = zip(expected.features, found.features, strict=True)
    return max(_relative(e, f) for e, f in pairs)


def _apart(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Largest relative difference between named tensors; one that is missing counts as 0.

    A bias in front of a norm has the gradient 0 up to rounding: it is held against a millionth of the largest.
    """
    floor = 1e-6 * max((float(e.abs().max()) for e in expected.values() if e.numel()), default=1.0)
    worst = 0.0
    for name in expected.keys() | found.keys():
        e, f = expected.get(name), found.get(name)
        e, f = (torch.zeros_like(f) if e is None and f is not None else e), (torch.zeros_like(e) if f is None else f)  # type: ignore[arg-type]
        assert e is not None
        worst = max(worst, _relative(e, f, floor))
    return worst


def _relative(expected: Tensor, found: Tensor, floor: float = 0.0) -> float:
    """Largest difference relative to the largest expected value; infinite where they cannot be compared."""
    if expected.shape != found.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    scale = max(float(expected.abs().max()), floor)
    difference = float((expected - found).abs().max())
    if not math.isfinite(scale) or math.isnan(difference):
        return math.inf
    return difference / scale if scale > 0 else difference


def _deviation(expected: Tensor, found: Tensor) -> float:
    """`_relative` of a module's two outputs; 0 where their forms say nothing."""
    if not isinstance(found, VisiblePatches):
        values = getattr(found, "values", found)
        return _relative(expected, values) if isinstance(values, Tensor) and values.shape == expected.shape else 0.0
    try:
        found_map = scatter(found)
    except Exception:  # a form that cannot be put back into an image says nothing
        return 0.0
    return _relative(_whole(expected), found_map)
