"""What a pre-training has learnt so far, measured while it goes on, and what gives cause for concern."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from ..data import Pixels, blaming
from ..model.stages import Stages, evaluating
from ..names import many
from ..report.metrics import read_metrics
from ..runs.folder import RunFolder
from ..runs.loading import MeasuringLoader
from ..runs.processes import ALONE, Processes
from ..runs.rows import Rows
from ..runs.trackers import track_figures
from ..runs.warned import Warned
from ..tasks.classification.data import Labelled, read_labelled
from ..tasks.classification.network import labelled_loader
from ..tasks.features.frozen import deepest_features, means
from .concerns import collapsed, concerns
from .module import PretrainModule
from .richness import dead_share, effective_rank, moments

logger = logging.getLogger(__name__)

_ENOUGH = 64  # pictures: of fewer the effective rank, which is no higher than their number, says little
_MOST_TRAINED, _MOST_MEASURED = 1000, 500  # labelled pictures: more cost time, and say little more
_NEIGHBOURS = 10
_LOOKS = 50
_SHARE = 0.05  # of the pictures trained on meanwhile; in evaluation each costs about half


def look_every(epochs: int, examples: int, measured: int) -> int:
    """Epochs between looks at the features: fifty looks a run, or fewer where they would cost more than a few per cent.

    Args:
        examples: trained on in an epoch.
        measured: pictures that a look takes.
    """
    affordable = -(-measured // max(1, round(_SHARE * examples)))
    return max(1, epochs // _LOOKS, min(epochs, affordable))


@dataclass(frozen=True)
class ProbePictures:
    """Labelled pictures, of which some train simple classifiers on frozen features and the others measure them.

    Test pictures, where the data have some, are left for the end.
    """

    train: Labelled
    val: Labelled

    @classmethod
    def of(cls, data: str, pixels: Pixels, seed: int) -> "ProbePictures":
        """Out of a labelled folder or CSV file, as `probe` takes it; of many pictures a share.

        Raises:
            DataError, UsageError: see `read_labelled`.
        """
        with blaming("probe"):
            most = _MOST_TRAINED, _MOST_MEASURED
            labelled = read_labelled(data, seed=seed, whole=True, pixels=pixels, most=most)
        return cls(labelled.train, labelled.val)

    def __len__(self) -> int:
        return len(self.train) + len(self.val)


class Probe:
    """Accuracy of simple classifiers on the frozen features of labelled pictures.

    Args:
        size, mean, std, pixels: of the images, as the network takes them.
        here: the processes that share the pictures.
    """

    def __init__(
        self,
        pictures: ProbePictures,
        size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        pixels: Pixels,
        workers: int,
        seed: int,
        here: Processes = ALONE,
    ) -> None:
        parts = {"train": pictures.train, "val": pictures.val}
        self._loaders = {
            name: labelled_loader(part, size, mean, std, workers=workers, here=here, pixels=pixels)
            for name, part in parts.items()
        }
        self._labels = {name: np.array([label for _, label in part]) for name, part in parts.items()}
        self._seed, self._here = seed, here

    def measure(self, stages: Stages, device: torch.device) -> dict[str, float]:
        """Top-1 of each classifier, from 0 to 1, in the first process; all of them call it."""
        features = {name: deepest_features(stages, loader, device, means) for name, loader in self._loaders.items()}
        if not self._here.is_first:
            return {}
        if not all(np.isfinite(values).all() for values in features.values()):  # the run will say so
            return dict.fromkeys(("knn", "linear"), float("nan"))
        features["final"], labels = features["val"], self._labels | {"final": self._labels["val"]}
        from ..tasks.features.classifiers import classify_features  # importing scikit-learn takes a second

        scores = classify_features(features, labels, self._seed, _NEIGHBOURS, "val")
        return {kind: scores[kind]["top1"] for kind in ("knn", "linear")}


class Watch(Callback):
    """Looks at the features at the start, every few epochs and at the end, writes `watch.csv`, and warns.

    Nothing of the training is touched: the modes of its network and the random numbers are
    put back.

    Args:
        epochs: between looks; 0 for none.
        held_out: pictures for what needs no labels, or None.
        probe: or None where there are no labels.
        beside: the stages of the network with the run's random weights, for a run that does not begin with them; None
            where it cannot be built.
        warmup_epochs, gradient_clip: of the run.
        here: the processes that train.
    """

    def __init__(
        self,
        folder: RunFolder,
        epochs: int,
        held_out: MeasuringLoader | None,
        probe: Probe | None,
        beside: Callable[[], Stages] | None,
        warned: Warned,
        *,
        starts_random: bool,
        warmup_epochs: float,
        gradient_clip: float,
        here: Processes = ALONE,
    ) -> None:
        self._folder, self._epochs, self._held_out, self._probe = folder, epochs, held_out, probe
        self._beside, self._warned, self._starts_random = beside, warned, starts_random
        self._warmup_epochs, self._clip, self._here = warmup_epochs, gradient_clip, here
        self._rows = Rows(folder.watch)
        self._random: dict[str, str] = {}
        if held_out is None and probe is None:
            self._epochs = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._epochs:
            return
        self._rows.read(trainer.global_step)
        # The first process decides which of this is done: it reads the file that it writes.
        known, begins = self._here.from_first((bool(self._known()), trainer.global_step == 0 and not self._rows.rows))
        if not known and not (begins and self._starts_random) and self._beside is not None:
            figures = self._measure(self._beside(), pl_module.device)
            self._random = {
                f"{name}_random": f"{value:.6f}" for name, value in figures.items() if name != "dead_channels"
            }
        if begins:
            self._look(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if self._epochs and (epoch % self._epochs == 0 or epoch == trainer.max_epochs):
            self._look(trainer, pl_module, epoch)
        if trainer.is_global_zero:
            columns = read_metrics(self._folder.metrics)
            for kind, text in concerns(columns, trainer.max_epochs or epoch, self._warmup_epochs, self._clip):
                self._warned.tell(trainer, kind, text)

    def _known(self) -> dict[str, str]:
        """The figures of the random weights, from an earlier row."""
        row = self._rows.rows[-1] if self._rows.rows else {}
        known = {name: cell for name, cell in row.items() if name.endswith("_random") and cell}
        self._random = self._random or known
        needed = {"knn_random"} if self._probe is not None else set[str]()
        needed |= {"rank_random"} if self._held_out is not None else set[str]()
        return self._random if needed <= self._random.keys() else {}

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        assert isinstance(pl_module, PretrainModule)
        started = perf_counter()
        figures = pl_module.with_room(lambda: self._measure(pl_module.model.stages, pl_module.device))
        if not trainer.is_global_zero:
            return
        cells = {name: f"{value:.6f}" for name, value in figures.items()}
        if epoch == 0 and self._starts_random:
            self._random = {f"{name}_random": cell for name, cell in cells.items() if name != "dead_channels"}
        row = {"epoch": epoch, "step": trainer.global_step, **cells, **self._random}
        row["seconds"] = f"{perf_counter() - started:.2f}"
        self._rows.add(row)
        self._folder.check_there()
        self._rows.write()
        logger.info("watch, epoch %d: %s  (%s s)", epoch, self._described(figures), row["seconds"])
        track_figures(trainer.loggers, {f"watch/{name}": value for name, value in figures.items()}, trainer.global_step)
        trained = [row for row in self._rows.rows if int(row["epoch"]) > 0]
        text = collapsed([float(row.get("rank") or "nan") for row in trained])
        if text is not None:
            self._warned.tell(trainer, "collapse", text)

    def _measure(self, stages: Stages, device: torch.device) -> dict[str, float]:
        """The figures, in the first process; all of them call it."""
        figures: dict[str, float] = {}
        devices = [device] if device.type == "cuda" else []
        stages.backbone.to(device)
        with evaluating(stages.backbone), torch.random.fork_rng(devices=devices):
            if self._probe is not None:
                figures |= self._probe.measure(stages, device)
            if self._held_out is not None:
                both = deepest_features(stages, self._held_out, device, moments)  # (N, 2, C)
                if self._here.is_first:
                    figures |= dict.fromkeys(("rank", "dead_channels"), float("nan"))
                    if np.isfinite(both).all():
                        figures["rank"] = effective_rank(both[:, 0])
                        figures["dead_channels"] = dead_share(both[:, 0], both[:, 1])
        return figures

    def _described(self, figures: dict[str, float]) -> str:
        random = {name.removesuffix("_random"): float(cell) for name, cell in self._random.items()}
        words: list[str] = []
        for name, title in (("knn", "kNN"), ("linear", "linear")):
            if name in figures:
                beside = f" (random weights {100 * random[name]:.1f})" if name in random else ""
                words.append(f"{title} {100 * figures[name]:.1f} %{beside}")
        if "rank" in figures:
            beside = f" (random weights {random['rank']:.1f})" if "rank" in random else ""
            pictures = _ENOUGH if self._held_out is None else len(self._held_out.images)  # type: ignore[arg-type]
            beside += f", of {many(pictures, 'picture')} at most {pictures}" if pictures < _ENOUGH else ""
            words += [
                f"effective rank {figures['rank']:.1f}{beside}",
                f"{100 * figures['dead_channels']:.1f} % of channels dead",
            ]
        return ", ".join(words)
