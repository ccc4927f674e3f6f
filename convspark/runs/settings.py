"""The settings of a command: a frozen dataclass for each, and the one place that writes and reads them as YAML."""

import argparse
import inspect
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, fields, replace
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, ParamSpec, TypeVar, cast, get_args

import yaml

from ..arguments import checked_arguments
from ..errors import UsageError
from ..names import some

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Settings")
Record = TypeVar("Record")

_SPREAD = ("devices", "nodes")
_NOT_KEPT = ("out", "resume", *_SPREAD)

# A config is a page. Aliases may stand for more than any memory holds, and depth for more than any stack.
_MOST_LETTERS, _MOST_VALUES, _DEEPEST = 1 << 20, 10_000, 50


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every command that trains; each has a subclass, whose fields are its arguments, flags and keys.

    A field's metadata may hold `type`, what it is in a file where Python takes more than a file can hold, and `before`,
    what it was in runs of the versions that did not have it yet.

    Attributes:
        kind: the command's name.
        file: where a run of it keeps its settings.
        may_change: what belongs to the machine, and may differ where a run goes on.
        may_move: where the data are, which may be another place where a run goes on.
        code: settings that may name code, which is then run.
        named: those that a caller of the command has named, which `resumed` compares even where they are the default.
    """

    kind: ClassVar[str]
    file: ClassVar[str] = "config.yaml"
    may_change: ClassVar[tuple[str, ...]] = ("device", "workers")
    may_move: ClassVar[tuple[str, ...]] = ()
    code: ClassVar[tuple[str, ...]] = ("model", "weights")
    named: ClassVar[frozenset[str]] = frozenset()

    out: str | None = None
    resume: str | None = None
    device: str = "auto"
    workers: int | None = None

    @classmethod
    def from_weights(cls, run: str) -> str | None:
        """What to type for a new run from the weights of another, if that is a way to train for longer."""
        return None


@dataclass(frozen=True, kw_only=True)
class SpreadSettings(Settings):
    """Those of a command that several processes may carry out; their number belongs to the machine, like the device."""

    devices: int | str | None = None
    nodes: int | None = None


def command(settings: Callable[P, S]) -> Callable[[Callable[[S], R]], Callable[P, R]]:
    """Decorator: a function of settings becomes one that takes them as its arguments."""

    signature = _signature(settings)

    def decorate(function: Callable[[S], R]) -> Callable[P, R]:
        @checked_arguments
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            made = settings(*args, **kwargs)
            object.__setattr__(made, "named", frozenset(signature.bind(*args, **kwargs).arguments))
            return function(made)

        setattr(call, "__signature__", signature)  # noqa: B010  what help() and the command line show
        return call

    return decorate


def _signature(settings: Any) -> inspect.Signature:
    """That of the constructor, with a command's own arguments before those that it shares."""
    parts = enumerate(settings.__mro__)
    shared = {name: depth for depth, part in parts for name in vars(part).get("__annotations__", ())}
    parameters = inspect.signature(settings).parameters.values()
    return inspect.Signature(sorted(parameters, key=lambda p: (p.kind, p.kind == p.KEYWORD_ONLY and shared[p.name])))


def _names_in_file(settings: type[Settings]) -> list[str]:
    """The names of what a file holds, in order."""
    return [name for name in _signature(settings).parameters if name not in _NOT_KEPT]


def as_dict(settings: Settings) -> dict[str, Any]:
    """Settings as plain values, `kind` first, without `out` and `resume`."""
    return {"kind": settings.kind, **{name: _plain(getattr(settings, name)) for name in _names_in_file(type(settings))}}


def as_yaml(settings: Settings, comment: str = "") -> str:
    """Settings as a YAML file, a line each, under a comment; usable with `--config`."""
    lines = [f"# {line}\n" for line in comment.splitlines()]
    for name, value in as_dict(settings).items():
        short = None if isinstance(value, list | dict) else False  # lists and mappings within their line
        line = yaml.safe_dump({name: value}, default_flow_style=short, allow_unicode=True)
        if yaml.safe_load(line) != {name: value}:  # some letters end a line of YAML
            line = yaml.safe_dump({name: value}, default_flow_style=short)
        lines.append(line)
    return "".join(lines)


def kind_of(file: Path) -> str:
    """The command whose settings a file holds; older files say so in their comment."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        text = opened.read(_MOST_LETTERS)
    said = re.search(r"^kind: *(\w+)|convspark (\w+) --config", text, re.MULTILINE)
    if said is None:
        return "compare" if file.stem == "compare" else "pretrain"
    return said[1] or said[2]


def read_settings(settings: type[S], file: Path) -> S:
    """The settings of a run.

    Raises:
        UsageError: a file that is torn or of something else; its first wrong keys are named.
    """
    content = _content(file)
    content.pop("kind", None)
    known = _names_in_file(settings)
    foreign = [name for name in content if name not in known]
    if foreign:
        raise UsageError(f"{file} is not of `convspark {settings.kind}`, which does not know {some(foreign, repr)}")
    return settings(**_values(settings, known, content, file))


def read_part(record: type[Record], file: Path) -> Record:
    """Some of the settings of a run: those that are fields of `record`, a dataclass.

    Raises:
        UsageError: one of them is missing or no such value.
    """
    known = [field.name for field in fields(cast("Any", record))]
    return record(**_values(record, known, _content(file), file))


def checked(settings: type[Settings], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of some of the settings of a command, by name, of the types that these have.

    Args:
        where: what holds them, for a message.

    Raises:
        UsageError: one of another type.
    """
    types = {field.name: field.metadata.get("type", field.type) for field in fields(settings) if field.name in values}
    return _checked(values, types, where)


