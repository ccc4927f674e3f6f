"""Steps of pre-training on a GPU replayed as a CUDA graph: one launch instead of thousands, the same numbers.

Launching a step's kernels one by one takes the host longer than most GPUs need to run them. What a step launches is
recorded once for each shape of a batch, with the gradients that it makes, and replayed for the batches that follow;
only the images and the places of the visible patches are copied in.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import random
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..model.jointly import in_force
from ..model.stages import replaced
from ..sparse import PatchGrid

logger = logging.getLogger(__name__)

Loss = Callable[[Tensor, PatchGrid], Tensor]
"""Images (B, C, H, W) and their mask to the loss, a single number."""

_SHAPES = 4
"""Shapes of batches that are recorded; each keeps its own memory. Others run as they are."""


class Graphed:
    """A loss that is replayed, with its gradients, wherever that is sure to be the same.

    The first batch of a shape runs as it is: libraries are loaded and plans made. So does the second, and it is
    watched. A model that makes the host wait, draws random numbers on the host, counts its calls, or puts new tensors
    in the place of its own would do something else in a step than in its recording, and is never recorded. From the
    third on, the recording is replayed.

    Args:
        loss: of a batch.
        model: whose parameters want gradients, and whose buffers the loss may change.
        passes: of a batch; what they are divided by comes first on the way back, and rounds what follows.
    """

    def __init__(self, loss: Loss, model: nn.Module, passes: int = 1) -> None:
        self.loss, self.model, self._passes = loss, model, passes
        self._calling = _Calling(loss, model)
        self.why_not: str | None = None
        """Why steps are not recorded."""
        self._calls: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, _Recorded] = {}
        self._draws_by_part = False

    def __call__(self, images: Tensor, grid: PatchGrid) -> Tensor:
        if self.why_not or not self._may_replay(images, grid):
            return self.loss(images, grid)
        key = _shape_of(images, grid), self._part()
        if key in self._recorded and not self._recorded[key].still_holds():
            del self._recorded[key]  # and with it the memory that the next one needs
        recorded = self._recorded.get(key)
        if recorded is not None:
            return _Replayed.apply(recorded, images, grid.cells, *recorded.parameters)
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        if calls == 1:
            loss = self.loss(images, grid)
            self._draws_by_part = self._draws_by_part or any(mode.drew for mode in in_force())
            if self._draws_by_part and self._passes > _SHAPES:
                self._leave(
                    f"all {self._passes} passes of a batch draw numbers of their own, and {_SHAPES} are the most"
                )
            return loss
        if calls == 2:
            with _watched(self.model) as reasons:
                loss = self.loss(images, grid)
            if reasons:
                self._leave(f"it {reasons[0]}")
            return loss
        if len(self._recorded) >= _SHAPES:
            return self.loss(images, grid)
        reason = self._record(key, images, grid)
        if reason:
            self._leave(reason)
            return self.loss(images, grid)
        recorded = self._recorded[key]
        return _Replayed.apply(recorded, images, grid.cells, *recorded.parameters)

    def _record(self, key: Hashable, images: Tensor, grid: PatchGrid) -> str | None:
        """Why it cannot be recorded; by its return, nothing holds what a recording that failed had computed."""
        try:
            self._recorded[key] = _Recorded(self._calling, images, grid, self._passes)
        except Exception as error:  # whatever an operation that cannot be recorded raises
            return (str(error).strip() or type(error).__name__).splitlines()[0]
        finally:
            torch.clear_autocast_cache()  # of weights that were cast in the recording's memory
        return None

    def _may_replay(self, images: Tensor, grid: PatchGrid) -> bool:
        return images.device.type == "cuda" and grid.visible_per_image is not None and self.model.training

    def _part(self) -> Hashable:
        """Which part of a batch the images are, where what is drawn for them follows from it."""
        return tuple(mode.place for mode in in_force()) if self._draws_by_part else None

    @property
    def is_recorded(self) -> bool:
        """Whether steps of some shape are replayed."""
        return bool(self._recorded)

    def _leave(self, reason: str) -> None:
        self.why_not = reason
        self._recorded.clear()  # steps as they are need the memory
        logger.info("steps are not replayed as a CUDA graph, which would be quicker: %s", reason)


@contextlib.contextmanager
def recording(graph: Any, device: torch.device, others: str = "global") -> Iterator[None]:
    """Within it, what a device is asked to do is recorded. After a failure the device is as before.

    `torch.cuda.graph` would leave it on the stream of the recording, unable to draw random numbers, and with the memory
    that the recording took.

    Args:
        graph: a `torch.cuda.CUDAGraph`.
        device: of all tensors; by itself PyTorch records on the device of its first recording.
        others: what other threads may do meanwhile, a `capture_error_mode`.
    """
    stream, pool = _stream(device), torch.cuda.graph_pool_handle()
    try:
        with torch.cuda.stream(stream), torch.cuda.graph(graph, pool, stream, others):
            yield
    except Exception:
        number = stream.device_index
        with contextlib.suppress(RuntimeError):  # of a recording that ended, which keeps nothing
            torch._C._cuda_endAllocateToPool(number, pool)  # pyright: ignore[reportPrivateUsage]
            torch._C._cuda_releasePool(number, pool)  # pyright: ignore[reportPrivateUsage]
        generator: Any = torch.cuda.default_generators[number]
        generator.graphsafe_set_state(generator.clone_state())
        raise


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _shape_of(images: Tensor, grid: PatchGrid) -> Hashable:
    """All but values that a step depends on."""
    kind = images.device.type
    autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return images.shape, images.stride(), images.dtype, images.device, grid.shape, grid.visible_per_image, autocast


class _Calling(nn.Module):
    """A loss as a module's forward pass, so that it can be called with other tensors for the model's parameters."""

    def __init__(self, loss: Loss, model: nn.Module) -> None:
        super().__init__()
        self.loss, self.model = loss, model

    def forward(self, images: Tensor, grid: PatchGrid) -> Tensor:
        return self.loss(images, grid)


class _Recorded:
    """The recording of a step.

    Attributes:
        parameters: that want gradients.
        loss: that of the last replay, and `gradients` those of the parameters; None where there is none.
        slope: that of what is minimised in the loss, to which these gradients belong.
        replays: so far.
    """

    def __init__(self, calling: _Calling, images: Tensor, grid: PatchGrid, passes: int = 1) -> None:
        trained = {name: p for name, p in calling.named_parameters() if p.requires_grad}
        self.parameters = list(trained.values())
        # By owner and name: another tensor may take one's place. Asking all modules each time would take too long.
        owners = [vars(module)[kind] for module in calling.modules() for kind in ("_parameters", "_buffers")]
        self._kept = [(owner, name) for owner in owners for name in owner]
        self._places = self._where()
        self._images, self._cells = images.detach().clone(), grid.cells.clone()
        self.replays = 0
        gc.collect()
        torch.cuda.empty_cache()  # the recording needs the memory that ordinary steps held
        self._graph = torch.cuda.CUDAGraph()
        with recording(self._graph, images.device, "thread_local"):  # other threads may load images meanwhile
            recorded = PatchGrid.from_cells(self._cells, grid.batch_size, grid.shape, grid.visible_per_image)
            # Leaves of the recording's own: the parameters' may be held by other steps, which ran on another stream,
            # and autocast may know them already, cast. Where it casts a parameter once for all its uses, it does so
            # here, too: that decides what their gradients are summed in.
            leaves = {name: p.detach().requires_grad_() for name, p in trained.items()}
            with replaced(calling, {id(p): leaves[name] for name, p in trained.items()}):
                self.loss = calling(self._images, recorded)
                tensors = [*leaves.values(), *self.parameters]
                self.slope = torch.ones_like(self.loss) / passes
                with torch.autocast(images.device.type, enabled=False):  # in which no step goes back
                    gradients = torch.autograd.grad(self.loss, tensors, self.slope, allow_unused=True)
            self.gradients, elsewhere = gradients[: len(leaves)], gradients[len(leaves) :]
            if any(gradient is not None for gradient in elsewhere):  # pyright: ignore[reportUnnecessaryComparison]
                raise RuntimeError("the network keeps a parameter in a list, a dictionary or a function, too")
        self.loss = self.loss.detach()

    def still_holds(self) -> bool:
        """Whether parameters and buffers are where they were."""
        return self._where() == self._places

    def _where(self) -> list[tuple[int, bool]]:
        tensors = (owner.get(name) for owner, name in self._kept)
        return [(0, False) if t is None else (t.data_ptr(), t.requires_grad) for t in tensors]

    def replay(self, images: Tensor, cells: Tensor) -> Tensor:
        """The loss; `gradients` are computed as well."""
        self._images.copy_(images)
        self._cells.copy_(cells)
        self._graph.replay()
        self.replays += 1
        return self.loss.clone()


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recorded: _Recorded, images: Tensor, cells: Tensor, *parameters: Tensor):  # type: ignore[override]
        ctx.recorded = recorded
        loss = recorded.replay(images, cells)
        ctx.replay = recorded.replays
        return loss

    @staticmethod
    def backward(ctx, slope: Tensor):  # type: ignore[override]
        if ctx.replay != ctx.recorded.replays:
            raise RuntimeError("these gradients were overwritten: the next step was replayed before `backward`")
        gradients: Sequence[Tensor | None] = ctx.recorded.gradients
        # A few launches for all; torch has no public name for it.
        factor = slope / ctx.recorded.slope
        scaled = iter(torch._foreach_mul([g for g in gradients if g is not None], factor))  # pyright: ignore
        return None, None, None, *(None if g is None else next(scaled) for g in gradients)


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """What a step does that its recording would not; filled when the context ends."""
    reasons: list[str] = []
    before, counted, states, mode = _host_random(), _counters(model), _states(model), torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield reasons
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    if any("synchronizing CUDA operation" in str(one.message) for one in said):
        reasons.append("makes the host wait for the device")
    for one in (one for one in said if "synchronizing" not in str(one.message)):  # nor that the mode is a prototype
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if _host_random() != before:
        reasons.append("draws random numbers on the host")
    if _counters(model) != counted:
        reasons.append("counts its calls")
    if any(one is not states.get(place) for place, one in _states(model).items()):
        reasons.append("replaces tensors that it keeps from step to step")


def _host_random() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, bytes(keys.data), *rest), bytes(torch.get_rng_state().numpy().data)  # type: ignore[union-attr]


def _counters(model: nn.Module) -> list[Any]:
    """Plain values that modules hold, also in lists and dictionaries, and how often tensors elsewhere were changed."""
    device = next((p.device for p in model.parameters()), None)

    def plain(value: Any, depth: int = 3) -> Any:
        if isinstance(value, (list, tuple)) and depth:
            return [plain(one, depth - 1) for one in value]
        if isinstance(value, dict) and depth:
            return {key: known for key, one in value.items() if (known := plain(one, depth - 1)) is not None}
        if isinstance(value, Tensor):
            return None if value.device == device or value.is_inference() else value._version
        return value if isinstance(value, (bool, int, float, str)) else None

    return [plain(vars(module)) for module in model.modules()]


def _states(model: nn.Module) -> dict[tuple[int, str], Tensor]:
    """Tensors that modules keep, by the module's number and their name: a replay changes them in their place alone.

    Parameters are not among them, nor what is computed anew from these in each step, as a normalised weight is.
    """
    kept = [{**vars(module), **dict(module.named_buffers(recurse=False))} for module in model.modules()]
    tensors = {(n, k): v for n, own in enumerate(kept) for k, v in own.items() if isinstance(v, Tensor)}
    return {place: tensor for place, tensor in tensors.items() if tensor.grad_fn is None}
