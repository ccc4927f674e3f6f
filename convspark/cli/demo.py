"""`convspark demo`."""

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..runs.folder import default_path, going_on
from ..runs.numbers import check_positive, format_seconds
from .arguments import Command

if TYPE_CHECKING:
    from ..pretraining.settings import PretrainResult

# Held out whole; none has a twin among the others.
_HELD_OUT = ("cat", "flower", "coffee")

# Found by trial: what shows the most after a few minutes on two cores. Dilated to a stride of 16, the network sees and
# fills in patches of 16 pixels, 64 in a picture this small. The lean decoder, no worse for the backbone, paints worse
# in so short a time: a loss of 0.80 on the photographs held out instead of 0.65.
SETTINGS: dict[str, Any] = {
    "decoder": "paper",
    "size": 128,
    "model_args": {"output_stride": 16},
    "decoder_width": 128,
    "batch_size": 16,
    "crops_per_image": 32,
    "crop_scale": (0.1, 1.0),
    "workers": 1,
    "watch_epochs": 0,
}
_FEWEST_EPOCHS, _MOST_EPOCHS = 10, 60


def demo(
    *,
    out: str | None = None,
    minutes: float = 4.0,
    epochs: int | None = None,
    model: str = "resnet18",
    seed: int = 0,
    resume: str | None = None,
) -> "PretrainResult":
    """Pre-train a small network on random crops of photographs that come with scikit-image and scikit-learn.

    Nothing is downloaded. A few photographs are held out; the run draws how the network reconstructs them.

    Args:
        out: run folder to make; by default runs/demo-DATE-TIME.
        minutes: roughly how many minutes to train; the number of epochs for that is measured.
        epochs: passes over the crops, instead of minutes.
        model: timm's name of a network that can be dilated to a stride of 16.
        seed: seed of all random numbers.
        resume: folder of a demo that was stopped, to go on with.

    Raises:
        UsageError: the photographs are not installed: pip install 'convspark[demo]'; or settings beside `resume`.
    """
    from ..data import demo_photographs
    from ..pretraining.command import pretrain

    check_positive(minutes=minutes)
    photographs = demo_photographs()
    train = [picture for name, picture in photographs if name not in _HELD_OUT]
    held_out = [picture for name, picture in photographs if name in _HELD_OUT]
    arguments = {**SETTINGS, "held_out": _Pictures(held_out), "model": model, "seed": seed}
    if resume is not None:
        named = {"out": out, "minutes": minutes, "epochs": epochs, "model": model, "seed": seed}
        usual = inspect.signature(demo).parameters
        wrong = [f"--{name}" for name, value in named.items() if value != usual[name].default]
        if wrong:
            raise UsageError(f"{resume} goes on with its own settings: leave out {', '.join(wrong)}")
        return _run(resume, lambda: pretrain(_Pictures(train), held_out=_Pictures(held_out), resume=resume))
    if epochs is None:
        _say(f"Measuring how far about {minutes:g} minutes of training go on this machine; that takes up to a minute …")
        epochs = _epochs_in(minutes, _Pictures(train), arguments)
    folder = out if out is not None else str(default_path("demo"))
    return _run(folder, lambda: pretrain(_Pictures(train), epochs=epochs, out=folder, **arguments))


def _run(folder: str, run: "Callable[[], PretrainResult]") -> "PretrainResult":
    """The result of `run`; on Ctrl-C, the message says how to go on with this command."""
    try:
        return run()
    except KeyboardInterrupt as stopped:
        if not Path(folder).is_dir():
            raise
        first = str(stopped).partition(".")[0] or "Stopped"
        raise KeyboardInterrupt(f"{first}. To go on:\n  {going_on('demo', folder)}") from None


def _epochs_in(minutes: float, pictures: "_Pictures", arguments: dict[str, Any]) -> int:
    """How many epochs fit into so many minutes on this machine, as it is now."""
    from ..pretraining.estimate import estimate

    seconds = estimate(pictures, **{**arguments, "epochs": 1}).total_seconds
    epochs = max(_FEWEST_EPOCHS, min(_MOST_EPOCHS, round(60 * minutes / seconds)))
    few = ", as fewer would show little" if epochs * seconds > 1.5 * 60 * minutes else ""
    _say(f"Training on {len(pictures)} photographs, {epochs} epochs in about {format_seconds(epochs * seconds)}{few}")
    return epochs


def _say(text: str) -> None:
    print(text, file=sys.stderr)


class _Pictures:
    """Pictures in memory, as a dataset."""

    def __init__(self, pictures: list[Any]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Any:
        return self._pictures[index]


def command() -> Command:
    return Command("demo", demo)


def run(arguments: Sequence[str]) -> int:
    from .pretrain import describe

    parser = command()
    result = demo(**parser.values(parser.parse(arguments)))
    print(describe(result))
    print("And with your own pictures:\n  convspark pretrain FOLDER")
    return 0
