"""Settings of a pre-training that the user left open, chosen from the pictures and the machine, and why. No torch here.

The same pictures and the same kind of machine give the same choice: all of it is arithmetic, nothing is timed. The
figures for speed are rough (`docs/choices.md`); the time left that a run shows after its first steps is measured.
"""

from dataclasses import dataclass, field
from math import ceil
from typing import Any

import yaml

from ..names import many
from ..runs.machine import Machine
from ..runs.numbers import format_seconds

FEW = 10_000
"""Pictures: below, networks and epochs are those of the recipe small_data."""

NIGHT = 10 * 3600.0
"""Seconds that a run may take whose length the user left open."""

_USUAL_SIZE, _SIZE_ON_CPU = 224, 128
_STRIDES = (32, 16, 8)  # of a network of ours as it is, and dilated: the sides of its patches
_A_SIDE = 4  # patches along a side of an image: fewer leave little to hide
_LEAST_SIZE = 32

_EPOCHS_OF_FEW, _EPOCHS, _MOST_EPOCHS = 400, 200, 1600  # of small_data; usual; the paper's
_LEAST_STEPS = 4000  # from here on the learning rate is the paper's

_BATCH, _BATCH_ON_GPU = 64, 256
_LEAST_BATCH, _LEAST_STEPS_AN_EPOCH = 16, 4
_GPU_BYTES = 64e6  # of a training step of ResNet-50, for each image of 224 pixels; in bf16 it is half of that
_GPU_SHARE = 0.6

# GMAC of dense networks, for images of 224 pixels, and how many times as many with finer patches.
_GMAC = {"resnet18": 1.8, "resnet50": 4.1}
_DILATED = {32: 1.0, 16: 1.75, 8: 5.5}

# GMAC of dense networks in a second, as what a training step on visible patches gets through.
_A_CORE, _A_CORE_IN_FP32 = 30.0, 14.0
_A_PROCESSOR, _A_PROCESSOR_IN_FP32 = 80.0, 16.0
_READ_SECONDS, _READ_SECONDS_A_MEGAPIXEL = 0.001, 0.006  # of a core, for each picture
_PASS_SECONDS = {"cpu": 0.1, "mps": 0.1, "cuda": 0.02}  # of launching what it consists of; a GPU computes meanwhile
_PASS_SECONDS_OF_SEVERAL_GPUS = 0.08  # not replayed
_EPOCH_SECONDS = 0.3  # of measuring and writing, whatever its length

_INIT_BELOW = 1000


@dataclass(frozen=True)
class Choice:
    """A flag of `pretrain`, its value, and why."""

    flag: str
    value: Any
    why: str

    @property
    def text(self) -> str:
        """The value as the command line takes it."""
        is_plain = isinstance(self.value, str | int)
        return str(self.value) if is_plain else yaml.safe_dump(self.value, default_flow_style=True).strip()

    def __str__(self) -> str:
        return f"{f'--{self.flag} {self.text}':<33}  {self.why}"


@dataclass(frozen=True)
class Known:
    """What is known of the pictures of a run.

    Attributes:
        count: how many are trained on.
        short: median of their shorter sides, in pixels.
        area: median of their areas, in pixels.
        are_grey: whether all that were looked at are.
        crops: of each picture in an epoch.
    """

    count: int
    short: float
    area: float
    are_grey: bool = False
    crops: int = 1

    @property
    def examples(self) -> int:
        """Of an epoch."""
        return self.count * self.crops


@dataclass(frozen=True)
class Network:
    """What is known of a network that the user chose.

    Attributes:
        gmac: of the dense network, for an image of 224 pixels.
        patch: side of its patches, the longest one.
    """

    gmac: float
    patch: int


