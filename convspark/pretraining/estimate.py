"""What a run would be and cost, without running it: resolved settings, parameters, memory, time."""

import logging
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from ..model.networks import check_name
from ..names import many
from ..runs.device import describe_device, quick_products
from ..runs.graphs import Graphed
from ..runs.launch import asked_for
from ..runs.logs import run_log
from ..runs.memory import is_out_of_memory, out_of_memory
from ..runs.numbers import count, format_seconds
from ..runs.optimizer import set_rates
from ..runs.processes import Processes
from ..runs.run import Run
from ..runs.settings import as_dict, as_yaml
from ..seeds import Use
from .module import counted_grid
from .plan import Plan, make_plan
from .settings import AUTO, PretrainSettings

logger = logging.getLogger(__name__)

_TIMED_STEPS = 4
_ENOUGH_SECONDS = 20.0
# Of a GPU's memory: the rest goes to libraries and to what lies between allocations.
_USABLE = 0.9
# A forward pass in evaluation against a training step.
_HELD_OUT_SHARE = 1 / 3


@dataclass(frozen=True)
class Estimate:
    """What a run would be; `str(estimate)` is the report.

    Attributes:
        settings: resolved.
        description: the effective numbers, in words.
        device: in words.
        parameters: of the whole model; backbone_parameters of the backbone alone.
        memory_bytes: most memory in use while training, measured: on a GPU what was allocated there, else the process;
            of several processes, of one.
        device_bytes: memory of the GPU; None elsewhere.
        images_that_fit: about how many images a pass its memory would hold; None elsewhere.
        step_seconds: of one optimiser step, measured with real images; images_per_second alike.
        steps: of the whole run.
        total_seconds: steps, held-out images and looks at the features together.
    """

    settings: PretrainSettings
    description: list[str]
    device: str
    parameters: int
    backbone_parameters: int
    memory_bytes: int
    device_bytes: int | None
    images_that_fit: int | None
    step_seconds: float
    images_per_second: float
    steps: int
    total_seconds: float

    def as_dict(self) -> dict[str, Any]:
        measured = {name: value for name, value in vars(self).items() if name != "settings"}
        return {"config": as_dict(self.settings), **measured}

    def __str__(self) -> str:
        lines = [
            as_yaml(self.settings, "The settings of this run, resolved").rstrip(),
            "",
            *self.description,
            f"memory    {self._memory()}",
            f"speed     {self.step_seconds:.3g} s a step, {self.images_per_second:.1f} images/s",
            f"total     {format_seconds(self.total_seconds)} for {many(self.steps, 'step')}, as measured just now",
        ]
        return "\n".join(lines)

    def _memory(self) -> str:
        used = f"{self.memory_bytes / 2**30:.1f}"
        if self.device_bytes is None:
            return f"{used} GiB on {self.device}"
        room = f"; about {self.images_that_fit} images a pass would fit"
        return f"{used} of {self.device_bytes / 2**30:.1f} GiB on {self.device}{room}"


