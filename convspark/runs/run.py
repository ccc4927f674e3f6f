"""A run: one execution of a command that trains. Imports no torch by itself."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ..errors import ConvsparkError, DivergedError, UsageError
from ..files import DISK_ERRORS, Taken, held, sweep, write_text
from ..trust import check_code
from .checkpoints import whole_checkpoint
from .folder import RunFolder, write_environment
from .logs import RunLog, run_log
from .processes import ALONE, EndedElsewhereError, Processes, check_count, joined
from .settings import Settings, as_dict, as_yaml, read_settings, resumed
from .slurm import was_started_again

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=Settings)
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")

_PATIENCE = 15.0  # seconds: the loading processes of a run that was killed hold its folder until they notice


class Run(Generic[S]):
    """One execution of a command: its folder, its settings, and whether it goes on.

    Making one reads and checks, and writes nothing. Where SLURM has started a job again, the run in `out` goes on.

    Attributes:
        settings: those passed; of a run that goes on, its own, with those passed that may differ.
        goes_on: whether it was begun before.
        started: when, as `time.monotonic` has it.
        here: the processes that carry it out. All but the first go on with what that one has begun.
        moved: of a run that goes on, the names of the settings that say where its data are, if that is another
            place now.

    Raises:
        UsageError: no such run to go on with, settings that differ from its own, a config that cannot be read, or an
            `out` that is there already.
    """

    def __init__(self, settings: S, here: Processes = ALONE) -> None:
        self.started = time.monotonic()
        self.here = here
        out = settings.out
        again = out is not None and was_started_again() and RunFolder(out, type(settings)).config.is_file()
        if again and settings.resume is None:
            settings = replace(settings, out=None, resume=out)
        self.goes_on = settings.resume is not None
        self.settings = settings
        self.moved: frozenset[str] = frozenset()
        self._folder: RunFolder | None = None
        self._locks = ExitStack()
        if settings.resume is not None:
            self._folder = RunFolder.open(settings.resume, type(settings))
            own = read_settings(type(settings), self._folder.config)
            self.settings = resumed(own, settings, self._folder.path, compare=here.is_first and not again)
            places = {name: getattr(self.settings, name) for name in settings.may_move}
            self.moved = frozenset(
                name for name, place in places.items() if isinstance(place, str) and place != getattr(own, name)
            )
            self._own = replace(own, **{name: places[name] for name in self.moved})
            for key, name in as_dict(own).items():
                typed = key == "weights" and not str(name).startswith("random:")  # FILE:PREFIX is no code
                if key in settings.code and name != getattr(settings, key) and not typed:
                    check_code(name, self._folder.config, None if key == "weights" else f"--{key}")
        elif settings.out is not None:
            RunFolder(settings.out, type(settings)).check_new()

    @property
    def folder(self) -> RunFolder:
        """There from the beginning where the run goes on, else from `begun` on."""
        assert self._folder is not None, "the run has not begun"
        return self._folder

    @cached_property
    def last_checkpoint(self) -> Path | None:
        """What training goes on from, the newest that is whole; None where it starts anew."""
        return whole_checkpoint(self.folder) if self.goes_on else None

    @property
    def seconds(self) -> float:
        """Since it was started, rounded."""
        return round(time.monotonic() - self.started, 1)

    @contextmanager
    def begun(self, settings: S, name: str, log: RunLog) -> Iterator[RunFolder]:
        """Within it, the run has its folder, for itself alone; that of a new run is created, with its settings.

        Args:
            settings: resolved, to be kept.
            name: of the folder, where none was asked for.

        Raises:
            UsageError: another process has it.
            KeyboardInterrupt: stopped; the message says how to go on.
        """
        self.settings = settings
        if self._folder is None:
            out = self.settings.out
            kind = type(settings)
            self._folder = RunFolder.create_named(name, kind) if out is None else RunFolder.create(out, kind)
            try:
                self._write_config(settings, new=True)
            except FileExistsError:  # another process has begun it since this one looked
                self._folder.check_new()
                raise
        try:
            with self._locks:
                self._locks.enter_context(held(self._folder.config, _PATIENCE))
                sweep(self._folder.path)
                log.write_to(self._folder.log)
                with _end_kept(self._folder):
                    yield self._folder
        except KeyboardInterrupt as stopped:
            if stopped.args:
                raise
            raise KeyboardInterrupt(f"Stopped. To go on:\n  {self._folder.going_on}") from None
        except OSError as error:
            if error.errno not in DISK_ERRORS or not _is_below(error.filename, self._folder.path):
                raise
            self._folder.check_there()
            raise ConvsparkError(
                f"{error.strerror}: {error.filename}. What was written before stays as it was; mend it, then: "
                f"{self._folder.going_on}"
            ) from error
        except Taken:
            raise UsageError(
                f"{self._folder.path} is a run that another process is carrying out: wait for it, or end that process"
            ) from None

    def keep_places(self) -> None:
        """Keep where the data are now, for the next time; called when the run's lists say the same."""
        if self.moved:
            self._write_config(self._own)
            # The file was replaced, so its lock is taken anew; a process that only tests it may have it for a moment.
            self._locks.enter_context(held(self.folder.config, _PATIENCE))

    def _write_config(self, settings: S, new: bool = False) -> None:
        again = f"Again, elsewhere: convspark {settings.kind} --config {settings.file}"
        write_text(self.folder.config, as_yaml(settings, f"The settings of this run, resolved. {again}"), new=new)

    def keep(self, result: Any, file: str = "results.json") -> None:
        """Write a result, a dataclass, into the folder."""
        write_text(self.folder.path / file, json.dumps(asdict(result), indent=2) + "\n")


