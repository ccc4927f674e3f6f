"""Small runs in float64, in as many processes as this is started: `python spread.py PICTURES LABELLED OUT CASE ...`.

The first process writes the losses of each case into OUT/CASE.json.
"""

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from convspark import pretrain
from convspark.pretraining import module, plan, train
from convspark.runs.module import TrainingModule
from convspark.runs.processes import Processes
from convspark.tasks.classification import network as classifying
from convspark.tasks.classification.command import finetune
from convspark.tasks.classification.train import Classification
from convspark.tasks.segmentation import network as segmenting
from convspark.tasks.segmentation.command import segment
from convspark.tasks.segmentation.train import Segmentation
from convspark.tasks.task import Task

TINY = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}
COMMON = {"workers": 0, "device": "cpu", "precision": "fp32", "epochs": 2}
losses: list[float] = []


class Drawing(nn.Module):
    """Draws in every way, and computes a part again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.GELU(), nn.Dropout(0.2))
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout2d(0.2), nn.GELU())
        self.down = nn.Sequential(nn.Conv2d(8, 16, 2, 2), nn.BatchNorm2d(16), nn.GELU())
        self.depth = StochasticDepth(0.3, "row")

    def forward(self, x):
        x = self.stem(x)
        x = x + self.depth(checkpoint(self.block, x, use_reentrant=False))
        return self.down(x + 0.1 * torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype))


def resnet():
    return timm.create_model("resnet10t", drop_path_rate=0.3, num_classes=0, **TINY)


def convnext():
    return timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), drop_path_rate=0.3)


def pretrained(make, **options):
    def run(pictures, labelled, out, **more):
        torch.manual_seed(0)
        settings = {"size": 64, "batch_size": 8, "decoder_width": 32, "picture_epochs": 0, **COMMON, **options, **more}
        return pretrain(None if "resume" in more else pictures, model=make(), out=out, **settings).held_out_loss

    return run


def finetuned(pictures, labelled, out, **more):
    settings = {"size": 32, "batch_size": 8, "drop_path": 0.2, **COMMON, **more}
    return finetune("random:test_resnet", labelled, out=out, **settings).loss


def segmented(pictures, labelled, out, **more):
    where = {"images": f"{labelled}/images", "masks": f"{labelled}/masks"}
    settings = {"size": 32, "batch_size": 4, "drop_path": 0.2, **COMMON, **where, **more}
    return segment("random:test_resnet", out=out, **settings).iou


CASES = {
    "resnet": pretrained(resnet),
    "convnext": pretrained(convnext),
    "accumulate": pretrained(resnet, accumulate=2),
    "drawing": pretrained(Drawing, patch_size=16),
    "finetune": finetuned,
    "segment": segmented,
}


def in_float64(patch: pytest.MonkeyPatch) -> None:
    """Train in float64, and export in float32 again."""
    for room in (module, classifying, segmenting):
        real = room.channels_last
        patch.setattr(room, "channels_last", lambda images, real=real: real(images).to(PRECISION[0]))
    make, fit = plan.Plan.module, Task.fit

    def planned(self):
        PRECISION[0] = torch.float64
        self.model.double()
        return make(self)

    def fitted(self, run, trained, *args, **kwargs):
        PRECISION[0] = torch.float64
        return fit(self, run, trained.double(), *args, **kwargs)

    patch.setattr(plan.Plan, "module", planned)
    patch.setattr(Task, "fit", fitted)
    for job, network in (
        (train.Pretraining, lambda job: job.plan.model),
        (Classification, lambda job: job._module),
        (Segmentation, lambda job: job.network),
    ):

        def finished(self, run, finish=job.finish, network=network):
            PRECISION[0] = torch.float32
            network(self).float()
            return finish(self, run)

        patch.setattr(job, "finish", finished)


PRECISION = [torch.float32]


def main(pictures: str, labelled: str, out: str, *cases: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        run(patch, pictures, labelled, out, *cases)


def run(patch: pytest.MonkeyPatch, pictures: str, labelled: str, out: str, *cases: str) -> None:
    join = TrainingModule.join_losses

    def joined(self):
        join(self)
        losses.append(self.train_loss)

    patch.setattr(TrainingModule, "join_losses", joined)
    in_float64(patch)
    for case in cases:
        losses.clear()
        measured = CASES[case](pictures, labelled, f"{out}/{case}")
        if Processes.here().is_first:
            Path(out, f"{case}.json").write_text(json.dumps([*losses, measured]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
