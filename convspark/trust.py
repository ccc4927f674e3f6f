"""Code that a file names is imported only where the user has named it too.

A run, an export or a config may name a network of somebody's own, `package.module:factory`, and importing that runs it.
Names that a user types are trusted; those that stand in files are not, unless they were typed as well (`--model NAME`)
or `--trust-code` says so.
"""

from collections.abc import Iterable
from pathlib import Path

from .errors import UsageError

NO_CODE = ("torchvision", "local-dir", "hf-hub", "hf_hub")
"""What stands before a colon in names that are of no code of somebody's own."""

_trusted: set[str | None] = set()


def trust_code(names: Iterable[str | None] = (None,)) -> None:
    """From now on, import code of these names wherever files name them; by default of any."""
    _trusted.update(names)


def check_code(name: object, file: str | Path) -> None:
    """Raise UsageError if a name that stands in a file is of code that nobody has said to trust."""
    if not isinstance(name, str):
        return
    name = name.removeprefix("random:")
    home, colon, _ = name.partition(":")
    if colon and home not in NO_CODE and not _trusted.intersection((name, None)):
        raise UsageError(
            f"{file} names the network {name!r}: Python code of its author's, {home}, which would be imported and run. "
            f"If you trust it, name it yourself (--model {name}) or add --trust-code"
        )
