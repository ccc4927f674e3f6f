"""The processes that carry out a run together, as one of them sees them. Imports no torch by itself."""

from __future__ import annotations

import atexit
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConvsparkError, UsageError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PORT = "29400"
_GRACE = 5.0  # seconds
_PATIENCE = 20.0  # seconds

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SRUN = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NODEID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")


class EndedElsewhereError(ConvsparkError):
    """Another process of the run has ended, and says why itself."""

    exit_code = 75


@dataclass(frozen=True)
class Processes:
    """How many processes carry out a run, and which of them this one is.

    Attributes:
        rank: of this one, from 0; the first one writes.
        count: of all.
        local_rank, local_count: the same on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @classmethod
    def here(cls) -> Processes:
        """As this process was started: by torchrun (or `--devices`), by SLURM's srun, or alone.

        Raises:
            UsageError: what the environment says of it is no number, or contradicts itself.
        """
        return cls._of(os.environ)

    @classmethod
    def _of(cls, environment: Mapping[str, str]) -> Processes:
        names = _TORCHRUN[:3]
        if all(environment.get(name) for name in names):
            rank, count, local = (_number(environment, name, _TORCHRUN) for name in names)
            on_machine = count if not environment.get(_TORCHRUN[3]) else _number(environment, _TORCHRUN[3], _TORCHRUN)
            return cls(rank, count, local, on_machine)._checked(_TORCHRUN)
        if environment.get(_SRUN[0]) and _number(environment, _SRUN[0], _SRUN) > 1:
            count, rank, node, local = (_number(environment, name, _SRUN) for name in _SRUN[:4])
            tasks = _tasks_of_nodes(environment.get(_SRUN[4], ""))
            return cls(rank, count, local, tasks[node] if 0 <= node < len(tasks) else 0)._checked(_SRUN)
        return cls()

    def _checked(self, names: Sequence[str]) -> Processes:
        """Itself; UsageError where the variables that say so contradict each other."""
        if 0 <= self.rank < self.count and 0 <= self.local_rank < self.local_count <= self.count:
            return self
        raise UsageError(
            f"the environment says that this is process {self.rank} of {self.count}, and {self.local_rank} of "
            f"{self.local_count} on this machine, counted from 0, which cannot be. {_unset(names)}"
        )

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        return self.count > 1

    def from_first(self, value: T) -> T:
        """What the first process passes, in all of them."""
        if not self.are_several:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def led(self, prepare: Callable[[], T]) -> T:
        """What the first process has prepared, in all of them; where it could not, the others end too."""
        if not self.are_several:
            return prepare()
        if not self.is_first:
            box: list[T] | None = self.from_first(None)
            if box is None:
                raise EndedElsewhereError("the first process could not begin, and says why")
            return box[0]
        try:
            value = prepare()
        except BaseException:
            self.from_first(None)
            raise
        self.from_first([value])
        return value

    def gathered(self, value: T) -> list[T]:
        """What each process passes, by rank, in all of them."""
        if not self.are_several:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def gathered_by_first(self, value: T) -> list[T]:
        """The same in the first process; nothing in the others."""
        if not self.are_several:
            return [value]
        import torch.distributed as dist

        values: list[Any] | None = [None] * self.count if self.is_first else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, with gradients: those of a loss that each of them computes from it,
        averaged as theirs are, are right."""
        if not self.are_several:
            return values
        import torch.distributed as dist
        from torch.distributed.nn.functional import all_reduce

        if values.requires_grad:
            return all_reduce(values)
        dist.all_reduce(values := values.clone())
        return values


ALONE = Processes()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Within it, the processes of a run are connected.

    Args:
        device: as asked for.

    Raises:
        UsageError: processes and devices that do not go together.
        EndedElsewhereError: another process has ended.
    """
    here = Processes.here()
    if not here.are_several:
        yield here
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():  # a run within a program that has connected them
        yield here
        return
    check_device(device, here)
    on_gpus = device != "cpu" and torch.cuda.is_available()
    _meet()
    if on_gpus:
        torch.cuda.set_device(gpu_of(here))
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    with _waiting_told(here), _signals_end_it():
        try:
            dist.init_process_group(backend, init_method="env://", rank=here.rank, world_size=here.count)
        except (ValueError, dist.DistNetworkError, dist.DistStoreError) as error:
            raise UsageError(
                f"{_meeting_of(here)} failed: {str(error).splitlines()[0]}. MASTER_ADDR and MASTER_PORT say where: the "
                f"first process's machine, and a free port there. {_unset(_started_by())}"
            ) from error
    # Only where all is well: else it might wait for processes that are gone.
    atexit.register(dist.destroy_process_group)
    try:
        yield here
    except BaseException as error:
        atexit.unregister(dist.destroy_process_group)
        if not isinstance(error, RuntimeError) or not _is_of_connection(error):
            raise
        time.sleep(_GRACE)  # so that the other one's message comes first
        raise EndedElsewhereError("another process of the run has ended, so that this one ends too") from None


def are_connected() -> bool:
    """Whether this process has connections to others of its run."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and dist.is_initialized()


