"""The settings of a pre-training that suit a folder of pictures, and why: those that `pretrain` chooses, and more."""

from collections.abc import Sequence
from dataclasses import replace

from ..data import hold_out
from ..data.glance import Glance
from ..runs.machine import Machine
from .choices import FEW, Choice, Known, choose

_LARGE = 16  # times the pixels of what is trained on
_CROPS = 4


def advise(
    sizes: Sequence[tuple[int, int]], bands: int, machine: Machine, *, is_plain: bool, is_grey: bool, pictures: int
) -> list[Choice]:
    """What to choose for so many pictures of these (height, width), of which the most have so many bands; `pretrain`
    holds some of the pictures out.
    """
    glance = Glance.of(sizes, is_grey)
    known = Known(len(hold_out(range(pictures))[0]), glance.short, glance.area)
    chosen = choose(known, machine).chosen
    size = next(choice.value for choice in chosen if choice.flag == "size")
    more: list[Choice] = []
    if not is_plain and (bands, is_grey) != (1, True):
        more.append(Choice("channels", bands, f"most files have {bands} bands"))
    elif is_grey:
        more.append(Choice("channels", 1, "all pictures are grey"))
    if not is_plain:
        why = "samples are read as they are stored: range, mean and deviation are measured over all files together"
        more.append(Choice("stats", "auto", why))
    if pictures < FEW and glance.area >= _LARGE * size * size:
        chosen = choose(replace(known, crops=_CROPS), machine).chosen  # which make longer epochs
        why = f"half of the pictures have {_LARGE} times the pixels of a crop or more: one decoding serves four"
        more.append(Choice("crops-per-image", _CROPS, why))
        why = f"crops of two thirds of such a picture would be shrunk {(2 / 3 * glance.area) ** 0.5 / size:.0f}-fold"
        more.append(Choice("crop-scale", "0.05,1", why))
    return [*chosen, *more]
