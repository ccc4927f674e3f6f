"""The blocks of the documentation, and what runs them."""

import contextlib
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convspark.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(
    r"^(?:<!-- needs: (?P<needs>[^\n]+) -->\n)?```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: sh, python, text, or a directive's name in braces.
        needs: what a test does not have; such a block is read, and not run.
    """

    language: str
    text: str
    needs: str | None

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a block of sh, without the file that its output goes to."""
        lines = self.text.replace("\\\n", " ").splitlines()
        split = (shlex.split(line, comments=True) for line in lines)
        return [words[: words.index(">")] if ">" in words else words for words in split if words]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [Block(m["language"], m["text"], m["needs"]) for m in _FENCE.finditer(page.read_text())]


def python_of(page: Path) -> list[str]:
    """The blocks of Python of a page, in order."""
    return [block.text for block in blocks(page) if block.language == "python"]


def convspark_commands(page: Path) -> Iterator[list[str]]:
    """The words after `convspark` of each command of a page, whether a test can run it or not."""
    for block in blocks(page):
        for words in block.commands if block.language == "sh" else ():
            if "convspark" in words[:-1]:
                yield words[words.index("convspark") + 1 :]


def run_page(page: Path, folder: Path, more: Mapping[str, Sequence[str]]) -> None:
    """Run a page's blocks in order, in a folder; its Python in one namespace.

    Args:
        more: arguments that each command gets in addition, so that it is over soon.
    """
    names: dict[str, object] = {}
    with contextlib.chdir(folder):
        for block in blocks(page):
            if block.needs:
                continue
            if block.language == "python":
                exec(compile(block.text, str(page), "exec"), names)
            for program, *arguments in block.commands if block.language == "sh" else ():
                assert program == "convspark", f"{page.name}: only convspark is run, not {program}: mark what it needs"
                added = [] if {"--resume", "--dry-run"} & {*arguments} else more.get(arguments[0], [])
                assert main([*arguments, *added]) == 0, f"{page.name}: convspark {' '.join(arguments)}"


@contextlib.contextmanager
def meanings_forgotten() -> Iterator[None]:
    """What pages teach the engine within it is forgotten afterwards."""
    from convspark.sparse.registry import MEANINGS

    known = dict(MEANINGS)
    yield
    MEANINGS.clear()
    MEANINGS.update(known)


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Modules in a folder can be named on the command line, as from a terminal there."""
    import sys

    sys.path.insert(0, os.fspath(folder))
    yield
    sys.path.remove(os.fspath(folder))
