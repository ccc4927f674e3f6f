"""Names of classes and files in pictures, letter by letter: matplotlib reads some as formulas, and leaves some out."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..names import shown

logger = logging.getLogger(__name__)

_LONGEST = 60  # letters; a picture can be too large to be written


def label(name: object) -> str:
    """A name as a picture shows it, cut where it is long."""
    text = shown(name)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def legend(owner: Any, handles: Sequence[Any], names: Sequence[object], **options: Any) -> None:
    """The legend of a figure or of axes, with any names; matplotlib's own leaves out those that begin with `_`."""
    drawn_legend = owner.legend(handles, ["name"] * len(names), **options)
    for text, name in zip(drawn_legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(label(name))


@contextmanager
def of_any_letters() -> Iterator[None]:
    """Within it, letters that the font lacks are drawn as boxes without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support .* natively")
        yield


def draw_at_last(draw: Callable[[], None]) -> None:
    """Draw a picture of results that are written: an error in it is logged, and costs nothing else."""
    try:
        draw()
    except OSError:  # of the disk, which says enough
        raise
    except Exception as error:
        logger.warning(
            "a picture could not be drawn (%s: %s); all else is written", type(error).__name__, error, exc_info=error
        )
