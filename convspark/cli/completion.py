"""`convspark completion`: a script for a shell, so that nothing of ours runs when somebody presses TAB."""

import argparse
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal

from ..measure.coverage import table
from ..recipes import all_recipes
from .arguments import Command, type_text

_PLACES = {
    "bash": "~/.local/share/bash-completion/completions/convspark",
    "zsh": "~/.zfunc/_convspark (where fpath has ~/.zfunc: fpath+=~/.zfunc, before compinit, in ~/.zshrc)",
    "fish": "~/.config/fish/completions/convspark.fish",
}
_DEVICES = ("auto", "cpu", "cuda", "mps")
_MOST_LETTERS = 70


def completion(shell: Literal["bash", "zsh", "fish"] | None = None) -> None:
    """Print a script that completes commands, flags, their choices and files when you press TAB.

    Args:
        shell: bash, zsh or fish.
    """


def command() -> Command:
    return Command("completion", completion, positional=("shell",))


def run(arguments: Sequence[str]) -> int:
    shell = command().parse(arguments).shell
    if shell is None:
        print("Which shell? Write the script to where that shell looks for it:")
        for name, place in _PLACES.items():
            print(f"  convspark completion {name:4} > {place}")
        return 0
    shtab = import_module("shtab")
    script: str = shtab.complete(_whole(shtab.FILE), shell)
    # Of several files shtab 1.13 has zsh complete the first one alone.
    print(re.sub(r'^  "\(\*\)::?', '  "*:', script, flags=re.MULTILINE) if shell == "zsh" else script)
    return 0


def _whole(file: Any) -> argparse.ArgumentParser:
    """A parser of all commands, whose only use is to be described.

    Args:
        file: how shtab marks what is completed with names of files.
    """
    from .main import COMMANDS, OPTIONS

    whole = argparse.ArgumentParser("convspark")
    whole.add_argument("--version", action="store_true", help=OPTIONS["--version"])
    commands = whole.add_subparsers()
    for name, (module, summary) in COMMANDS.items():
        command: Command = import_module(module).command()
        parser = commands.add_parser(name, help=summary, description=summary)
        parser.add_argument("--trust-code", action="store_true", help=OPTIONS["--trust-code"])
        for action in command.parser._actions:
            if action.help == argparse.SUPPRESS or "--help" in action.option_strings:
                continue
            flags = action.option_strings or [action.dest]
            about = _brief(action.help or "")
            if action.nargs == 0:
                parser.add_argument(*flags, action="store_true", help=about)
                continue
            choices = _choices(name, action)
            added = parser.add_argument(*flags, help=about, nargs=action.nargs, choices=choices)
            if choices is None and re.search(
                r"\bstr\b|^None$", type_text(action)
            ):  # argparse's own type is a text, too
                added.complete = file  # type: ignore[attr-defined]
    return whole


def _choices(command: str, action: argparse.Action) -> Sequence[str] | None:
    """The values that an argument may have, where they are few or known by name; else None."""
    text = type_text(action)
    if literal := re.search(r"Literal\[(.*?)\]", text):
        return re.findall(r"[\w-]+", literal[1])
    if re.search(r"\bbool\b", text):
        return ["true", "false"]
    if action.dest == "device":
        return _DEVICES
    if action.dest == "recipe" or (command, action.dest) == ("recipes", "name"):
        return [name for name, one in all_recipes().items() if command in ("recipes", one.command)]
    if action.dest in ("model", "network"):
        return _networks()
    return None


def _networks() -> list[str]:
    """timm's that run exactly, from the sweep that comes with the package: timm itself takes seconds."""
    return [name for name, row in table()["networks"].items() if row["verdict"] == "exact"]


def _brief(help: str) -> str:
    """The first clause of a help text, for shells that show one."""
    first = re.split(r"[.;:] |[:;.]$", help)[0]
    return first if len(first) <= _MOST_LETTERS else first[:_MOST_LETTERS].rpartition(" ")[0]