def check_count(here: Processes, devices: int | str | None, nodes: int | None) -> None:
    """Raise UsageError unless there are as many processes as the settings say."""
    for name, asked_for, there in (
        ("devices", devices, here.local_count),
        ("nodes", nodes, here.count // here.local_count),
    ):
        if asked_for not in (None, "all", there):
            raise UsageError(
                f"{name} is {asked_for!r}, but {there} {'is' if there == 1 else 'are'} running this: the command "
                "line starts them by itself; a program of yours is to be started by `torchrun --nproc-per-node N`"
            )


def check_device(device: str, here: Processes) -> None:
    """Raise UsageError where processes and devices do not go together."""
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device is {device!r}, but {here.count} processes take one each: expected auto, cpu or cuda")


def gpu_of(here: Processes) -> int:
    """The number of this process's GPU.

    Raises:
        UsageError: there are fewer than processes on this machine.
    """
    import torch

    there = torch.cuda.device_count()
    if there == 1:  # each process was shown its own
        return 0
    if there < here.local_count:
        raise UsageError(f"there are {here.local_count} processes on this machine, and {there} GPUs: start fewer")
    return here.local_rank


class Agreement:
    """Whether any process has one of these wishes; the question is on its way until `result`, which waits for it."""

    def __init__(self, here: Processes, *wishes: bool) -> None:
        self._own, self._work = wishes, None
        if here.are_several:
            import torch
            import torch.distributed as dist

            self._wishes: torch.Tensor = torch.tensor(wishes, dtype=torch.uint8)
            self._work = dist.all_reduce(self._wishes, dist.ReduceOp.MAX, async_op=True)

    def result(self) -> tuple[bool, ...]:
        """Of each wish, whether any process has it."""
        if self._work is None:
            return self._own
        self._work.wait()
        return tuple(map(bool, self._wishes.tolist()))


def _meet() -> None:
    """Set where the processes find each other, if the environment does not say it."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST")
    if "MASTER_ADDR" not in os.environ and nodes and _started_by() == _SRUN:
        os.environ["MASTER_ADDR"] = re.split("[ ,]", re.sub(r"\[(\w+)[^]]*\]", r"\1", nodes))[0]  # of node[07-09,12]
        job = re.sub(r"\D", "", os.environ.get("SLURM_JOB_ID", ""))[-4:]
        os.environ.setdefault("MASTER_PORT", str(15000 + int(job or 0)))  # so that two jobs on a node have two
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", _PORT)


def _meeting_of(here: Processes) -> str:
    at = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return f"the meeting of process {here.rank} with {here.count - 1} more at {at}"


def _started_by() -> tuple[str, ...]:
    """The names of the variables that say that there are several processes."""
    return _TORCHRUN if all(os.environ.get(name) for name in _TORCHRUN[:3]) else _SRUN


def _unset(names: Sequence[str]) -> str:
    return f"If this is to be the only process, unset {names[0]}"


@contextmanager
def _waiting_told(here: Processes) -> Iterator[None]:
    """Say after a while that the others are waited for: a variable left over in the environment has no others."""
    words = f"{_meeting_of(here)}: still waiting for them. {_unset(_started_by())}"
    notice = threading.Timer(_PATIENCE, logger.error, [words])
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """Within it, what asks this process to stop ends it at once: PyTorch waits for the others in C++, for half an hour,
    where no handler of Python's is called."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    is_main = threading.current_thread() is threading.main_thread()  # only there may handlers be set
    before = {number: handler for number in numbers if is_main and callable(handler := signal.getsignal(number))}
    try:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _number(environment: Mapping[str, str], name: str, names: Sequence[str]) -> int:
    text = environment.get(name, "")
    if re.fullmatch(r"-?[0-9]{1,9}", text):
        return int(text)
    problem = f"has {name} = {text!r}: expected a whole number" if text else f"lacks {name}, beside {names[0]}"
    raise UsageError(f"the environment {problem}. {_unset(names)}")


def _tasks_of_nodes(text: str) -> list[int]:
    """SLURM's `4(x2),3` as [4, 4, 3]."""
    tasks: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        tasks += [int(count)] * int(times or 1)
    return tasks


def _is_of_connection(error: BaseException) -> bool:
    """Whether it says that another process is gone, in the words of gloo, NCCL or the store of addresses."""
    import torch.distributed as dist

    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
    phrases = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo")
    return isinstance(error, kinds) or any(words in str(error) for words in phrases)
