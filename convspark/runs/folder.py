"""The folder of a run: where each thing lies, and how it gets there without ever being half written."""

import contextlib
import itertools
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import ConvsparkError, UsageError
from ..files import check_local, is_left_over, is_taken, write_text
from ..names import many
from .settings import Settings, kind_of

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "torchvision", "timm", "lightning", "numpy", "pillow", "safetensors")


class RunFolder:
    """The layout of a run: ::

    config.yaml          every setting, resolved; usable with --config
    environment.json     versions, git commit, device, command line
    metrics.csv          one row an epoch
    watch.csv            what is measured of the features, every few epochs of a pre-training
    warnings.csv         what is wrong with it, and what to do (only if anything is)
    log.txt              what was printed
    ended.json           why it ended early (only if it did): Ctrl-C, a loss that diverged, an error
    statistics.json      of the images' channels, where they were measured
    train_files.txt      the images trained on; held_out_files.txt those that were not
    train_shards.txt     in its place, the files that they are in, of which each epoch has some (--shards-per-epoch)
    shards.json          of images in tar files and the like: those files, and what they were like
    file_sizes.txt       their sizes in bytes, in that order
    bad_files.txt        what could not be read, and why (only if there was any)
    checkpoints/         last.ckpt, the one before it (previous.ckpt), and those asked to be kept
    pictures/            reconstructions of the same images over time, loss curves
    export/              the backbone, for timm
    report.html          all of it on a page
    """

    REPORT = "report.html"

    def __init__(self, path: str | os.PathLike[str], settings: type[Settings] = Settings) -> None:
        self.path = Path(path)
        self.config = self.path / settings.file
        self._command = getattr(settings, "kind", "COMMAND")

    @classmethod
    def create(cls, path: str | os.PathLike[str], settings: type[Settings] = Settings) -> "RunFolder":
        """A new run folder; an existing one is never written into.

        Raises:
            UsageError: `path` exists and is not an empty folder, or cannot be made.
        """
        folder = cls(path, settings)
        folder.check_new()
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"out is {str(path)!r}: it cannot be made ({error.strerror}); choose another --out"
            ) from None
        return folder

    @classmethod
    def create_named(cls, name: str, settings: type[Settings] = Settings) -> "RunFolder":
        """A new run folder at `default_path(name)`, with a number added where a run was begun in the same second.

        Raises:
            UsageError: it cannot be made.
        """
        first = path = default_path(name)
        for number in itertools.count(2):
            try:
                path.mkdir(parents=True)  # of two processes, one makes it
                break
            except FileExistsError:
                path = first.with_name(f"{first.name}-{number}")
            except OSError as error:
                raise UsageError(f"the run folder {path} cannot be made ({error.strerror}); choose an --out") from None
        return cls(path, settings)

    @classmethod
    def open(cls, path: str | os.PathLike[str], settings: type[Settings] = Settings) -> "RunFolder":
        """An existing run folder, of the command whose settings are named, or of any.

        Raises:
            UsageError: there is no run at `path`, or it is one of another command.
        """
        folder = cls(path, settings)
        if not folder.path.is_dir():
            raise UsageError(f"there is no run folder {str(path)!r}{_nearby_runs(folder.path)}")
        for file in ("config.yaml", "compare.yaml") if settings is not Settings else ():
            if not folder.config.is_file():  # it may be a run of another command
                folder.config = folder.path / file
        if not folder.config.is_file():
            raise UsageError(f"{str(path)!r} is not a run folder: it has no {settings.file}{_nearby_runs(folder.path)}")
        if settings is not Settings and folder.kind != settings.kind:
            raise UsageError(
                f"{str(path)!r} is a run of `convspark {folder.kind}`, not of {settings.kind}; "
                f"`{folder.going_on}` goes on with it"
            )
        return folder

    def check_new(self) -> None:
        """Raise UsageError if a run (or anything else) is there already, or it is a URL."""
        check_local(self.path)
        try:
            taken = is_taken(self.path)
            if self.path.is_dir() and all(map(is_left_over, self.path.iterdir())):  # of a start that was killed
                return
        except OSError as error:
            raise UsageError(f"out is {str(self.path)!r}: {error.strerror}; choose another --out") from None
        if taken:
            hint = f"go on with `{self.going_on}`, or " if self.config.is_file() else ""
            raise UsageError(f"out is {str(self.path)!r}, {taken}: {hint}choose another --out")

    def check_there(self) -> None:
        """Raise ConvsparkError if the folder was moved or removed, or its disk is gone, while it was written to."""
        if not self.config.is_file():
            raise ConvsparkError(
                f"the run folder {self.path} is gone, or its disk is: nothing more can be written. Put it back, then: "
                f"{self.going_on}"
            )

    @property
    def going_on(self) -> str:
        """The command that goes on with the run, as a shell takes it."""
        return going_on(self.kind if self.config.is_file() else self._command, self.path)

    @property
    def kind(self) -> str:
        """The command that made the run."""
        return kind_of(self.config)

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def masks(self) -> Path:
        """A run's own copy of the file that its masks are drawn from."""
        return self.path / "masks.npy"

    @property
    def watch(self) -> Path:
        return self.path / "watch.csv"

    @property
    def warnings(self) -> Path:
        return self.path / "warnings.csv"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def ended(self) -> Path:
        """`{"state": "stopped", "diverged" or "failed", "why": a sentence}` of a run that ended before its end."""
        return self.path / "ended.json"

    @property
    def statistics(self) -> Path:
        return self.path / "statistics.json"

    @property
    def train_files(self) -> Path:
        return self.path / "train_files.txt"

    @property
    def train_shards(self) -> Path:
        return self.path / "train_shards.txt"

    @property
    def held_out_files(self) -> Path:
        return self.path / "held_out_files.txt"

    @property
    def shards(self) -> Path:
        return self.path / "shards.json"

    @property
    def file_sizes(self) -> Path:
        return self.path / "file_sizes.txt"

    @property
    def bad_files(self) -> Path:
        return self.path / "bad_files.txt"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """What `last_checkpoint` was before: what a run goes on from where that is damaged."""
        return self.checkpoints / "previous.ckpt"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def report(self) -> Path:
        return self.path / self.REPORT


