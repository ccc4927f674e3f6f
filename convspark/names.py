"""Names of files and classes, made safe to show: some characters control a terminal, some end a line, and some have no
encoding. And how many there are of something, in words.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable

_MOST = 5
_MARKUP = re.compile(r"([\\`*\[\]<>|$]|(?<!\w)_|_(?!\w))")


def shown(name: object) -> str:
    """A name in one line: control characters and invalid ones are written as `\\x1b`, `\\n`, `\\u2028`."""
    return _escaped(str(name), "")


def shown_text(text: object) -> str:
    """A text of several lines, or with tabs, likewise."""
    return _escaped(str(text), "\n\t")


def shown_in_markdown(name: object) -> str:
    """A name in one line of a Markdown file, where nothing in it is markup."""
    return _MARKUP.sub(r"\\\1", shown(name))


def in_code(text: object) -> str:
    """A text as Python code has it, between double quotes."""
    return json.dumps(str(text), ensure_ascii=False)


def some(names: Iterable[object], text: Callable[[object], str] = shown) -> str:
    """The first few of many names, and how many more there are."""
    several = list(names)
    more = f" and {len(several) - _MOST} more" if len(several) > _MOST else ""
    return ", ".join(map(text, several[:_MOST])) + more


def many(count: int, thing: str, things: str = "") -> str:
    """How many there are: `1 step`, `3 steps`.

    Args:
        things: the plural, where it is not the word with an s.
    """
    return f"{count} {thing if count == 1 else things or f'{thing}s'}"


def _escaped(text: str, allowed: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c in allowed or not _controls(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _controls(character: str) -> bool:
    """Whether it is a control or format character, a number that is no character, or a separator of lines."""
    category = unicodedata.category(character)
    return category.startswith("C") or category in ("Zl", "Zp")
