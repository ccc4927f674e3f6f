"""`compare`: did pre-training help on this data? Each initialisation x share of the labels x seed, and a verdict."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConvsparkError, DivergedError, UsageError
from ...files import write_text
from ...names import shown_text
from ...runs.folder import RunFolder, write_environment
from ...runs.logs import run_log
from ...runs.run import Run
from ...runs.settings import command
from .. import defaults
from ..classification.command import finetune
from ..classification.settings import FinetuneResult, FinetuneSettings, read_predictions, read_result
from .settings import CompareSettings, Comparison
from .verdict import Difference, difference, sentence, summarise

if TYPE_CHECKING:
    from ...data import Pixels
    from ..classification.data import LabelledData

logger = logging.getLogger(__name__)

PRETRAINED = "pre-trained"


@dataclass(frozen=True)
class _Job:
    arm: str
    weights: str
    model: str | None
    fraction: float
    seed: int
    epochs: int
    folder: Path

    @property
    def work(self) -> float:
        """How long it takes, in comparison."""
        return self.epochs * self.fraction


@command(CompareSettings)
def compare(settings: CompareSettings) -> Comparison:
    """Tell whether pre-training helped on your data: the same fine-tuning from each of several weights, several times.

    Args:
        run: the pre-trained weights: run folder, export folder, or weights file.
        data: folder with a folder for each class, plain or under train/, val/ and test/; CSV list of
            path,label[,split]; or tar files, parquet files or a saved dataset with labels (docs/transfer.md).
        against: what to compare with: random, imagenet (timm's weights for the network, which must be available), or
            any WEIGHTS; by default random.
        fractions: shares of the labels to fine-tune with; by default 0.1 and 1.
        seeds: number of runs for each; a seed draws the labels, the random weights, the order and the augmentation.
        epochs: epochs with all labels; smaller shares get more, by the square root. By default chosen by the number of
            labels.
        batch_size: pictures of a step; by default chosen by the number of labels.
        size: side of the images in pixels; by default that of pre-training.
        out: folder to make; by default runs/compare-DATE-TIME.
        resume: folder of a comparison to go on with.
        model: the network's name, if the weights do not name it.
        partial: go on even if the weights leave most of the network, or all tensors of one kind, random.
        settings: further settings of finetune for all runs, such as {mixup: 0}.
        device: auto, cpu, cuda, cuda:1 or mps.
        workers: processes that load pictures.

    Raises:
        UsageError, DataError, DivergedError, KeyboardInterrupt: as `finetune`.
    """
    from ...report.comparison import accuracy_against_labels
    from ...report.labels import draw_at_last
    from ...report.page import write_page_at_last
    from ...runs.device import choose_device, describe_device
    from ..classification.data import read_labelled
    from .moved import move

    with run_log(only=__name__) as log:
        run = Run(settings)
        settings = run.settings
        settings.check()
        device = choose_device(settings.device)
        if not run.goes_on or settings.epochs is None:
            labelled = read_labelled(settings.data, pixels=_pixels(settings), **_share(settings))
            labelled.as_csv()  # as which the runs will have it
            _check_batch(settings, labelled)
            settings = replace(settings, epochs=settings.epochs or defaults.default_epochs(len(labelled.train)))
        if not run.goes_on:
            _build_all(settings)  # whatever is wrong shows before anything is written
        with run.begun(settings, "compare", log) as folder:
            write_environment(folder, describe_device(device))
            if run.moved:
                move(folder.path, str(settings.data))
                run.keep_places()
            jobs = _jobs(settings, folder.path)
            try:
                results = _carry_out(jobs, settings)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"Stopped. To go on:\n  {folder.going_on}") from None
            except ConvsparkError as error:
                if isinstance(error.__cause__, OSError):  # of the disk: it is the comparison that goes on
                    raise error.__cause__ from None
                raise
            report = _report(jobs, results, folder.path, _pretrained_on(str(settings.run)))
            run.keep(report, "compare.json")
            draw_at_last(partial(accuracy_against_labels, report.scores, folder.path / "compare.png"))
            write_page_at_last(folder, CompareSettings)
            return report


def _arms(settings: CompareSettings) -> dict[str, tuple[str, str | None]]:
    """Of each initialisation, by name, its weights and the `--model` for them.

    The setting `model` belongs to the run; a file is taken to be of the same network.
    """
    from ...checkpoints.origin import RANDOM, find_weights

    run = str(settings.run)
    origin = find_weights(run, settings.model)
    arms: dict[str, tuple[str, str | None]] = {PRETRAINED: (run, settings.model)}
    others = list(dict.fromkeys(settings.against or ["random"]))
    if len({_safe(arm) for arm in (PRETRAINED, *others)}) <= len(others):
        raise UsageError(
            f"against is {settings.against}: two of these, or one of them and {PRETRAINED!r}, would have the same "
            "folder; rename one"
        )
    for other in others:
        # Random weights of the very network, and images as it takes them.
        like = run.removeprefix(RANDOM) if Path(run.removeprefix(RANDOM)).exists() else origin.model
        weights = {"random": f"{RANDOM}{like}", "imagenet": origin.model}.get(other, other)
        is_own = weights in (run, f"{RANDOM}{like}")
        model = settings.model if is_own else origin.model if Path(weights).is_file() else None
        find_weights(weights, model)
        arms[other] = weights, model
    return arms


def _fractions(settings: CompareSettings) -> list[float]:
    return sorted(set(settings.fractions or [0.1, 1.0]))


def _jobs(settings: CompareSettings, folder: Path) -> list[_Job]:
    """All runs, the shortest first, and those of a pair together, so that an early stop still compares something."""
    arms = _arms(settings)
    assert settings.epochs is not None
    return [
        _Job(
            arm,
            weights,
            model,
            fraction,
            seed,
            defaults.epochs_at(fraction, settings.epochs),
            folder / f"{_safe(arm)}-{fraction:g}-seed{seed}",
        )
        for fraction in _fractions(settings)
        for seed in range(settings.seeds)
        for arm, (weights, model) in arms.items()
    ]


def _build_all(settings: CompareSettings) -> None:
    """Load the weights of each initialisation once, so that none turns out to be missing after hours; and make the
    shortest fine-tuning ready to start."""
    from ...checkpoints.origin import find_weights

    first, size = _jobs(settings, Path())[0], _size(settings)
    _make_ready(first.weights, settings.data, **_arguments(first, settings, size))
    for job in {job.weights: job for job in _jobs(settings, Path())}.values():
        origin = find_weights(job.weights, job.model, settings.partial)
        origin.check_size(origin.build(), origin.sides(size))


@command(FinetuneSettings)
def _make_ready(settings: FinetuneSettings) -> None:
    """All of a fine-tuning that comes before its folder is made."""
    from ..classification.train import Classification

    Classification(Run(settings)).describe()


def _size(settings: CompareSettings) -> int | str | None:
    """Of all runs: that of the pre-training where none is asked for."""
    from ...checkpoints.origin import find_weights

    return find_weights(settings.run, settings.model).size if settings.size is None else settings.size


def _check_batch(settings: CompareSettings, labelled: "LabelledData") -> None:
    """Raise UsageError for a batch of more pictures than the smallest share of the labels has."""
    share = min(_fractions(settings))
    pictures = len(labelled.with_fraction(share, 0).train)
    if settings.batch_size is not None and settings.batch_size > pictures:
        raise UsageError(
            f"batch_size is {settings.batch_size}, but {100 * share:g} % of the labels are {pictures} pictures to "
            "train on: choose a smaller --batch-size, or larger --fractions"
        )


def _pretrained_on(run: str) -> int | None:
    """The number of images that a run was pre-trained on, if its folder says it."""
    from ...data.files import names_in

    files = RunFolder(run).train_files
    return len(names_in(files.read_text(encoding="utf-8", errors="surrogateescape"))) if files.is_file() else None


def _carry_out(jobs: Sequence[_Job], settings: CompareSettings) -> list[FinetuneResult]:
    """The result of each job; those that are done already are read."""
    from ...runs.numbers import format_seconds

    results: list[FinetuneResult] = []
    begun, worked = time.monotonic(), 0.0
    size = _size(settings)
    for number, job in enumerate(jobs, start=1):
        result = read_result(job.folder)
        if result is None:
            try:
                result = _finetune(job, settings, size)
            except DivergedError as error:
                raise DivergedError(
                    f"{job.folder}: {error}. For all runs of a new comparison alike: --settings '{{learning_rate: …}}'"
                ) from None
            worked += job.work
            seconds_left = (time.monotonic() - begun) / worked * sum(later.work for later in jobs[number:])
            note = f"{result.seconds:.0f} s, {format_seconds(seconds_left)} left"
        else:
            note = "done before"
        logger.info(
            "%d/%d  %-12s %5.1f %% of the labels (%d), seed %d: top-1 %.1f %%  (%s)",
            number,
            len(jobs),
            job.arm,
            100 * job.fraction,
            result.trained_on,
            job.seed,
            100 * _measured(result)["top1"],
            note,
        )
        results.append(result)
    return results


def _finetune(job: _Job, settings: CompareSettings, size: int | str | None) -> FinetuneResult:
    if RunFolder(job.folder, FinetuneSettings).config.is_file():
        from .moved import is_elsewhere, where_now

        data = str(settings.data) if is_elsewhere(job.folder, where_now(job.folder.parent)) else None
        return finetune(data=data, resume=str(job.folder), device=settings.device, workers=settings.workers)
    return finetune(job.weights, _data_of(job, settings), out=str(job.folder), **_arguments(job, settings, size))


def _arguments(job: _Job, settings: CompareSettings, size: int | str | None) -> dict[str, Any]:
    """Of a fine-tuning, but for its weights, data and folder."""
    return {
        "model": job.model,
        "partial": settings.partial,
        "fraction": job.fraction,
        "seed": job.seed,
        "epochs": job.epochs,
        "batch_size": settings.batch_size,
        "size": size,
        "device": settings.device,
        "workers": settings.workers,
        **(settings.settings or {}),
    }


def _data_of(job: _Job, settings: CompareSettings) -> str:
    """The data of all jobs with a seed: those of the first of them, split, kept in the comparison's folder."""
    from ..classification.data import read_labelled

    file = job.folder.parent / f"data-seed{job.seed}.csv"
    if not file.is_file():
        labelled = read_labelled(settings.data, seed=job.seed, pixels=_pixels(settings), **_share(settings))
        write_text(file, labelled.as_csv())
    return str(file)


def _share(settings: CompareSettings) -> dict[str, Any]:
    """The share to validate with, where it is among the settings of the runs."""
    return {name: value for name, value in (settings.settings or {}).items() if name == "val_share"}


def _pixels(settings: CompareSettings) -> "Pixels":
    """How the run read files."""
    from ...checkpoints.origin import find_weights

    return find_weights(settings.run, settings.model).pixels


def _measured(result: FinetuneResult) -> dict[str, float]:
    """The figures that count: on test pictures of the weights chosen by validation; where there are only validation
    pictures, of the last weights, which were not chosen by them."""
    chosen = {"top1": result.top1, "balanced": result.balanced, "macro_f1": result.macro_f1}
    return chosen if result.split == "test" else {name: result.last[name] for name in chosen}


def _report(
    jobs: Sequence[_Job], results: Sequence[FinetuneResult], folder: Path, pretrained_on: int | None
) -> Comparison:
    from ...checkpoints.origin import find_weights
    from .moved import where_now

    cells: dict[tuple[str, float], list[tuple[int, FinetuneResult]]] = {}
    for job, result in zip(jobs, results, strict=True):
        cells.setdefault((job.arm, job.fraction), []).append((job.seed, result))
    scores = [
        summarise(
            arm,
            fraction,
            by_seed[0][1].trained_on,
            {seed: _measured(result) for seed, result in by_seed},
        )
        for (arm, fraction), by_seed in cells.items()
    ]
    split, pictures = results[0].split, results[0].pictures
    kind = "predicted" if split == "test" else "last"  # of the weights that `_measured` is of
    known = where_now(folder)
    predictions = {
        (job.arm, job.fraction, job.seed): {
            known.get(path, path): answer for path, answer in read_predictions(job.folder, kind).items()
        }
        for job in jobs
    }
    by_cell = {(score.arm, score.fraction): score for score in scores}
    differences: list[Difference] = []
    for score in scores:
        if score.arm != PRETRAINED:
            pairs = [[predictions[arm, score.fraction, s] for arm in (PRETRAINED, score.arm)] for s in score.seeds]
            gains = [{p: ours[p][0] - theirs[p][0] for p in ours.keys() & theirs.keys()} for ours, theirs in pairs]
            differences.append(difference(by_cell[PRETRAINED, score.fraction], score, gains))
    verdict = [sentence(gain, pictures, split, pretrained_on) for gain in differences]
    collapsed = [job.folder.name for job in jobs if _is_collapsed(predictions[job.arm, job.fraction, job.seed])]
    if collapsed:
        verdict.append(f"Collapsed, every picture called the same: {', '.join(collapsed)}. Mistrust these figures.")
    for job in {job.arm: job for job in jobs}.values():
        warning = find_weights(job.weights, job.model).warning()
        verdict += [f"Weights of {job.arm}: {warning}. Mistrust these figures."] if warning else []
    report = Comparison(str(folder), split, pictures, scores, differences, verdict)
    write_text(folder / "compare.md", shown_text(f"{report}\n"))
    return report


def _is_collapsed(predictions: Mapping[str, tuple[bool, str]]) -> bool:
    """Whether all pictures are called the same, and not because they all are."""
    return len({name for _, name in predictions.values()}) < 2 and not all(right for right, _ in predictions.values())


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "_" for c in name)