@contextmanager
def _end_kept(folder: RunFolder) -> Iterator[None]:
    """Leave in a run's folder why it ended early, for those who look at it later. What is killed leaves nothing."""
    folder.ended.unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        state, why = "failed", f"{type(error).__name__}: {error}"
        if isinstance(error, KeyboardInterrupt):
            state, why = "stopped", "by Ctrl-C or a signal"
        elif isinstance(error, ConvsparkError):
            state, why = "diverged" if isinstance(error, DivergedError) else "failed", str(error)
        with suppress(OSError):  # the disk may be what failed, or the folder be gone
            os.stat(folder.config)
            write_text(folder.ended, json.dumps({"state": state, "why": why}, indent=2) + "\n")
        raise


def _is_below(file: Any, folder: Path) -> bool:
    return isinstance(file, str | bytes | os.PathLike) and Path(os.fsdecode(file)).is_relative_to(folder)


class Job(Protocol[S, R_co]):
    """What a command that trains does, resolved and ready to start."""

    settings: S
    device: "torch.device"

    @property
    def name(self) -> str:
        """Of the run folder, where none was asked for."""
        ...

    def describe(self) -> list[str]:
        """The effective numbers, for the log."""
        ...

    def begin(self, run: Run[S]) -> None:
        """Write into the run's folder what a resumed run reads; one that was killed early may have to do it again."""
        ...

    def train(self, run: Run[S]) -> None:
        """Train to the end, in all processes."""
        ...

    def finish(self, run: Run[S]) -> R_co:
        """Measure, and write the results into the run's folder, in the first process alone."""
        ...


def carry_out(settings: S, prepare: Callable[[Run[S]], Job[S, R]]) -> R:
    """Carry out a command, or go on with it, in a run folder.

    Args:
        settings: of the command.
        prepare: makes the job of a run; whatever is wrong shows here, before anything is written.
    """
    here = Processes.here()
    check_count(here, getattr(settings, "devices", None), getattr(settings, "nodes", None))
    with run_log(logging.INFO if here.is_first else logging.ERROR) as log, joined(settings.device):
        import torch

        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            return _lead(settings, prepare, here, log) if here.is_first else _follow(settings, prepare, here)


def _lead(settings: S, prepare: Callable[[Run[S]], Job[S, R]], here: Processes, log: RunLog) -> R:
    """The first process's part: it prepares and begins the run, and all that is written is written by it."""
    from .device import describe_device
    from .loading import workers_explained

    try:
        run = Run(settings, here)
        job = prepare(run)
    except BaseException:
        here.from_first(None)  # there is nothing to follow
        raise
    with run.begun(job.settings, job.name, log) as folder:
        write_environment(folder, describe_device(job.device))
        logger.info("run folder %s", folder.path)
        for line in job.describe():
            logger.info("%s", line)
        job.begin(run)
        here.from_first(str(folder.path))
        with workers_explained():
            job.train(run)
            return here.from_first(job.finish(run))


def _follow(settings: S, prepare: Callable[[Run[S]], Job[S, Any]], here: Processes) -> Any:
    """What all others do: they go on with the run that the first one has begun."""
    from .loading import workers_explained

    path: str | None = here.from_first(None)
    if path is None:
        raise EndedElsewhereError("the run could not be begun; its first process says why")
    run = Run(replace(settings, out=None, resume=path), here)
    job = prepare(run)
    with workers_explained():
        job.train(run)
        return here.from_first(None)
