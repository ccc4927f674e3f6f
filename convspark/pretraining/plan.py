"""From the settings of `pretrain` to the parts of a run: settings resolved, network proved, images found."""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.origin import Origin
from ..checkpoints.to_timm import export_timm
from ..checkpoints.weights import load_backbone_weights
from ..data import (
    Decoder,
    Normalise,
    Pixels,
    PretrainImages,
    Statistics,
    check_shown,
    collate,
    is_missing,
    list_pictures,
    measure,
)
from ..errors import UsageError
from ..measure.choices import Choices
from ..model.masks import KINDS
from ..model.spark import SparK
from ..model.stages import Stages
from ..model.strides import as_setting, as_text
from ..names import many
from ..runs.device import choose_device, choose_precision, default_workers, describe_device, describe_precision
from ..runs.folder import RunFolder, check_processes
from ..runs.graphs import Graphed
from ..runs.images import Images, find_images, first_images, held_out_dataset, reopen_images, train_dataset
from ..runs.loading import MeasuringLoader, TrainLoader
from ..runs.machine import machine_of
from ..runs.numbers import (
    Numbers,
    check_crop_scale,
    check_not_negative,
    check_positive,
    check_shares,
    count,
    default_warmup_epochs,
    format_size,
    normalisation,
    parse_size,
    tell_of_large_passes,
)
from ..runs.optimizer import OptimizerKind, build_optimizer, default_learning_rate, parameter_groups
from ..runs.processes import ALONE, Processes
from ..runs.run import Run
from ..runs.schedule import Schedule
from ..runs.warned import Warned
from ..seeds import Use, counted_seed
from .build import build_model, drop_path_of, named_backbone, pixels_of
from .choose import choices_for, of_weights
from .compile import check_compiler, compiled
from .module import PretrainModule
from .settings import ABLATIONS, AUTO, PretrainSettings
from .watch import Probe, ProbePictures, Watch, look_every

logger = logging.getLogger(__name__)

_MOST_PLACES = 10_000


