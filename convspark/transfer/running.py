"""The frame of `finetune`, `detect` and `segment`: run folder, settings, log, result. Imports no torch by itself."""

from __future__ import annotations

import inspect
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from ..errors import UsageError
from ..training.logs import run_log
from ..training.run_folder import RunFolder, default_path, write_environment, write_text

if TYPE_CHECKING:
    from .task import Task

logger = logging.getLogger(__name__)

R = TypeVar("R")
_OF_THE_MACHINE = ("resume", "device", "workers", "checkpoint_minutes")


def run_task(command: Callable[..., R], given: Mapping[str, Any], make: Callable[[dict[str, Any]], Task[R]]) -> R:
    """Carry out a command, or go on with it, in a run folder of its own; the result is its `results.json` as well.

    Args:
        command: the function that is the command, whose name and defaults count.
        given: its arguments.
        make: the task that they stand for.
    """
    started = time.monotonic()
    name, arguments = command.__name__, dict(given)
    with run_log() as log:
        import torch

        from ..training.device import describe_device

        folder = None
        if arguments["resume"] is not None:
            folder = RunFolder.open(arguments["resume"], name)
            arguments = _resumed(arguments, command, folder)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            task = make(arguments)
            if folder is None:
                out = default_path(f"{name}-{task.origin.model}") if arguments["out"] is None else arguments["out"]
                folder = RunFolder.create(out)
                if task.split is not None:
                    write_text(folder.path / task.split.FILE, task.split.as_text())
                write_text(folder.config, _config_text(name, task.config))
            write_environment(folder, describe_device(task.device))
            log.write_to(folder.log)
            logger.info("run folder %s", folder.path)
            for line in task.describe():
                logger.info("%s", line)
            result = task.train(folder, started)
        write_text(folder.path / "results.json", json.dumps(asdict(result), indent=2) + "\n")  # type: ignore[call-overload]
        return result


def _config_text(command: str, config: Mapping[str, Any]) -> str:
    """The resolved settings as YAML, usable with --config."""
    plain = json.loads(json.dumps(dict(config)))  # tuples become lists
    head = f"# The settings of this run, resolved. Again, elsewhere: convspark {command} --config config.yaml\n"
    return head + yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, allow_unicode=True)


def _resumed(given: Mapping[str, Any], function: Callable[..., Any], folder: RunFolder) -> dict[str, Any]:
    """The run's own settings; those given beside them may only be the machine's.

    Raises:
        UsageError: for others.
    """
    defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    config = {**defaults, **yaml.safe_load(folder.config.read_text(encoding="utf-8"))}
    changed = [n for n, v in given.items() if n not in _OF_THE_MACHINE and v != defaults[n] and v != config[n]]
    if changed:
        flags = ", ".join("--" + name.replace("_", "-") for name in changed)
        raise UsageError(f"{folder.path} goes on with its own settings: leave out {flags}, or start a new run")
    config |= {name: given[name] for name in _OF_THE_MACHINE if given[name] != defaults[name]}
    return {name: config[name] for name in defaults}