@dataclass(frozen=True)
class Choices:
    """What was chosen; `settings` of `pretrain`, in the order in which the log shows them.

    Attributes:
        seconds: that the run takes, roughly.
        advice: sentences on what was not chosen, and may be better.
    """

    chosen: list[Choice] = field(default_factory=list[Choice])
    seconds: float = 0.0
    advice: list[str] = field(default_factory=list[str])

    @property
    def settings(self) -> dict[str, Any]:
        return {choice.flag.replace("-", "_"): choice.value for choice in self.chosen}

    def lines(self) -> list[str]:
        """For the log."""
        if not self.chosen:
            return []
        return [
            "Chosen for these pictures and this machine; a flag that you give replaces its line:",
            *(f"  {choice}" for choice in self.chosen),
            f"This takes about {format_seconds(self.seconds)}: a rough guess, the time left is measured as it goes",
            *self.advice,
        ]


def choose(
    pictures: Known,
    machine: Machine,
    *,
    network: Network | None = None,
    size: tuple[int, int] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    passes: int = 1,
    processes: int = 1,
    may_dilate: bool = True,
    may_start_anew: bool = True,
) -> Choices:
    """Choose those of network, size of the images, batch and epochs that are None.

    Args:
        size: (height, width).
        passes: of a batch, one after the other; processes: that share each of them.
        may_dilate: whether a network that is chosen may have finer patches.
        may_start_anew: whether the run begins with random weights, which do not suit a small set of pictures.
    """
    chosen: list[Choice] = []
    known = network
    if known is None:
        chosen.append(Choice("model", *_network(pictures, machine)))
        known = Network(_GMAC[chosen[0].value], _STRIDES[0])
    dilated = 1.0
    if size is None:
        side, patch, why = _size(pictures, machine, known.patch, may_dilate=may_dilate and network is None)
        size = side, side
        chosen.append(Choice("size", side, why))
        if patch != known.patch:
            dilated, across = _DILATED[patch], f"{side // patch}x{side // patch}"
            why = f"patches of {patch} pixels, {across} of them; of {known.patch} there would be too few"
            chosen.append(Choice("model-args", {"output_stride": patch}, why))
    area = size[0] * size[1] / _USUAL_SIZE**2
    if batch_size is None:
        parts = passes * processes
        share = max(1.0, known.gmac / _GMAC["resnet50"]) * area / parts
        batch_size, why = _batch(pictures, machine, share, parts)
        chosen.append(Choice("batch-size", batch_size, why))
    steps = ceil(pictures.examples / batch_size)
    work = known.gmac * dilated * area
    epoch_seconds = _epoch_seconds(machine, work, pictures.area, pictures.examples, steps * passes, processes)
    if epochs is None:
        epochs, why = _epochs(pictures.examples, steps, epoch_seconds)
        chosen.append(Choice("epochs", epochs, why))
    seconds = epochs * epoch_seconds
    advice: list[str] = []
    if seconds > 1.1 * NIGHT:
        advice.append("That is long: fewer pictures (a text file of some of the paths), a smaller --size or a GPU help")
    if may_start_anew and pictures.count < _INIT_BELOW:
        name = "resnet50" if network is not None else chosen[0].value
        advice.append(
            f"{pictures.count} pictures alone teach little: start from weights that exist, as with "
            f"--init {name}.a1_in1k (timm downloads them)"
        )
    if pictures.are_grey:
        advice.append("The pictures are grey, and read as colour: --channels 1 makes a network for grey ones alone")
    return Choices(chosen, seconds, advice)


def _network(pictures: Known, machine: Machine) -> tuple[str, str]:
    if machine.kind != "cuda":
        return "resnet18", "without an NVIDIA GPU; resnet50 takes about twice as long"
    if pictures.count < FEW:
        return "resnet18", f"{pictures.count:,} pictures are few; larger networks learn few by heart"
    return "resnet50", "the usual network, and the smallest of the paper's"