@dataclass
class Plan:
    """A run that could start now.

    Attributes:
        settings: resolved; what `config.yaml` holds.
        learning_rate: the peak.
        mean, std: of each channel of the images.
        statistics: measured for this run, when it began.
        replays: whether steps are replayed as CUDA graphs, on a GPU.
        picture_epochs: epochs between pictures, 0 for none.
        watch_epochs: epochs between looks at the features, 0 for none.
        probe_pictures: labelled ones for that, or None.
        choices: those that the user left open, in `settings` as well.
    """

    settings: PretrainSettings
    model: SparK
    images: Images
    numbers: Numbers
    device: torch.device
    precision: str
    workers: int
    learning_rate: float
    betas: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    replays: bool
    picture_epochs: int
    watch_epochs: int
    probe_pictures: ProbePictures | None = None
    statistics: Statistics | None = None
    choices: Choices = field(default_factory=Choices)

    @property
    def size(self) -> tuple[int, int]:
        return parse_size(self.settings.size)

    @property
    def name(self) -> str:
        """Of the network, and of the run folder where none was asked for."""
        return str(self.settings.model or type(self.model.backbone).__name__)

    def schedule(self) -> Schedule:
        decay = (self.settings.weight_decay, self.settings.final_weight_decay)
        return Schedule(self.learning_rate, self.numbers.steps, self.numbers.warmup_steps, decay)

    def module(self) -> PretrainModule:
        s = self.settings
        untrained = frozenset(f"backbone.{name}" for name in self.model.untrained)
        make = partial(_make_optimizer, self.model, untrained, s.optimizer, self.betas, s.gradient_clip)
        normalise = Normalise(self.mean, self.std)
        module = PretrainModule(self.model, make, self.schedule(), s.seed, s.gradient_clip, normalise)
        if isinstance(s.model, str):
            record = Origin("", s.model, None, s.model_args or {}, s.size, s.channels, self.mean, self.std)
            module.described = replace(record, pixels=self.images.pixels).as_record()
        if s.compile:
            module.step_loss = compiled(self.model)
        elif self.replays and self.device.type == "cuda":
            module.step_loss = Graphed(module.step_loss, self.model, self.numbers.accumulate)
        return module

    @cached_property
    def train_images(self) -> PretrainImages:
        s = self.settings
        return train_dataset(
            self.images,
            self.size,
            self.mean,
            self.std,
            crop_scale=s.crop_scale,
            flip=s.flip,
            crops_per_image=s.crops_per_image,
            seed=s.seed,
            shuffle=s.shuffle,
            in_bytes=True,
            leaves_coded=s.decode == "device",
        )

    @cached_property
    def held_out_images(self) -> PretrainImages | None:
        return held_out_dataset(self.images, self.size, self.mean, self.std)

    def train_loader(self, here: Processes = ALONE) -> TrainLoader:
        s, n, pin = self.settings, self.numbers, self.device.type == "cuda"
        images, decoder = self.train_images, None
        together = images.transform.collate  # type: ignore[attr-defined]
        if s.decode == "device":
            together = partial(collate, whole=together)
            decoder = Decoder(self.device, self.size, len(self.mean), images.__getitem__)
        return TrainLoader(
            images, n.batch_size, n.accumulate, s.seed, self.workers, pin, together, here, decoder=decoder
        )

    def held_out_loader(self, here: Processes = ALONE) -> MeasuringLoader | None:
        if self.held_out_images is None:
            return None
        batch_size = min(64, self.numbers.images_a_pass)
        return MeasuringLoader(self.held_out_images, batch_size, self.workers, here, cached=True)

    def shown_images(self) -> Tensor:
        """Those to draw: the first held out, or if there are none, the first trained on; (B, C, H, W)."""
        return first_images(self.train_images if self.held_out_images is None else self.held_out_images)

    def watch(self, folder: RunFolder, held_out: MeasuringLoader | None, warned: Warned, here: Processes) -> Watch:
        s, probe = self.settings, None
        if self.probe_pictures is not None and self.watch_epochs:
            pixels = self.images.pixels
            probe = Probe(self.probe_pictures, self.size, self.mean, self.std, pixels, self.workers, s.seed, here)
        return Watch(
            folder,
            self.watch_epochs,
            held_out,
            probe,
            partial(_random_stages, s) if isinstance(s.model, str) else None,
            warned,
            starts_random=s.init is None,
            warmup_epochs=self.numbers.warmup_steps / self.numbers.steps_per_epoch,
            gradient_clip=s.gradient_clip,
            here=here,
        )

    def describe(self) -> list[str]:
        """The effective numbers, for the log."""
        n, s = self.numbers, self.settings
        held_out = self.images.held_out
        held_out_count = 0 if held_out is None else len(held_out)
        side = self.model.grid_shape(self.size)
        patches = side[0] * side[1]
        visible = round(patches * (1 - self.model.mask_ratio))
        masks = "" if s.masks == "random" else f", drawn by {s.masks}"
        visibility = f"{visible} of {patches} visible" if s.masks in KINDS else f"{patches} a picture"
        ablated = [f"{name} {getattr(s, name)}" for name in ABLATIONS if getattr(s, name) != ABLATIONS[name]]
        parameters = sum(p.numel() for p in self.model.parameters())
        backbone = sum(p.numel() for p in self.model.backbone.parameters())
        crops = f", {s.crops_per_image} crops of each" if s.crops_per_image > 1 else ""
        turn = self.images.in_turn
        turns = "" if turn is None else f" in the first of {turn.groups} epochs that show all {len(turn.shards)} files"
        lines = [
            f"network   {self.name}, {backbone / 1e6:.1f} M parameters, "
            f"{(parameters - backbone) / 1e6:.1f} M more in the decoder",
            f"images    {len(self.images.train)} to train on{turns}{crops}, {held_out_count} held out, "
            f"{len(self.images.bad)} unreadable",
            f"size      {self.size[0]}x{self.size[1]} pixels, patches of {as_text(self.model.patch_size)}: "
            f"{visibility}{masks}",
            f"training  {n.in_words}, {many(n.warmup_steps, 'step')} of warm-up",
            f"optimiser {s.optimizer}, learning rate {self.learning_rate:.3g}, weight decay {s.weight_decay:g} "
            f"to {s.final_weight_decay:g}",
            f"device    {describe_device(self.device)}, {describe_precision(self.precision, self.device)}, "
            f"{many(self.workers, 'worker')}"
            f"{', compiled' if s.compile else ''}",
        ]
        if self.watch_epochs:
            pictures, every = self.probe_pictures, self.watch_epochs
            often = f"{'every epoch' if every == 1 else f'every {every} epochs'}"
            labelled = f"{len(pictures.train)} + {len(pictures.val)} labelled pictures" if pictures else "no labels"
            lines.append(f"watching  {often}, {labelled}")
        if self.statistics is not None:
            measured = (
                f"{self.statistics.files} of {many(self.statistics.total, 'file')}, {self.statistics.pixels} pixels"
            )
            lines += [f"values    measured over {measured}", *self.statistics.lines()]
        if ablated:
            lines.append(f"ablated   {', '.join(ablated)}")
        if self.model.untrained:
            lines.append(f"untrained {', '.join(self.model.stages.untrained_parts)} (after the deepest stage)")
        return [*lines, *self.choices.lines()]


