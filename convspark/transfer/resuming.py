"""Settings of a run in and out of its `config.yaml`, for every command here."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from ..errors import UsageError
from ..training.run_folder import RunFolder

_OF_THE_MACHINE = ("resume", "device", "workers", "checkpoint_minutes")


def config_text(command: str, config: Mapping[str, Any]) -> str:
    """The resolved settings as YAML, usable with --config."""
    plain = json.loads(json.dumps(dict(config)))  # tuples become lists
    head = f"# The settings of this run, resolved. Again, elsewhere: convspark {command} --config config.yaml\n"
    return head + yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, allow_unicode=True)


def resumed_arguments(given: Mapping[str, Any], function: Callable[..., Any], folder: RunFolder) -> dict[str, Any]:
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