def _size(pictures: Known, machine: Machine, patch: int, *, may_dilate: bool) -> tuple[int, int, str]:
    """The side of the images, that of the patches, finer where it is small, and why that size."""
    most = _USUAL_SIZE if machine.kind == "cuda" else _SIZE_ON_CPU
    short = pictures.short
    side = int(min(most, short))
    if may_dilate:
        patch = next((stride for stride in _STRIDES if side >= _A_SIDE * stride), _STRIDES[-1])
    least = _A_SIDE if may_dilate or short >= _A_SIDE * patch else 2
    size = max(least, side // patch) * patch
    if size > short:
        why = f"{least}x{least} patches of {patch}, the least there may be; pictures of {short:g} pixels are enlarged"
    elif size < most:
        why = f"as large as the pictures usually are (shorter side {short:g}), a multiple of {patch}"
    elif size > most:
        why = f"{least}x{least} patches of {patch}: fewer would leave little to hide"
    else:
        why = (
            "the usual size"
            if most == _USUAL_SIZE
            else f"without an NVIDIA GPU; {_USUAL_SIZE} takes three times as long"
        )
    return size, patch, why


def _batch(pictures: Known, machine: Machine, share: float, parts: int) -> tuple[int, str]:
    """The batch, and why.

    Args:
        share: memory of an image, relative to one of 224 pixels in a ResNet-50, over the parts that a batch has.
        parts: what the batch must divide into.
    """

    def whole(batch: int) -> int:
        return max(1, batch // parts) * parts

    count = pictures.examples
    usual = _BATCH_ON_GPU if machine.kind == "cuda" and count >= FEW else _BATCH
    few = max(_LEAST_BATCH, _power_of_two(count / _LEAST_STEPS_AN_EPOCH))
    if count < _LEAST_BATCH:
        return whole(count), "all pictures in one step"
    if few < usual:
        what = "pictures" if pictures.crops == 1 else "crops"
        return whole(few), f"so that {count} {what} make {many(ceil(count / whole(few)), 'step')} an epoch"
    if machine.kind == "cuda":
        room = _power_of_two(max(1.0, _GPU_SHARE * machine.memory / (_GPU_BYTES * share)))
        if room < usual:
            return whole(room), f"about what the GPU's {machine.memory / 2**30:.0f} GiB hold"
        if usual == _BATCH_ON_GPU:
            return whole(usual), "large batches keep a GPU busy"
    return whole(usual), "the usual one"


def _epochs(count: int, steps: int, seconds: float) -> tuple[int, str]:
    """The epochs, and why.

    Args:
        count, steps, seconds: images, steps and seconds of an epoch.
    """
    epochs = _EPOCHS_OF_FEW if count < FEW else _EPOCHS
    why = "as in the recipe small_data: few pictures, short epochs" if count < FEW else "the usual number"
    if epochs * steps < _LEAST_STEPS:
        epochs = min(_MOST_EPOCHS, ceil(_LEAST_STEPS / steps))
        why = f"so that they make {epochs * steps:,} steps: few pictures, short epochs"
        if epochs == _MOST_EPOCHS:
            why = "the paper's number: few pictures, short epochs"
    most = int(NIGHT / seconds)
    if most < epochs:
        hours = NIGHT / 3600
        epochs, why = (
            most,
            f"as many as about {hours:g} hours are enough for, at some {count / seconds:.0f} images a second",
        )
    if epochs < 1:
        epochs, why = 1, f"at some {count / seconds:.0f} images a second, a single pass takes {format_seconds(seconds)}"
    return epochs, why


def _epoch_seconds(machine: Machine, work: float, area: float, examples: int, passes: int, processes: int) -> float:
    """Of an epoch, roughly.

    Args:
        work: GMAC of the dense network for an image.
        area: of a picture, in pixels.
        passes: of the epoch.
        processes: on this machine; a GPU is one's own, cores they share.
    """
    reading = _READ_SECONDS + _READ_SECONDS_A_MEGAPIXEL * area / 1e6
    if machine.kind == "cuda":
        launching = passes * (_PASS_SECONDS["cuda"] if processes == 1 else _PASS_SECONDS_OF_SEVERAL_GPUS)
        speed = processes * machine.processors * (_A_PROCESSOR if machine.is_bf16 else _A_PROCESSOR_IN_FP32)
        seconds = max(launching, examples * max(work / speed, reading / max(1, machine.cores - processes)))
    else:
        speed = _A_CORE if machine.is_bf16 else _A_CORE_IN_FP32
        seconds = passes * _PASS_SECONDS[machine.kind] + examples * (work / speed + reading) / machine.cores
    return _EPOCH_SECONDS + seconds


def _power_of_two(most: float) -> int:
    return 1 << (max(1, int(most)).bit_length() - 1)