def make_plan(run: Run[PretrainSettings]) -> Plan:
    """Resolve the settings of a run, build and prove the network, find the images.

    Raises:
        ConvsparkError: whatever is wrong with them; nothing was written yet.
    """
    s = run.settings
    _check(s)
    if not run.goes_on:
        _look_for_images(s.images)
    device = choose_device(s.device)
    precision = choose_precision(s.precision, device)
    _check_decoder(s, device)
    if s.compile:
        check_compiler(device)

    s, model, images, to_measure, choices = _model_and_images(run, replace(s, **of_weights(s)), device, precision)
    check_shown(s.show, model.in_chans)
    if not images.are_files:
        _refuse_for_dataset(s)
    statistics = None
    if to_measure:
        statistics = measure(images.train, images.pixels, s.seed)
        images = replace(images, pixels=statistics.scaled(images.pixels))
        if s.mean is None:
            s = replace(s, mean=statistics.mean, std=statistics.std)
    numbers = _count(s, images, run.here.count)
    tell_of_large_passes(numbers, run.here.count, s.device_batch_size)
    mean, std = normalisation(model.in_chans, s.mean, s.std)
    if not run.goes_on:
        _check_export(model, mean, std, parse_size(s.size))
    probe_pictures = None if s.probe is None else ProbePictures.of(s.probe, images.pixels, s.seed)
    rate, epochs = _learning_rate(s, numbers), numbers.epochs
    betas = s.betas or ((0.9, 0.999) if model.densify_norm == "layer" else (0.9, 0.95))
    picture_epochs = max(1, epochs // 10) if s.picture_epochs is None else s.picture_epochs
    watch_epochs = s.watch_epochs
    if watch_epochs is None:
        looked_at = (0 if images.held_out is None else len(images.held_out)) + len(probe_pictures or ())
        watch_epochs = look_every(epochs, len(images.train) * s.crops_per_image, looked_at)
    s = replace(
        _resolved(s, model, images.pixels, numbers),
        learning_rate=rate,
        base_learning_rate=None,
        betas=betas,
        mean=list(mean),
        std=list(std),
        watch_epochs=watch_epochs,
        picture_epochs=picture_epochs,
        precision=precision,
    )
    workers = default_workers(device, run.here.local_count) if s.workers is None else s.workers
    return Plan(
        s,
        model,
        images,
        numbers,
        device,
        precision,
        workers,
        rate,
        betas,
        mean,
        std,
        run.here.count == 1 if s.cuda_graph is None else s.cuda_graph,
        picture_epochs,
        watch_epochs,
        probe_pictures,
        statistics,
        choices,
    )


def _model_and_images(
    run: Run[PretrainSettings], s: PretrainSettings, device: torch.device, precision: str
) -> tuple[PretrainSettings, SparK, Images, bool, Choices]:
    """The settings with nothing left open, the model, the images, whether to measure their values, and the choices.

    The choice depends on the images and on the network's stages, and the network may be a part of the choice. What can
    be refused is refused before any picture is looked at.
    """
    torch.manual_seed(counted_seed(s.seed, Use.INITIAL_WEIGHTS))
    backbone = None if s.model == AUTO else _backbone(s)
    model = None if backbone is None or s.size == AUTO else _model(run, s, backbone, device)
    with torch.random.fork_rng(devices=[]):  # a dataset may draw as it likes: the decoder's weights are the same
        stages = None if model is None else model.stages
        if backbone is not None and stages is None:
            stages = Stages(backbone, s.stages, patch_size=s.patch_size, levels=s.levels)
        images, to_measure = _images(run, s, pixels_of(s, s.channels if stages is None else stages.in_chans))
        choices = choices_for(s, images, machine_of(device, precision), stages, run.here.count)
    s = replace(s, **choices.settings)
    model = model or _model(run, s, _backbone(s) if backbone is None else backbone, device)
    return s, model, images, to_measure, choices


def _count(s: PretrainSettings, images: Images, processes: int) -> Numbers:
    assert s.epochs is not None
    examples = len(images.train) * s.crops_per_image
    sizes = examples, s.batch_size, s.epochs, s.warmup_epochs, s.accumulate
    return count(*sizes, processes, device_batch_size=s.device_batch_size)


def _learning_rate(s: PretrainSettings, numbers: Numbers) -> float:
    """The peak: as set, by the batch size, or by the number of steps."""
    if s.learning_rate is not None:
        return s.learning_rate
    if s.base_learning_rate is not None:
        return s.base_learning_rate * numbers.batch_size / 256
    return default_learning_rate(numbers.steps)


def _resolved(s: PretrainSettings, model: SparK, pixels: Pixels, numbers: Numbers) -> PretrainSettings:
    """With what the model, the pixels and the numbers are in the end."""
    return replace(
        s,
        images=_place(s.images),
        model=s.model if isinstance(s.model, str) else None,
        batch_size=numbers.batch_size,
        accumulate=numbers.accumulate,
        size=format_size(parse_size(s.size)),
        channels=model.in_chans,
        patch_size=as_setting(model.patch_size),
        decoder_width=model.decoder_width,
        densify_norm=model.densify_norm,
        drop_path=drop_path_of(s) if isinstance(s.model, str) else s.drop_path,
        warmup_epochs=default_warmup_epochs(numbers.epochs) if s.warmup_epochs is None else s.warmup_epochs,
        bands=None if pixels.bands is None else list(pixels.bands),
        low=None if pixels.low is None else list(pixels.low),
        high=None if pixels.high is None else list(pixels.high),
        held_out=s.held_out if isinstance(s.held_out, int | float) else _file_or_folder(s.held_out),
    )


def _backbone(s: PretrainSettings) -> nn.Module:
    """The network that was passed, or named."""
    return s.model if isinstance(s.model, nn.Module) else named_backbone(s)


def _model(run: Run[PretrainSettings], s: PretrainSettings, backbone: nn.Module, device: torch.device) -> SparK:
    """The model of a run around its network, with the weights that it starts from, proved."""
    if s.init is not None and run.last_checkpoint is None:
        load_backbone_weights(backbone, s.init, s.partial)
    kept_masks = run.goes_on and run.folder.masks.is_file()
    described = replace(s, masks=str(run.folder.masks)) if kept_masks else s
    model = build_model(described, backbone, prove=run.here.is_first)
    if len(model.image_size) != 2:
        raise UsageError(f"model is {type(backbone).__name__}, a network for volumes; this command takes pictures")
    if device.type != "mps":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _images(run: Run[PretrainSettings], s: PretrainSettings, pixels: Pixels) -> tuple[Images, bool]:
    """The images of a run, and whether their values are to be measured."""
    # A run that goes on has all that was measured; plain pictures have no scale.
    to_measure = s.stats == "auto" and (s.mean is None or (s.low is None and not run.goes_on))
    split: dict[str, Any] = {"held_out": s.held_out, "held_out_most": s.held_out_most, "seed": s.seed}
    split |= {"check": s.check, "pixels": pixels, "shards_per_epoch": s.shards_per_epoch}
    if run.goes_on:
        return reopen_images(run.folder, s.images, **split, moved=run.moved), to_measure
    if isinstance(s.images, str | os.PathLike):
        logger.info("looking at the pictures in %s …", os.fspath(s.images))
    return find_images(s.images, **split, to_measure=to_measure), to_measure


def _random_stages(settings: PretrainSettings) -> Stages:
    """Of the network with the random weights that belong to a run, whatever it began with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted_seed(settings.seed, Use.INITIAL_WEIGHTS))
        return build_model(replace(settings, masks="random"), prove=False).stages  # a file of masks may be gone


def _check_export(model: SparK, mean: Sequence[float], std: Sequence[float], size: tuple[int, int]) -> None:
    """Export the backbone once as at the end of the run, so that what is wrong with it shows at the start."""
    with suppress(OSError), TemporaryDirectory() as folder:  # nowhere to try it is no reason not to train
        try:
            export_timm(model.backbone, Path(folder) / "export", mean=mean, std=std, image_size=size)
        except OSError:
            raise
        except Exception as error:  # whatever a network of a user's own raises
            raise UsageError(
                f"model is {type(model.backbone).__name__}, whose weights could not be exported at the end of the run: "
                f"{error}"
            ) from error


def _make_optimizer(
    model: SparK, untrained: frozenset[str], kind: OptimizerKind, betas: tuple[float, float], clip: float
) -> torch.optim.Optimizer:
    return build_optimizer(parameter_groups(model, untrained), kind, betas, clip)


def _check(s: PretrainSettings) -> None:
    """Raise UsageError for what can be seen to be wrong without building or reading anything."""
    if s.size != AUTO:
        parse_size(s.size)
    check_shares(drop_path=s.drop_path)
    check_positive(
        channels=s.channels,
        learning_rate=s.learning_rate,
        base_learning_rate=s.base_learning_rate,
        gradient_clip=s.gradient_clip,
        checkpoint_minutes=s.checkpoint_minutes,
        crops_per_image=s.crops_per_image,
        keep_epochs=s.keep_epochs,
        shards_per_epoch=s.shards_per_epoch,
    )
    check_not_negative(
        watch_epochs=s.watch_epochs,
        picture_epochs=s.picture_epochs,
        held_out_most=s.held_out_most,
        seed=s.seed,
        weight_decay=s.weight_decay,
        final_weight_decay=s.final_weight_decay,
    )
    check_processes(workers=s.workers)
    if s.betas is not None:
        check_shares(**{f"betas[{i}]": beta for i, beta in enumerate(s.betas)})
    if s.learning_rate is not None and s.base_learning_rate is not None:
        raise UsageError("learning_rate and base_learning_rate exclude each other: give one of them")
    check_crop_scale(s.crop_scale)
    if isinstance(s.model, str):
        check_shown(s.show, s.channels)
    if s.stats is not None and (s.mean is None) != (s.std is None):
        raise UsageError("mean and std belong together: give --mean and --std, or neither")
    if s.compile and s.masks not in ("random", "blocks"):
        raise UsageError(
            f"masks is {s.masks!r}: leave out compile, which needs the same number of visible patches in all"
        )
    if isinstance(s.model, str):
        pixels_of(s, s.channels)
        if s.stats is None:
            normalisation(s.channels, s.mean, s.std)
    if s.shards_per_epoch is not None and s.check == "full":
        raise UsageError(
            "check is full and shards_per_epoch is set, with which no picture is looked at beforehand: leave one out"
        )
    if s.tracker != "none" and find_spec(s.tracker) is None:
        raise UsageError(f"tracker is {s.tracker!r}, which is not installed: pip install 'convspark[{s.tracker}]'")
    count(
        1 << 62,
        s.batch_size,
        1 if s.epochs is None else s.epochs,
        None if s.epochs is None else s.warmup_epochs,
        s.accumulate,
        device_batch_size=s.device_batch_size,
    )


def _check_decoder(s: PretrainSettings, device: torch.device) -> None:
    if s.decode == "device" and device.type != "cuda":
        raise UsageError(
            f"decode is 'device', which needs an NVIDIA GPU, but the device is {device}: leave it to the workers"
        )


def _refuse_for_dataset(s: PretrainSettings) -> None:
    """Raise UsageError for settings of files, as the images are a Dataset."""
    of_files = {"bands": s.bands, "band_axis": s.band_axis, "stats": s.stats, "low": s.low, "high": s.high}
    wrong = [name for name, value in of_files.items() if value is not None]
    if wrong:
        raise UsageError(
            f"{', '.join(wrong)}: only for images in files, but images is a {type(s.images).__name__}, whose values "
            "are used unchanged: leave it out, and give mean and std"
        )
    idle = ("shuffle", s.shuffle, "windows"), ("check", s.check, "full"), ("decode", s.decode, "device")
    for name, value, without in idle:
        if value == without:
            logger.warning(
                "%s %r has no effect on a %s: it is for images in files", name, value, type(s.images).__name__
            )


def _look_for_images(images: Any) -> None:
    """Raise UsageError for a folder that is missing, before the network is built."""
    if images is None:
        raise UsageError("images are missing: give a folder of pictures, or a text file with one path a line")
    if isinstance(images, str | os.PathLike) and is_missing(os.fspath(images)):
        list_pictures(images)  # raises, and suggests the nearest name


def _file_or_folder(place: Any) -> str | None:
    return os.fspath(place) if isinstance(place, str | os.PathLike) else None


def _place(images: Any) -> str | list[str] | None:
    """Images as the settings of a run keep them: a place or several; a long list is in a file of its own."""
    if isinstance(images, str | os.PathLike):
        return os.fspath(images)
    if isinstance(images, list | tuple) and len(images) <= _MOST_PLACES and all(isinstance(one, str) for one in images):
        return list(images)
    return None
