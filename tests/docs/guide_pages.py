"""Runs a page of the documentation: its commands and its Python, in the page's order, in one folder."""

import contextlib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convspark.cli.main import main

_BLOCK = re.compile(r"(?P<needs><!-- needs: [^\n]*-->\n)?^```(?P<kind>sh|python)\n(?P<text>.*?)^```$", re.M | re.S)
_LONG = ("pretrain", "finetune", "detect", "segment", "compare")
SHORT = {command: ["--epochs", "1"] for command in _LONG}
_NOT_OURS = ("pip", "make")


def run_page(page: Path, folder: Path, extra: Mapping[str, Sequence[str]] = SHORT) -> int:
    """Carry out the blocks of a page, but for those that need what a test does not have; how many there were.

    Args:
        folder: where they run, with the data under the page's names.
        extra: arguments to append, by command.
    """
    names: dict[str, Any] = {"__name__": page.stem}
    done = 0
    with contextlib.chdir(folder):
        for block in _BLOCK.finditer(page.read_text()):
            if block["needs"]:
                continue
            if block["kind"] == "python":
                line = page.read_text()[: block.start("text")].count("\n")
                exec(compile("\n" * line + block["text"], str(page), "exec"), names)
            else:
                for words in commands(block["text"]):
                    _run(words, extra)
            done += 1
    return done


def commands(text: str) -> list[list[str]]:
    """The words of each line of a shell's, without comments; a line that ends in a backslash goes on in the next."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _run(words: Sequence[str], extra: Mapping[str, Sequence[str]]) -> None:
    program, *arguments = words
    if program in _NOT_OURS:
        return
    assert program == "convspark", f"only convspark is run: {words}"
    if "--resume" not in arguments and "--dry-run" not in arguments:
        arguments += extra.get(arguments[0], [])
    assert main(arguments) == 0, shlex.join([program, *arguments])