def going_on(command: str, folder: str | os.PathLike[str]) -> str:
    """What to type in a shell to go on with a run."""
    return f"convspark {command} --resume {shlex.quote(os.fspath(folder))}"


def default_path(name: str, parent: str | os.PathLike[str] = "runs") -> Path:
    """`runs/NAME-DATE-TIME`, the place of a run for which none was asked."""
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    return Path(parent) / f"{safe}-{datetime.now():%Y%m%d-%H%M%S}"


def describe_environment(device: str) -> dict[str, Any]:
    """Versions, platform, git commit of the working folder, device and command line of this process."""
    versions = {"convspark": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "versions": versions,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": available_cores(),
        "device": device,
        "git": _git_commit(),
    }


def write_environment(folder: RunFolder, device: str) -> None:
    """Write `environment.json`; a resumed run appends to its `resumed` list instead of replacing what was there."""
    now = describe_environment(device)
    if folder.environment.is_file():
        try:
            first = json.loads(folder.environment.read_text(encoding="utf-8"))
            first.setdefault("resumed", []).append(now)
            now = first
        except (ValueError, AttributeError, RecursionError):  # torn, or of something else; nothing is read from it
            logger.warning("%s could not be read and is written anew", folder.environment)
    write_text(folder.environment, json.dumps(now, indent=2) + "\n")


def command_line() -> str:
    """How this process was started, as a shell would have it; for model cards."""
    program, *arguments = sys.argv
    name = Path(program).name
    return shlex.join([*(["convspark"] if name in ("convspark", "__main__.py") else ["python", name]), *arguments])


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_processes(**counts: int | None) -> None:
    """Raise UsageError for less than 0 processes or threads, or for so many that they would stop the machine."""
    cores = available_cores()
    most = max(128, 4 * cores)
    for name, value in counts.items():
        if value is not None and not 0 <= value <= most:
            raise UsageError(f"{name} is {value}: expected 0 to {most}; this machine has {many(cores, 'core')}")


def _git_commit() -> dict[str, Any] | None:
    """Commit of the repository that the working folder belongs to, and whether it was changed since."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _nearby_runs(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return ""
    runs = sorted(p for p in parent.iterdir() if (p / "config.yaml").is_file())
    return f"; runs in {parent}: {', '.join(p.name for p in runs[-5:])}" if runs else ""
