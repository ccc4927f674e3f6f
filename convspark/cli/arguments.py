"""From a typed function to a command line: each parameter a flag and a YAML key, described by the docstring."""

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from ..errors import UsageError
from ..names import shown_text
from ..runs.launch import asked_for, launch
from ..runs.processes import Processes
from ..runs.settings import read_yaml
from ..trust import check_code

TASK_GROUPS = {
    "optimisation": ("learning_rate", "weight_decay", "layer_decay", "group_blocks", "gradient_clip", "drop_path"),
    "machine": ("seed", "device", "devices", "nodes", "precision", "workers", "checkpoint_minutes"),
}
"""How the help orders what all tasks share."""

_LIGHT = ("runs", "report", "recipes", "completion")
"""Commands that need no torch."""


class Command:
    """A parser for one command.

    Args:
        name: of the command.
        function: whose keyword parameters become flags.
        summary: one sentence for its help; None takes the docstring's first.
        types: of parameters whose annotation is for Python only; None leaves the parameter out.
        positional: parameters that stand without a flag; each may be missing.
        groups: title -> parameters shown under it, in the help.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        summary: str | None = None,
        types: Mapping[str, Any] | None = None,
        positional: Sequence[str] = (),
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        from docstring_parser import parse

        doc = parse(inspect.getdoc(function) or "")
        help_of = {p.arg_name: " ".join((p.description or "").split()) for p in doc.params}
        self.name = name
        self._function = function
        self.parser = ArgumentParser(
            prog=f"convspark {name}",
            usage=" ".join([f"convspark {name}", *map(str.upper, positional), "[options]"]),
            description=summary or doc.short_description,
            exit_on_error=False,
            allow_abbrev=False,
            print_config=None,
            formatter_class=_HelpFormatter,
        )
        places: dict[str, Any] = {}
        for title, members in (groups or {}).items():
            places |= dict.fromkeys(members, self.parser.add_argument_group(title))
        self.keys: list[str] = []
        self._named: set[str | None] = set()
        self._sources: dict[str, Callable[[str], dict[str, Any]]] = {}
        self._positional = positional
        for parameter in inspect.signature(function).parameters.values():
            kind = (types or {}).get(parameter.name, parameter.annotation)
            if kind is None:
                continue
            self.keys.append(parameter.name)
            place = places.get(parameter.name, self.parser)
            options = {
                "type": kind,
                "default": parameter.default,
                "help": _percent(help_of[parameter.name]) if help_of else None,  # none is kept by `python -OO`
            } | _metavar(kind)
            if parameter.name in positional:
                place.add_argument(parameter.name, nargs="?", **{**options, "metavar": parameter.name.upper()})
            else:
                short = ["-o"] if parameter.name == "out" else []
                self._without_append(place.add_argument(*short, _flag(parameter.name), **options))

    def _without_append(self, action: argparse.Action) -> None:
        """jsonargparse gives lists a second flag, `--stages+`, which would stand in the help and in messages."""
        for flag in [flag for flag in action.option_strings if flag.endswith("+")]:
            action.option_strings = [other for other in action.option_strings if other != flag]
            del self.parser._option_string_actions[flag]

    def add_switch(self, *flags: str, help: str) -> None:
        """A flag without a value that belongs to the command line alone."""
        self.parser.add_argument(*flags, action="store_true", help=help)

    def with_json(self) -> "Command":
        """Itself, with `--json`, for `answer`."""
        self.add_switch("--json", help="print the result as JSON")
        return self

    def add_config(self, *, recipes: bool = False) -> None:
        """`--config FILE`: settings from YAML, which flags override; where there are recipes, also `--recipe NAME`."""
        self._sources["--config"] = self._read_config
        self.parser.add_argument(
            "--config", type=str, metavar="FILE", help="YAML file with settings; flags override it"
        )
        if recipes:
            self._sources["--recipe"] = self._read_recipe
            self.parser.add_argument(
                "--recipe", type=str, metavar="NAME", help="settings of `convspark recipes`; flags override them"
            )

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """The arguments' values.

        Raises:
            UsageError: all keys of a config file that are not known, with the nearest that are; a flag that is not
                known; a value of another type.
        """
        arguments, flagged = self._without_positional_flags(arguments)
        arguments, configured = self._without_configs(arguments)
        arguments = self._bracketed(self._answered(arguments))
        flags = {flag: action.dest for action in self.parser._actions for flag in action.option_strings}
        # `-oDIR` is `-o DIR`.
        typed = {flags.get(word.partition("=")[0], flags.get(word[:2])) for word in arguments}
        configured = _without_rivals(configured, typed)
        try:
            begun = self.parser.parse_object(configured, defaults=False) if configured else None
            options = self.parser.parse_args(arguments, begun)
        except argparse.ArgumentError as error:
            raise UsageError(self._explain(str(error))) from None
        for key in self._positional:
            if options[key] is not None and key in flagged:
                raise UsageError(f"{key} is {options[key]!r} and, by {_flag(key)}, {flagged[key]!r}: name it once")
            if options[key] is None:  # argparse gives a positional its default even where a file had a value
                options[key] = configured.get(key)
        for key, value in flagged.items():
            options[key] = value
        self._named = {*configured, *flagged, *typed, *(key for key in self._positional if options[key] is not None)}
        if self.name not in _LIGHT and "torch" not in sys.modules and sys.stderr.isatty():
            print("Loading PyTorch, which takes some seconds …", file=sys.stderr)
        return options

    def _without_configs(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The arguments without `--config` and `--recipe`, and the settings that those name, by key."""
        rest, configured, words = list[str](), dict[str, Any](), iter(arguments)
        for word in words:
            flag, equals, value = word.partition("=")
            if flag not in self._sources:
                rest.append(word)
                continue
            value = value if equals else next(words, None)
            if not value:
                raise UsageError(f"{flag} has no value: expected a {'file' if flag == '--config' else 'name'}")
            content = self._sources[flag](value)
            random = (name for key in ("weights", "against") for name in _random(content.get(key)))
            for name in (content.get("model"), *random):
                check_code(name, value)
            if self.name == "pretrain":  # elsewhere masks are pictures
                check_code(content.get("masks"), value, "--masks")
            named = [key for key, setting in content.items() if setting is not None]
            configured = _without_rivals(configured, named) | content
        return rest, configured

    def _without_positional_flags(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The arguments less positional ones written as flags (`--images FOLDER`, for `--resume`), and these by key."""
        flags = {_flag(name): name for name in self._positional}
        rest, flagged, words = list[str](), dict[str, str](), iter(arguments)
        for word in words:
            flag, equals, value = word.partition("=")
            if flag not in flags:
                rest.append(word)
                continue
            value = value if equals else next(words, None)
            if not value:
                raise UsageError(f"{flag} has no value: expected a text")
            flagged[flags[flag]] = value
        return rest, flagged

    def _answered(self, arguments: Sequence[str]) -> list[str]:
        """`--compile` -> `--compile=true`, where that is not the default and no answer follows."""
        unset = [a for a in self.parser._actions if _type_of(a) in (bool, bool | None) and not a.default]
        questions = {flag for action in unset for flag in action.option_strings}
        following = [*arguments, ""][1:]
        return [
            f"{word}=true" if word in questions and after.lower() not in _ANSWERS else word
            for word, after in zip(arguments, following, strict=True)
        ]

    def _bracketed(self, arguments: Sequence[str]) -> list[str]:
        """`--stages layer1,layer2` -> `--stages [layer1,layer2]`, as jsonargparse wants lists; so of a single value."""
        lists = {flag: str(_type_of(a)) for a in self.parser._actions for flag in a.option_strings}
        lists = {flag: text for flag, text in lists.items() if "list[" in text or "tuple[" in text}
        bracketed: list[str] = []
        for argument in arguments:
            flag, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
            if not equals:
                flag, value = bracketed[-1] if bracketed else "", argument
            several = "," in value or re.fullmatch(r"list\[\w+\](?: \| None)?", lists.get(flag, "")) is not None
            if flag in lists and several and value not in ("null", "") and value[0] not in "[(":
                value = f"[{value}]"
            bracketed.append(f"{flag}={value}" if equals else value)
        return bracketed

    def answer(self, arguments: Sequence[str], describe: Callable[[Any], str] = str) -> int:
        """Call the function, and print its result, a dataclass, in words or as JSON; the exit code."""
        options = self.parse(arguments)
        code = self.spread(arguments, options)
        if code is not None:
            return code
        result = self._function(**self.values(options))
        if not Processes.here().is_first:
            return 0
        print(json.dumps(asdict(result), indent=2) if options.json else shown_text(describe(result)))
        return 0

    def spread(self, arguments: Sequence[str], options: Namespace) -> int | None:
        """Start the processes that were asked for, and wait for them: their exit code; None where this is one of them,
        or the only one."""
        asked = asked_for(options.get("devices"), options.get("nodes"))
        if Processes.here().are_several or not asked.are_several:
            return None
        command = [sys.executable, "-m", "convspark", self.name, *arguments]
        return launch(command, asked.local_count, asked.count // asked.local_count)

    def values(self, options: Namespace) -> dict[str, Any]:
        """The function's arguments, without the options of the command line alone; of a run that goes on, only those
        that were named."""
        return {key: options[key] for key in self.keys if key in self._named or not options.get("resume")}

    def _read_recipe(self, name: str) -> dict[str, Any]:
        """The settings of a recipe; UsageError unless it is one of this command."""
        from ..recipes import find_recipe

        recipe = find_recipe(name)
        if recipe.command != self.name:
            raise UsageError(f"--recipe {name} is of `convspark {recipe.command}`, not of {self.name}")
        return recipe.settings

    def _read_config(self, file: str) -> dict[str, Any]:
        """The keys and values of a config file; UsageError unless all keys are known."""
        path = Path(file)
        try:
            content = read_yaml(path)
        except OSError as error:
            raise UsageError(f"--config {path} cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
        if content is None:
            return {}
        if not isinstance(content, dict):
            raise UsageError(f"--config {path} holds a {type(content).__name__}: expected lines of `key: value`")
        kind = content.get("kind", self.name)
        if kind != self.name:
            raise UsageError(f"--config {path} is of `convspark {kind}`, not of {self.name}")
        problems = [
            f"{key!r} is not known{_nearest(str(key), self.keys)}"
            for key in content
            if str(key).replace("-", "_") not in (*self.keys, "kind")
        ]
        if problems:
            raise UsageError(f"--config {path}: {'; '.join(problems)}. `convspark {self.name} --help` names them all")
        return {str(key).replace("-", "_"): value for key, value in content.items() if key != "kind"}

    def _explain(self, message: str) -> str:
        """jsonargparse's messages in the words of the command line."""
        unknown = re.match(r"unrecognized arguments: (.*)", message)
        if unknown:
            words = unknown[1].split()
            flags = [w.partition("=")[0] for w in words if w.startswith("-") and not _is_number(w)]
            known = [option for action in self.parser._actions for option in action.option_strings]
            if flags:
                problems = [f"{flag} is not known{_nearest(flag.replace('_', '-').lower(), known)}" for flag in flags]
                return f"{'; '.join(problems)}. `convspark {self.name} --help` names all flags"
            return f"{' '.join(words)!r}: one argument too many. A flag's value follows the flag, lists as a,b"
        wrong = re.match(r'Parser key "(\w+)":\s*(.*)', message, re.DOTALL)
        if wrong:
            action = next(a for a in self.parser._actions if a.dest == wrong[1])
            value = re.search(r"(?:Got|Given) value: (.*)", wrong[2])
            text = f" is {value[1].strip()!r}" if value else ""
            return f"{_name(action)}{text}: expected {_expected(action)}"
        required = re.match(r"the following arguments are required: (.*)", message)
        if required:
            names = [a.metavar or a.dest for a in self.parser._actions if a.dest in required[1].split(", ")]
            return f"{' and '.join(map(str, names))} missing. `convspark {self.name} --help` shows what to give"
        return message


_RIVALS = {"learning_rate": "base_learning_rate", "base_learning_rate": "learning_rate"}
"""Settings that exclude each other: whoever names one overrides what a file or a recipe says of the other."""


def _without_rivals(configured: Mapping[str, Any], named: Collection[str | None]) -> dict[str, Any]:
    """Settings of a file without those that the named ones exclude."""
    excluded = {_RIVALS[key] for key in named if key in _RIVALS}.difference(named)
    return {key: value for key, value in configured.items() if key not in excluded}


_ANSWERS = ("true", "false", "yes", "no", "null")


class _HelpFormatter(argparse.HelpFormatter):
    """argparse's own, with the default where there is one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, value = action.help or "", action.default
        has_default = value not in (None, False) and value is not argparse.SUPPRESS
        if has_default and action.option_strings and action.nargs != 0:
            text += f" (default: {list(value) if isinstance(value, tuple) else value})"
        return text


def _random(weights: Any) -> list[str]:
    """The `random:NAME` among weights, one or several."""
    several = weights if isinstance(weights, list) else str(weights).split(",")
    return [str(one).partition("=")[2] or str(one) for one in several if "random:" in str(one)]


def _metavar(kind: Any) -> dict[str, str]:
    """N or X for a number in the help; argparse describes other types well enough."""
    text = getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind)
    letter = {"int": "N", "float": "X"}.get(text.removesuffix(" | None"))
    return {"metavar": letter} if letter else {}


def _flag(parameter: str) -> str:
    return "--" + parameter.replace("_", "-")


def _name(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else action.dest


def _type_of(action: argparse.Action) -> Any:
    return getattr(action, "_typehint", None) or action.type


def type_text(action: argparse.Action) -> str:
    """A type as annotations have it."""
    kind = _type_of(action)
    return getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind)


def _expected(action: argparse.Action) -> str:
    """A type in words."""
    text = type_text(action)
    literal = re.search(r"Literal\[(.*?)\]", text)
    if literal:
        words = literal[1].replace("'", "").replace(", ", " or ")
        return f"a number or {words}" if re.search(r"\b(int|float)\b", text) else words
    words = {
        r"tuple\[float, float\]": "two numbers, as in 0.9,0.95",
        r"^dict\b": "names and values, as in {output_stride: 16}",
        r"list\[float\]": "numbers, as in 0.5,0.5,0.5",
        r"list\[str\]": "names, as in layer1,layer2",
        r"^list\[int\] \| None$": "whole numbers, as in 3,2,1",
        r"list\[int\]": "a whole number, or one a side, as in 32,16",
        r"\bint \| str\b|\bstr \| int\b": "a whole number or a text",
        r"\bfloat \| str\b": "a number or a text",
        r"\bint\b": "a whole number",
        r"\bfloat\b": "a number",
        r"\bbool\b": "true or false",
        r"\bstr\b": "a text",
    }
    return next((word for pattern, word in words.items() if re.search(pattern, text)), text)


def _nearest(word: str, known: Sequence[str]) -> str:
    matches = get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {matches[0]}?)" if matches else ""


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-[\d.]+", word) is not None


def _percent(text: str) -> str:
    """argparse formats help with `%`."""
    return text.replace("%", "%%")
