"""Code that a file names is imported only where the user has named it too.

A run, an export or a config may name a network of somebody's own, `package.module:factory`, and importing that runs it.
Names that a user types are trusted; those that stand in files are not, unless they were typed as well (`--model NAME`)
or `--trust-code` says so.
"""

import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import UsageError

NO_CODE = ("torchvision", "local-dir", "hf-hub", "hf_hub")
"""What stands before the colon in names that are no Python code."""

_trusted: set[str | None] = set()


def trust_code(names: Iterable[str | None] = (None,)) -> None:
    """From now on, import code of these names wherever files name them; by default of any."""
    _trusted.update(names)


def check_code(name: object, file: str | Path, flag: str | None = "--model") -> None:
    """Raise UsageError if a name in a file is of code that the user has not trusted.

    Args:
        flag: the one with which the user may type the name instead; None if there is none.
    """
    if not isinstance(name, str):
        return
    name, weights = name.removeprefix("random:"), name
    if name != weights and Path(name).exists():
        return  # random:FOLDER, which may have a colon in its name; what network it is of is looked at apart
    home, colon, _ = name.partition(":")
    if colon and home not in NO_CODE and not _trusted.intersection((name, None)):
        raise UsageError(
            f"{file} names {name!r}: Python code of its author's, {home}, which would be imported and run. "
            f"If you trust it, {f'name it yourself ({flag} {name}) or ' if flag else ''}add --trust-code"
        )


def named_code(name: str, argument: str) -> Any:
    """What `package.module:attribute` names; the current folder is searched too.

    Args:
        argument: what to blame in messages.

    Raises:
        UsageError: no such module, or it has nothing of that name.
    """
    home, _, attribute = name.partition(":")
    if not home or home.startswith("."):
        raise UsageError(f"{argument} is {name!r}: expected package.module:name, from the package on")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = import_module(home)
    except ImportError as error:
        raise UsageError(
            f"{argument} is {name!r}, but {home} cannot be imported ({error}); expected package.module:name, "
            "importable from the current folder or installed"
        ) from None
    finally:
        sys.path.remove(here)
    if not hasattr(module, attribute):
        nearest = get_close_matches(attribute, [n for n in vars(module) if not n.startswith("_")], n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(nearest)}?" if nearest else ""
        raise UsageError(f"{argument} is {name!r}, but {home} has no {attribute!r}{hint}")
    return getattr(module, attribute)
