"""From the figures of several runs to a sentence that says no more than they do."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...names import many, shown_in_markdown


@dataclass(frozen=True)
class Score:
    """One initialisation at one share of the labels.

    Attributes:
        arm: the initialisation.
        fraction: share of the labels; `labels` is their number.
        values: measure -> one value a seed, from 0 to 1; `seeds` in the same order.
    """

    arm: str
    fraction: float
    labels: int
    seeds: list[int]
    values: dict[str, list[float]]


@dataclass(frozen=True)
class Difference:
    """Top-1 of the pre-trained weights minus another initialisation's, in points (percent of the pictures), by seed.

    Attributes:
        mean, deviation: over the seeds; `deviation` is None for a single one.
        low, high: 95 % interval of the mean, over seeds and pictures (see `difference`); None for a single seed.
    """

    other: str
    fraction: float
    labels: int
    points: list[float]
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


def summarise(arm: str, fraction: float, labels: int, by_seed: Mapping[int, Mapping[str, float]]) -> Score:
    """The figures of one cell, by seed."""
    seeds = sorted(by_seed)
    values = {name: [by_seed[seed][name] for seed in seeds] for name in by_seed[seeds[0]]}
    return Score(arm, fraction, labels, seeds, values)


def difference(ours: Score, theirs: Score, gains: Sequence[Mapping[str, int]]) -> Difference:
    """Paired by seed: the two have the same labels, order and augmentation.

    Other seeds would give another mean, and so would other pictures to measure on. With s seeds, n pictures, `a` the
    variance of the seeds' differences divided by s, and `b` that of the pictures' (each the mean over seeds) divided by
    n, the mean has the variance a + b at most, with Satterthwaite's degrees of freedom. The interval is that of
    Student's t for it, or the paired t-test's over the seeds alone, whichever is wider: two or three seeds that agree
    by chance do not make it narrow.

    Args:
        gains: of each seed in `ours`, by picture: 1 where ours alone is right, -1 where theirs alone is, else 0.
    """
    paired = dict(zip(theirs.seeds, theirs.values["top1"], strict=True))
    points = [100 * (a - paired[s]) for s, a in zip(ours.seeds, ours.values["top1"], strict=True) if s in paired]
    mean = statistics.fmean(points)
    if len(points) < 2:
        return Difference(theirs.arm, ours.fraction, ours.labels, points, mean, None, None, None)
    deviation = statistics.stdev(points)
    half = _half_width(points, gains)
    low, high = max(-100.0, mean - half), min(100.0, mean + half)  # at most all pictures differ
    return Difference(theirs.arm, ours.fraction, ours.labels, points, mean, deviation, low, high)


def _half_width(points: Sequence[float], gains: Sequence[Mapping[str, int]]) -> float:
    from scipy.stats import t

    of_picture: dict[str, list[int]] = {}
    for gained in gains:
        for picture, gain in gained.items():
            of_picture.setdefault(picture, []).append(gain)
    by_picture = [100 * statistics.fmean(gains_of_picture) for gains_of_picture in of_picture.values()]
    seeds, pictures = len(points), len(by_picture)
    a = statistics.variance(points) / seeds
    b = statistics.variance(by_picture) / pictures if pictures > 1 else 0.0
    half = float(t.ppf(0.975, seeds - 1)) * math.sqrt(a)
    if b == 0:
        return half
    freedom = (a + b) ** 2 / (a**2 / (seeds - 1) + b**2 / (pictures - 1))
    return max(half, float(t.ppf(0.975, freedom)) * math.sqrt(a + b))


def sentence(gain: Difference, pictures: int, split: str, pretrained_on: int | None = None) -> str:
    """What a difference says, and how surely.

    Args:
        pictures, split: what was measured on.
        pretrained_on: images of the pre-training, if known.
    """
    training = "Pre-training" if pretrained_on is None else f"Pre-training on {pretrained_on:,} images"
    to = {"random": "random weights", "imagenet": "ImageNet weights"}.get(gain.other, gain.other)
    at = f"at {100 * gain.fraction:g} % of the labels ({many(gain.labels, 'picture')})"
    n = len(gain.points)
    if gain.deviation is None or gain.low is None or gain.high is None:
        return (
            f"{training} gave {gain.mean:+.1f} points over {to} {at} in a single run, on {pictures} {split} "
            "pictures; one run cannot tell that from chance: use more --seeds."
        )
    spread = f"{gain.mean:+.1f} ± {gain.deviation:.1f} points (mean and standard deviation of {n} paired runs)"
    interval = f"95 % interval {gain.low:+.1f} to {gain.high:+.1f}, for other runs and other pictures alike"
    where = f"on {pictures} {split} pictures"
    if gain.other != "random" and (gain.low > 0 or gain.high < 0):
        return f"{training} did {'better' if gain.low > 0 else 'worse'} than {to} {at}: {spread}, {where}; {interval}."
    if gain.low > 0:
        return f"{training} helped: {spread} over {to} {at}, {where}; {interval}."
    if gain.high < 0:
        return f"{training} harmed: {spread} against {to} {at}, {where}; {interval}."
    signs = {math.copysign(1, p) for p in gain.points if p}
    alike = f", though all {n} runs point the same way" if len(signs) == 1 and 0 not in gain.points else ""
    return f"{training} made no certain difference to {to} {at}: {spread}, {where}; {interval}; it includes 0{alike}."


def markdown(
    scores: Sequence[Score], differences: Sequence[Difference], verdict: Sequence[str], split: str, pictures: int
) -> str:
    """Table and verdict."""
    runs = max(len(score.seeds) for score in scores)
    spread = f", mean ± standard deviation of {runs} runs" if runs > 1 else ", of a single run"
    fractions = sorted({score.fraction for score in scores})
    labels = {score.fraction: score.labels for score in scores}
    head = [f"{100 * f:g} % of the labels ({labels[f]})" for f in fractions]
    lines = [
        f"Top-1 accuracy (and balanced accuracy) on {pictures} {split} pictures, in %{spread}",
        "",
        f"| start | {' | '.join(head)} |",
        f"|---|{'---|' * len(head)}",
    ]
    for arm in dict.fromkeys(score.arm for score in scores):
        cells = [next((_cell(s) for s in scores if (s.arm, s.fraction) == (arm, f)), "") for f in fractions]
        lines.append(f"| {shown_in_markdown(arm)} | {' | '.join(cells)} |")
    for other in dict.fromkeys(pair.other for pair in differences):
        cells = [next((_gain(d) for d in differences if (d.other, d.fraction) == (other, f)), "") for f in fractions]
        lines.append(f"| gain over {shown_in_markdown(other)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *verdict])


def _cell(score: Score) -> str:
    return f"{_spread(score.values['top1'])} ({_spread(score.values['balanced'])})"


def _gain(gain: Difference) -> str:
    return f"{gain.mean:+.1f}" + ("" if gain.deviation is None else f" ± {gain.deviation:.1f}")


def _spread(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"
