"""What gives cause for concern in the figures of a pre-training, and what to do about it. Nothing here needs torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

Columns = Mapping[str, Sequence[float]]
"""Column of `metrics.csv` -> its values, epoch by epoch; nan where nothing was measured."""

_FLAT = 0.002  # of the loss: less than that, over a window, is nothing
_NOTHING = 0.9  # plain grey has a loss of 1
_RISEN = 0.02
_GREY = 0.1  # of the true pixels' deviation
_CLIPPED = 0.95
_FELL = 0.5
_LATE = 0.8  # of the epochs: from here on the schedule ends the run, whatever the loss does


def concerns(columns: Columns, epochs: int, warmup_epochs: float, gradient_clip: float) -> Iterator[tuple[str, str]]:
    """(kind, what is wrong and what to do) of all that is wrong after the last epoch of the columns.

    Args:
        columns: `epoch`, `train_loss` and, where measured, `held_out_loss`, `prediction_deviation`, `gradient_norm` and
            `clipped_share`.
        epochs, warmup_epochs: of the whole run.
        gradient_clip: the norm that a step's gradient is cut to.
    """
    begun = [i for i, epoch in enumerate(columns["epoch"]) if epoch > warmup_epochs]
    values = {name: [column[i] for i in begun] for name, column in columns.items()}
    for kind, text in (
        ("flat", _flat(values, epochs)),
        ("rising", _rising(values, epochs)),
        ("grey", _grey(values, epochs)),
        ("clipped", _clipped(values, epochs, gradient_clip)),
    ):
        if text is not None:
            yield kind, text


def collapsed(ranks: Sequence[float]) -> str | None:
    """What is wrong with the effective ranks measured so far in the training; None if nothing.

    A single low one may be chance: two in a row count.
    """
    ranks = [rank for rank in ranks if math.isfinite(rank)]
    if len(ranks) < 3 or max(ranks[-2:]) > _FELL * max(ranks):
        return None
    return (
        f"the features collapse: their effective rank was {max(ranks):.1f} and is {ranks[-1]:.1f}, so that pictures "
        "look ever more alike to the network. Try half the --learning-rate or a longer --warmup-epochs; --keep-epochs "
        "keeps earlier weights"
    )


def _flat(values: Columns, epochs: int) -> str | None:
    window, losses = max(5, epochs // 10), values["train_loss"]
    if len(losses) <= window or values["epoch"][-1] > _LATE * epochs:
        return None
    before, now = min(losses[:-window]), min(losses[-window:])
    if now < (1 - _FLAT) * before:
        return None
    what = f"the training loss is flat: {now:.4f} at best in the last {window} epochs, {before:.4f} before. "
    if now > _NOTHING:
        return what + (
            "Nothing is learnt yet: look at pictures/last.png, try a --learning-rate three times as high or as low, "
            "and see that the pictures are what you think (convspark scan)"
        )
    return what + (
        "It has learnt what it can at this rate: go on only if knn and linear in watch.csv (with --probe) still rise; "
        "a larger network or more pictures take it further than more epochs"
    )


def _rising(values: Columns, epochs: int) -> str | None:
    rows = zip(values["epoch"], values.get("held_out_loss", ()), values["train_loss"], strict=False)
    rows = [(epoch, held_out, train) for epoch, held_out, train in rows if math.isfinite(held_out)]
    window = max(3, epochs // 10)
    if len(rows) < 2 * window:
        return None
    # Medians of as many epochs: that of a single epoch is partly luck, where few pictures are held out.
    held_out = [row[1] for row in rows]
    medians = [median(held_out[end - window : end]) for end in range(window, len(rows) + 1)]
    epoch, best, train = min(rows, key=lambda row: row[1])
    late = held_out[-window:]
    if medians[-1] < (1 + _RISEN) * min(medians) or min(late) < (1 + _RISEN) * best or rows[-1][2] > train:
        return None
    return (
        f"the held-out loss rises while the training loss falls: {best:.4f} in epoch {epoch:.0f}, {late[-1]:.4f} now: "
        "the network learns these pictures by heart. More pictures, a wider --crop-scale (0.2,1) or fewer --epochs "
        "help; so does starting from weights that exist (--init)"
    )


def _grey(values: Columns, epochs: int) -> str | None:
    window = max(3, epochs // 20)
    deviations = values.get("prediction_deviation", ())[-window:]
    if len(deviations) < window or not all(deviation < _GREY for deviation in deviations):
        return None
    return (
        f"the reconstructions are grey: what is predicted varies {100 * deviations[-1]:.1f} % as much as the pictures "
        "do. See pictures/last.png; try a higher --learning-rate, fewer masked patches (--mask-ratio 0.5), and "
        "pictures that are not plain themselves"
    )


def _clipped(values: Columns, epochs: int, gradient_clip: float) -> str | None:
    window = max(3, epochs // 10)
    shares = values.get("clipped_share", ())[-window:]
    if len(shares) < window or not all(share >= _CLIPPED for share in shares):
        return None
    norm = values["gradient_norm"][-1]
    return (
        f"the gradient is cut to --gradient-clip {gradient_clip:g} in nearly every step (its norm is {norm:.3g}), so "
        f"that hard and easy batches weigh alike: try --gradient-clip {2 * norm:.2g}, or half the --learning-rate "
        "where the norm keeps growing"
    )