def resumed(own: S, passed: S, where: Path, *, compare: bool = True) -> S:
    """The settings of a run that goes on: its own, but for what belongs to the machine or can only be passed in Python.

    Args:
        compare: whether another setting may not differ.

    Raises:
        UsageError: one differs.
    """
    default, own_changes, changed = type(passed)(), dict[str, Any](), list[str]()
    for field in fields(passed):
        value, before = getattr(passed, field.name), getattr(own, field.name)
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        is_place = isinstance(before, str)
        if "type" in field.metadata and not isinstance(value, str | int | float | None):
            if before is None or field.name not in passed.may_move:
                own_changes[field.name] = value
            elif compare and not (isinstance(value, list | tuple) and _plain(value) == before):
                changed.append(field.name)  # the run has files of its own, and would not look at these
        elif field.name == "resume" or (value == getattr(default, field.name) and field.name not in passed.named):
            continue
        elif (value is None or value == "auto" == field.default) and field.name not in passed.may_change:
            continue  # left to be chosen, which contradicts no choice
        elif field.name in (*passed.may_change, *_SPREAD) or (
            field.name in passed.may_move and isinstance(value, str) and is_place
        ):
            own_changes[field.name] = value
        elif compare and _plain(value) != _plain(before):
            changed.append(field.name)
    if changed:
        start, longer = "start a new run", passed.from_weights(shlex.quote(str(where)))
        if "epochs" in changed and longer is not None:
            start += f" from its weights, as its learning rate has come down over the epochs that it has: {longer}"
        raise UsageError(
            f"{where} goes on with its own settings: leave out {_flags(changed)} (only {_flags(own.may_change)} may "
            f"differ{', and the place of data that were moved' if own.may_move else ''}), or {start}"
        )
    return replace(own, **own_changes)


def read_yaml(file: Path) -> Any:
    """What a YAML file holds, if it is no larger than configs are.

    Raises:
        yaml.YAMLError, UnicodeDecodeError, OSError: it is larger or nested deeper, is no YAML or cannot be read.
    """
    with file.open(encoding="utf-8") as opened:
        text = opened.read(_MOST_LETTERS + 1)
    if len(text) > _MOST_LETTERS:
        raise yaml.YAMLError(f"it is larger than {_MOST_LETTERS >> 20} MB: expected a config")
    loader = _ShallowLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        values = _values_within(node, {})
        if values > _MOST_VALUES:
            raise yaml.YAMLError(f"it stands for {values:,} values, aliases written out: expected a config")
        return loader.construct_document(node)
    except ValueError as error:  # dates and numbers that are none
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


class _ShallowLoader(yaml.SafeLoader):
    """Of no more levels than configs have: PyYAML takes seconds to run out of stack."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _values_within(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values a node stands for, with aliases written out.

    Args:
        known: of nodes seen before; 0 of those that are not counted to their end yet.
    """
    if known.get(node) == 0:
        raise yaml.YAMLError("an alias stands within what it stands for")
    if node not in known:
        known[node] = 0
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.CollectionNode):
            for part in node.value:
                inner += part if isinstance(part, tuple) else [part]
        known[node] = 1 + sum(_values_within(part, known) for part in inner)
    return known[node]


def _content(file: Path) -> dict[str, Any]:
    try:
        content = read_yaml(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{file} is not the config of a run: it holds no lines of `key: value`")
    return cast("dict[str, Any]", content)


def _values(record: type, names: Iterable[str], content: dict[str, Any], file: Path) -> dict[str, Any]:
    """Of each name the value that the file has, of the type of the record's field."""
    described: dict[str, Field[Any]] = {field.name: field for field in fields(cast("Any", record))}
    before = {name: field.metadata["before"] for name, field in described.items() if "before" in field.metadata}
    values = {name: (before | content)[name] for name in names if name in content or name in before}
    missing = [name for name in names if name not in values]
    if missing:
        raise UsageError(f"{file} lacks {some(missing, repr)}: it is torn, or not the config of a run")
    return _checked(values, {name: described[name].metadata.get("type", described[name].type) for name in values}, file)


def _checked(values: Mapping[str, Any], types: Mapping[str, Any], file: Path | str) -> dict[str, Any]:
    """Values of these types: lists become tuples, whole numbers fractions."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, print_config=None)
    for name, type_hint in types.items():
        parser.add_argument(f"--{name}", type=type_hint)
    wrong = next(
        (name for name, value in values.items() if value is None and NoneType not in get_args(types[name])), None
    )
    try:
        if wrong is None:  # the parser would take nothing for a value of any type
            return parser.parse_object(dict(values)).as_dict()
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        named = re.search(r'Parser key "(\w+)"', str(error))
        if named is None:
            raise UsageError(f"{file} holds a value of the wrong type: {error}") from None
        wrong = named[1]
    type_hint = types[wrong]
    words = type_hint.__name__ if isinstance(type_hint, type) else str(type_hint)
    raise UsageError(f"{file}: {wrong} is {values[wrong]!r}: expected {words}")


def _plain(value: Any) -> Any:
    """Nested values as YAML knows them: no tuples."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in cast("Mapping[Any, Any]", value).items()}
    return [_plain(inner) for inner in cast("list[Any]", value)] if isinstance(value, list | tuple) else value


def _flags(names: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)
