"""A pre-training, carried out: trained, exported, its figures read."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from ..checkpoints.card import card_of
from ..checkpoints.to_timm import ExportReport, export_timm
from ..errors import ConvsparkError
from ..files import write_text, written_whole
from ..model.strides import as_text
from ..names import many
from ..report.page import write_page_at_last
from ..runs.callbacks import Metrics
from ..runs.fit import fit
from ..runs.folder import command_line
from ..runs.run import Run
from ..runs.warned import Warned
from .pace import Pace
from .pictures import Pictures
from .plan import Plan, make_plan
from .settings import PretrainResult, PretrainSettings

logger = logging.getLogger(__name__)


class Pretraining:
    """A plan, and how it is carried out: the job of `pretrain`."""

    def __init__(self, run: Run[PretrainSettings]) -> None:
        self.plan = make_plan(run)
        self.settings = self.plan.settings
        self.device = self.plan.device

    @property
    def name(self) -> str:
        return self.plan.name

    def describe(self) -> list[str]:
        return self.plan.describe()

    def begin(self, run: Run[PretrainSettings]) -> None:
        """Write the lists of files, which a run that goes on reads."""
        if run.last_checkpoint is not None and not run.moved:
            return
        self.plan.images.write_lists(run.folder)
        run.keep_places()
        if self.settings.masks.endswith(".npy") and not run.folder.masks.is_file():
            with written_whole(run.folder.masks) as temporary:
                temporary.write_bytes(Path(self.settings.masks).read_bytes())
        if self.plan.statistics is not None:
            text = json.dumps(self.plan.statistics.as_dict(), indent=2)
            write_text(run.folder.statistics, text + "\n")

    def train(self, run: Run[PretrainSettings]) -> None:
        """Train to the end."""
        plan, s, folder = self.plan, self.settings, run.folder
        loader, held_out = plan.train_loader(run.here), plan.held_out_loader(run.here)
        pictures, warned = plan.shown_images(), Warned(folder)
        plan.model.train()
        stretch = not plan.images.pixels.is_plain
        self._metrics = fit(
            plan.module(),
            folder,
            loader,
            held_out,
            here=run.here,
            last=run.last_checkpoint if run.here.is_first else None,
            device=plan.device,
            precision=plan.precision,
            epochs=plan.numbers.epochs,
            gradient_clip=s.gradient_clip if s.optimizer == "adamw" else None,
            callbacks=[
                Pictures(folder, pictures, plan.mean, plan.std, plan.picture_epochs, show=s.show, stretch=stretch),
                plan.watch(folder, held_out, warned, run.here),
                *([Pace(plan.choices.seconds, warned)] if "epochs" in plan.choices.settings else []),
            ],
            warned=warned,
            checkpoint_minutes=s.checkpoint_minutes,
            keep_epochs=s.keep_epochs,
            tracker=s.tracker,
            go_on=(
                folder.going_on
                if plan.images.are_files
                else f"convspark.pretrain(images, resume={str(folder.path)!r}), in Python, with its datasets"
            ),
        )

    def finish(self, run: Run[PretrainSettings]) -> PretrainResult:
        """Export the backbone, and write the page about the run."""
        folder, row = run.folder, _last_row(self._metrics, run)
        export = _export(self.plan, run, row)
        write_page_at_last(folder, PretrainSettings)
        picture = folder.pictures / "last.png"
        return PretrainResult(
            folder=folder.path,
            export=export,
            epochs=int(row["epoch"]),
            steps=int(row["step"]),
            train_loss=float(row["train_loss"]),
            held_out_loss=float(row["held_out_loss"]) if row.get("held_out_loss") else None,
            seconds=run.seconds,
            picture=picture if picture.is_file() else None,
        )


def _last_row(metrics: Metrics, run: Run[PretrainSettings]) -> Mapping[str, str]:
    """The last row, read now if the run was complete already and so nothing was trained."""
    if not metrics.last:
        metrics.read()
    if not all(metrics.last.get(name) for name in ("epoch", "train_loss")):
        raise ConvsparkError(
            f"the run {run.folder.path} is complete, but its {run.folder.metrics.name} is gone or torn; what was "
            f"trained is in {run.folder.export}"
        )
    return metrics.last


def _export(plan: Plan, run: Run[PretrainSettings], last: Mapping[str, str]) -> ExportReport:
    s, numbers = plan.settings, plan.numbers
    share = f"those of {s.masks}" if s.masks.endswith(".npy") else f"{s.mask_ratio:g} of the patches, {s.masks}"
    card = {
        "pre-trained on": f"{many(numbers.images, 'image')} ({plan.images.description})",
        "epochs": f"{s.epochs}, batch {numbers.batch_size}, {many(numbers.steps, 'step')}",
        "started from": s.init or "random weights",
        "command": f"`{command_line()}`",
        "masks": f"{share}, patches of {as_text(plan.model.patch_size)} pixels",
        **card_of(plan.images.pixels),
        "loss on training images": last.get("train_loss"),
        "loss on held-out images": last.get("held_out_loss") or "not measured",
    }
    report = export_timm(
        plan.model.backbone,
        run.folder.export,
        mean=plan.mean,
        std=plan.std,
        image_size=plan.size,
        untrained=plan.model.untrained,
        pixels=plan.images.pixels,
        card=card,
    )
    by = "timm" if report.architecture else "torch"
    logger.info("export %s: %d tensors, loaded again with %s and equal", report.folder, report.tensors, by)
    return report
