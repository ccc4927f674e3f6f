"""The settings of a pre-training that suit a folder of pictures, and why."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

STRIDE = 32
"""Of most networks: the side of their patches."""

_USUAL_SIZE, _LEAST_SIZE = 224, 64
_FEW, _LARGE = 10_000, 16  # pictures; times the pixels of what is trained on
_BARELY = 16  # patches of an image, below which there is little to hide


@dataclass(frozen=True)
class Advice:
    """A flag of `pretrain`, its value, and why."""

    flag: str
    value: str
    why: str


def advise(
    sizes: Sequence[tuple[int, int]], bands: int, *, is_plain: bool, is_grey: bool, pictures: int
) -> list[Advice]:
    """What to choose for so many pictures of these (height, width), of which the most have so many bands."""
    found: list[Advice] = []
    short = statistics.median(min(size) for size in sizes)
    size = _USUAL_SIZE if short >= _USUAL_SIZE else max(_LEAST_SIZE, int(short) // STRIDE * STRIDE)
    if size == _USUAL_SIZE:
        why = f"half of the pictures have {short:g} pixels or more on their shorter side; the usual size for networks"
    elif short >= size:
        why = f"the multiple of {STRIDE}, a patch, next below the {short:g} pixels that half of the shorter sides have"
    else:
        why = f"the least that holds 2x2 patches of {STRIDE}; pictures of {short:g} pixels are enlarged for it"
    found.append(Advice("size", str(size), why))
    patches = (size // STRIDE) ** 2
    if patches < _BARELY:
        side = size * 2 // STRIDE
        why = f"{patches} patches of {STRIDE} are too few to hide some; patches of 16 make {side * side}"
        found.append(Advice("model-args", "{output_stride: 16}", f"{why} (timm's ResNets and many others know it)"))
        patches = side * side
    visible = round(patches * 0.4)
    found.append(Advice("mask-ratio", "0.6", f"the paper's: {visible} of {patches} patches stay visible"))
    if not is_plain and (bands, is_grey) != (1, True):
        found.append(Advice("channels", str(bands), f"most files have {bands} bands"))
    elif is_grey:
        found.append(Advice("channels", "1", "all pictures are grey"))
    if not is_plain:
        why = "samples are not of 8 bits: their range, mean and deviation are measured over all files together"
        found.append(Advice("stats", "auto", why))
    if pictures < _FEW:
        found.append(Advice("model", "resnet18", f"{pictures} pictures are few: small, as in the recipe small_data"))
        found.append(Advice("epochs", "400", "as in the recipe small_data: few pictures make short epochs"))
        area = statistics.median(h * w for h, w in sizes)
        if area >= _LARGE * size * size:
            why = f"half of the pictures have {_LARGE} times the pixels of a crop or more: one decoding serves four"
            found.append(Advice("crops-per-image", "4", why))
            why = f"crops of two thirds of such a picture would be shrunk {(2 / 3 * area) ** 0.5 / size:.0f}-fold"
            found.append(Advice("crop-scale", "0.05,1", why))
    return found