def estimate(images: Any = None, **settings: Any) -> Estimate:
    """Prepare a run as `pretrain` would, take a few steps, and throw them away; nothing is written.

    Takes the arguments of `pretrain`, and raises what that would raise before it starts to train. Of several processes
    it takes the part of one.
    """
    unresolved = PretrainSettings(images, **settings)
    here = asked_for(unresolved.devices, unresolved.nodes)
    with run_log(logging.WARNING), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        plan = make_plan(Run(unresolved, here))
        measured = _measured(plan, here)
    held_out, numbers = plan.images.held_out, plan.numbers
    held_out_count = 0 if held_out is None else len(held_out)
    picture_seconds = _HELD_OUT_SHARE * measured.step_seconds / numbers.batch_size  # of one that is measured
    looked_at = (held_out_count + len(plan.probe_pictures or ())) / plan.watch_epochs if plan.watch_epochs else 0
    return Estimate(
        settings=plan.settings,
        description=plan.describe(),
        device=describe_device(plan.device) + (f", for each of {here.count} processes" if here.are_several else ""),
        parameters=sum(p.numel() for p in plan.model.parameters()),
        backbone_parameters=sum(p.numel() for p in plan.model.backbone.parameters()),
        memory_bytes=measured.peak,
        device_bytes=measured.total,
        images_that_fit=measured.images_that_fit(numbers.images_a_pass // here.count),
        step_seconds=measured.step_seconds,
        steps=numbers.steps,
        images_per_second=numbers.batch_size / measured.step_seconds,
        total_seconds=numbers.steps * measured.step_seconds
        + numbers.epochs * picture_seconds * (held_out_count + looked_at),
    )


def resolved_config(images: Any = None, **settings: Any) -> str:
    """The settings of a run as YAML, all resolved; without images, all that does not depend on them."""
    unresolved = PretrainSettings(images, **settings)
    with run_log(logging.WARNING), torch.random.fork_rng(devices=[]):
        if unresolved.images is not None or unresolved.resume is not None:
            plan = make_plan(Run(unresolved, asked_for(unresolved.devices, unresolved.nodes)))
            return as_yaml(plan.settings, "\n".join(plan.choices.lines()))
        if unresolved.model != AUTO:
            check_name(str(unresolved.model))  # no images: a template to fill in, for which no network is built
    if unresolved.epochs is None:
        return as_yaml(unresolved)
    steps = unresolved.batch_size, unresolved.epochs, unresolved.warmup_epochs, unresolved.accumulate
    numbers = count(1 << 30, *steps, device_batch_size=unresolved.device_batch_size)
    warmup_epochs = numbers.warmup_steps / numbers.steps_per_epoch
    return as_yaml(replace(unresolved, warmup_epochs=warmup_epochs))


class Measured(NamedTuple):
    """What a few steps cost; bytes."""

    step_seconds: float
    peak: int
    """Most that was in use."""
    between_steps: int
    """In use between steps: the model, its gradients and the optimiser's state."""
    total: int | None
    """Of the GPU."""

    def images_that_fit(self, count: int) -> int | None:
        """How many images a pass the GPU would hold, if `count` of them took what was measured."""
        if self.total is None:
            return None
        bytes_an_image = max(1, self.peak - self.between_steps) / count
        return max(0, int((_USABLE * self.total - self.between_steps) / bytes_an_image))


def _measured(plan: Plan, here: Processes) -> Measured:
    """By taking steps as training does in this process.

    Raises:
        ConvsparkError: out of memory; says what fits.
    """
    try:
        with quick_products(plan.device), _threads_of_one(here):
            return _measure(plan, here)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise  # else let go of the exception, which holds what the step had computed
    raise out_of_memory(plan.module(), plan.train_loader(here), plan.device, plan.precision)


@contextmanager
def _threads_of_one(here: Processes) -> Iterator[None]:
    """Within it, this process has the share of the cores that `launch` leaves to each of several."""
    before = torch.get_num_threads()
    if here.are_several and "OMP_NUM_THREADS" not in os.environ:  # else each has as many
        torch.set_num_threads(max(1, before // here.local_count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(plan: Plan, here: Processes) -> Measured:
    device = plan.device
    module, loader = plan.module(), plan.train_loader(here)
    model = module.to(device).train().model
    optimizer = module.configure_optimizers()
    set_rates(optimizer, 0.0, 0.0)  # the steps cost what they cost, and change nothing that could overflow
    batches = iter(loader)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    autocast = torch.autocast(device.type, torch.bfloat16) if plan.precision == "bf16" else nullcontext()
    seconds: list[float] = []
    untimed = 3 if isinstance(module.step_loss, Graphed) else 1  # allocates, waits for workers, compiles or records
    for step in range(untimed + min(_TIMED_STEPS, len(loader) // plan.numbers.accumulate)):
        started = time.perf_counter()
        for part in range(plan.numbers.accumulate):
            try:
                batch = next(batches)
            except StopIteration:  # fewer steps an epoch than are timed
                batches = iter(loader)
                batch = next(batches)
            images = module.images_of(batch.to(device))
            with autocast:
                loss = module.step_loss(images, counted_grid(model, images, 0, Use.MASK, step, part))
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        if len(seconds) > untimed and sum(seconds) > _ENOUGH_SECONDS:
            break
    timed = seconds[untimed:] or seconds
    seconds_a_step = sum(timed) / len(timed)
    if device.type != "cuda":
        return Measured(seconds_a_step, _peak_memory_of_process(), 0, None)
    between_steps, total = torch.cuda.memory_allocated(device), torch.cuda.mem_get_info(device)[1]
    return Measured(seconds_a_step, torch.cuda.max_memory_allocated(device), between_steps, total)


def _peak_memory_of_process() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
