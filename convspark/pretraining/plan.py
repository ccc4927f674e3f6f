"""From the arguments of a run to what it consists of: settings resolved, network built and proved, images found."""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader

from ..data import list_images
from ..errors import UsageError
from ..model.spark import SparK
from ..model.strides import as_setting, as_text
from ..runs import settings
from ..runs.device import choose_device, choose_precision, default_workers, describe_device, describe_precision
from ..runs.folder import RunFolder, read_config
from ..runs.loading import Images, TrainLoader, find_images, held_out_loader, reopen_images, train_dataset
from ..runs.optimizer import build_optimizer, default_learning_rate, parameter_groups
from ..runs.schedule import Schedule
from ..seeds import Use, counted_seed
from .build import build_model, initialise, named_backbone
from .compile import check_compiler, compiled
from .module import PretrainModule

logger = logging.getLogger(__name__)

# What is not a setting of the run itself, and may differ when it goes on.
NOT_SETTINGS = ("out", "resume")
_MAY_CHANGE = ("device", "workers", "compile", "checkpoint_minutes")


@dataclass
class Plan:
    """A run that could start now.

    Attributes:
        config: every setting, resolved; what `config.yaml` holds.
        resumes: the run folder that goes on, or None.
    """

    config: dict[str, Any]
    resumes: RunFolder | None
    model: SparK
    images: Images
    numbers: settings.Numbers
    device: torch.device
    precision: str
    workers: int

    @property
    def size(self) -> tuple[int, int]:
        return settings.parse_size(self.config["size"])

    @property
    def model_name(self) -> str:
        return self.config["model"] or type(self.model.backbone).__name__

    def schedule(self) -> Schedule:
        c = self.config
        decay = (c["weight_decay"], c["final_weight_decay"])
        return Schedule(c["learning_rate"], self.numbers.steps, self.numbers.warmup_steps, decay)

    def module(self) -> PretrainModule:
        c = self.config
        untrained = frozenset(f"backbone.{name}" for name in self.model.untrained)
        make = partial(_make_optimizer, self.model, untrained, c["optimizer"], tuple(c["betas"]), c["gradient_clip"])
        forward = compiled(self.model) if c["compile"] else None
        return PretrainModule(self.model, make, self.schedule(), c["seed"], forward)

    def train_loader(self) -> TrainLoader:
        c = self.config
        dataset = train_dataset(
            self.images,
            self.size,
            c["mean"],
            c["std"],
            crop_scale=tuple(c["crop_scale"]),
            flip=c["flip"],
            crops_per_image=c["crops_per_image"],
            seed=c["seed"],
        )
        pin = self.device.type == "cuda"
        n = self.numbers
        return TrainLoader(dataset, n.batch_size, n.accumulate, c["seed"], self.workers, pin)

    def held_out_loader(self) -> DataLoader[Any] | None:
        c = self.config
        batch_size = min(64, self.numbers.images_a_pass)
        return held_out_loader(self.images, self.size, c["mean"], c["std"], batch_size, self.workers)

    def describe(self) -> list[str]:
        """The effective numbers, for the log."""
        n, c = self.numbers, self.config
        kept = self.images.held_out
        side = self.model.grid_shape(self.size)
        patches = side[0] * side[1]
        visible = round(patches * (1 - self.model.mask_ratio))
        parameters = sum(p.numel() for p in self.model.parameters())
        backbone = sum(p.numel() for p in self.model.backbone.parameters())
        epochs = c["epochs"]
        accumulated = f" in {n.accumulate} passes" if n.accumulate > 1 else ""
        crops = f", {c['crops_per_image']} crops of each" if c["crops_per_image"] > 1 else ""
        lines = [
            f"network   {self.model_name}, {backbone / 1e6:.1f} M parameters, "
            f"{(parameters - backbone) / 1e6:.1f} M more in the decoder",
            f"images    {len(self.images.train)} to train on{crops}, {len(kept) if kept else 0} held out, "
            f"{len(self.images.bad)} unreadable",
            f"size      {self.size[0]}x{self.size[1]} pixels, patches of {as_text(self.model.patch_size)}: "
            f"{visible} of {patches} visible",
            f"training  {epochs} epochs of {n.steps_per_epoch} steps, batch {n.batch_size}{accumulated}, "
            f"{n.warmup_steps} steps of warm-up",
            f"optimiser {c['optimizer']}, learning rate {c['learning_rate']:.3g}, weight decay {c['weight_decay']:g} "
            f"to {c['final_weight_decay']:g}",
            f"device    {describe_device(self.device)}, {describe_precision(self.precision, self.device)}, "
            f"{self.workers} workers"
            f"{', compiled' if c['compile'] else ''}",
        ]
        if self.model.untrained:
            lines.append(f"untrained {', '.join(self.model.stages.untrained_parts)} (behind the deepest stage)")
        return lines


def make_plan(arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> Plan:
    """Resolve the arguments of `pretrain`, build and prove the network, find the images.

    Args:
        arguments: every argument, by name.
        defaults: what each is when it is not given.

    Raises:
        ConvsparkError: whatever is wrong with them; nothing was written yet.
    """
    given = dict(arguments)
    resumes = None
    if given["resume"] is not None:
        resumes = RunFolder.open(given["resume"], "pretrain")
        config = _resumed_config(given, defaults, resumes)
    else:
        if given["out"] is not None:
            RunFolder(given["out"]).check_new()
        config = {name: value for name, value in given.items() if name not in NOT_SETTINGS}
    _check(config)
    if resumes is None:
        _look_for_images(given["images"])
    device = choose_device(config["device"])
    precision = choose_precision(config["precision"], device)
    if config["compile"]:
        check_compiler(device)

    torch.manual_seed(counted_seed(config["seed"], Use.INITIAL_WEIGHTS))
    backbone = _backbone(given["model"], config)
    if config["model"]:
        config["drop_path"] = settings.drop_path_of(config)
    starts_anew = resumes is None or not resumes.last_checkpoint.is_file()
    if config["init"] is not None and starts_anew:
        logger.info("%s", initialise(backbone, config["init"]))
    model = build_model(config, backbone)
    if len(model.image_size) != 2:
        raise UsageError(f"model is {type(backbone).__name__}, a network for volumes; this command takes pictures")
    if device.type != "mps":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    if resumes is not None:
        images = reopen_images(resumes, given["images"], config)
    else:
        chosen = {name: config[name] for name in ("held_out", "held_out_most", "seed")}
        images = find_images(given["images"], **chosen)
    numbers = settings.count(
        len(images.train) * config["crops_per_image"],
        config["batch_size"],
        config["epochs"],
        config["warmup_epochs"],
        config["accumulate"],
    )
    config |= _resolved(config, model, numbers, images, precision)
    workers = default_workers(device) if config["workers"] is None else config["workers"]
    return Plan(config, resumes, model, images, numbers, device, precision, workers)


def dump_config(config: Mapping[str, Any], comment: str = "") -> str:
    """Settings as YAML, under a comment."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + yaml.safe_dump(_plain(dict(config)), sort_keys=False, default_flow_style=None, allow_unicode=True)


def _make_optimizer(
    model: SparK, untrained: frozenset[str], kind: Any, betas: tuple[float, float], clip: float
) -> torch.optim.Optimizer:
    return build_optimizer(parameter_groups(model, untrained), kind, betas, clip)


def _resumed_config(given: Mapping[str, Any], defaults: Mapping[str, Any], run: RunFolder) -> dict[str, Any]:
    """The settings of a run that goes on: its own, but for what belongs to the machine."""
    config = {**defaults, **read_config(run)}
    for name in NOT_SETTINGS:
        config.pop(name, None)
    objects = [name for name in ("images", "model") if not isinstance(given[name], str | None)]
    allowed = ("resume", *_MAY_CHANGE, *objects)
    changed = [
        name
        for name, value in given.items()
        if name not in allowed and value != defaults[name] and value != config.get(name)
    ]
    if changed:
        raise UsageError(
            f"{run.path} goes on with its own settings: leave out {_flags(changed)} (only {_flags(_MAY_CHANGE)} may "
            "differ), or start a new run"
        )
    config |= {name: given[name] for name in _MAY_CHANGE if given[name] != defaults[name]}
    return config


def _flags(names: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def _check(config: Mapping[str, Any]) -> None:
    """What can be seen to be wrong without building or reading anything."""
    settings.parse_size(config["size"])
    settings.check_shares(drop_path=config["drop_path"])
    settings.check_positive(
        learning_rate=config["learning_rate"],
        base_learning_rate=config["base_learning_rate"],
        gradient_clip=config["gradient_clip"],
        checkpoint_minutes=config["checkpoint_minutes"],
        crops_per_image=config["crops_per_image"],
    )
    for name in ("keep_epochs", "picture_epochs", "workers", "held_out_most", "seed", "weight_decay"):
        if config[name] is not None and config[name] < (1 if name == "keep_epochs" else 0):
            raise UsageError(f"{name} is {config[name]}: expected a number that is not negative")
    if config["betas"] is not None:
        settings.check_shares(**{f"betas[{i}]": beta for i, beta in enumerate(config["betas"])})
    if config["learning_rate"] is not None and config["base_learning_rate"] is not None:
        raise UsageError("learning_rate and base_learning_rate exclude each other: give one of them")
    low, high = config["crop_scale"]
    if not 0 < low <= high <= 1:
        raise UsageError(f"crop_scale is {[low, high]}: expected two shares of the area, 0 < smallest <= largest <= 1")
    tracker = config["tracker"]
    if tracker != "none" and find_spec(tracker) is None:
        raise UsageError(f"tracker is {tracker!r}, which is not installed: pip install 'convspark[{tracker}]'")
    settings.count(1 << 62, config["batch_size"], config["epochs"], config["warmup_epochs"], config["accumulate"])


def _look_for_images(images: Any) -> None:
    """A folder that is not there is found out before the network is built."""
    if images is None:
        raise UsageError("images are missing: give a folder of pictures, or a text file with one path a line")
    if isinstance(images, str | os.PathLike) and not os.path.exists(images):
        list_images(images)  # raises, and suggests the nearest name


def _backbone(model: Any, config: dict[str, Any]) -> nn.Module:
    if isinstance(model, nn.Module):
        config["model"] = None
        return model
    return named_backbone(config)


def _resolved(
    config: Mapping[str, Any], model: SparK, numbers: settings.Numbers, images: Images, precision: str
) -> dict[str, Any]:
    """The values of settings that were left to be chosen."""
    mean, std = settings.normalisation(model.in_chans, config["mean"], config["std"])
    rate = config["learning_rate"]
    if rate is None and config["base_learning_rate"] is not None:
        rate = config["base_learning_rate"] * numbers.batch_size / 256
    warmup, epochs = config["warmup_epochs"], config["epochs"]
    betas = config["betas"] or ((0.9, 0.999) if model.densify_norm == "layer" else (0.9, 0.95))
    pictures = config["picture_epochs"]
    return {
        "images": str(config["images"]) if isinstance(config["images"], str | os.PathLike) else None,
        "batch_size": numbers.batch_size,
        "size": settings.format_size(settings.parse_size(config["size"])),
        "channels": model.in_chans,
        "patch_size": as_setting(model.patch_size),
        "decoder_width": model.decoder_width,
        "densify_norm": model.densify_norm,
        "learning_rate": default_learning_rate(numbers.steps) if rate is None else rate,
        "base_learning_rate": None,
        "warmup_epochs": settings.default_warmup_epochs(epochs) if warmup is None else warmup,
        "betas": tuple(betas),
        "mean": mean,
        "std": std,
        "held_out": config["held_out"] if isinstance(config["held_out"], int | float | str) else None,
        "picture_epochs": max(1, epochs // 10) if pictures is None else pictures,
        "precision": precision,
    }


def _plain(value: Any) -> Any:
    """Nested values as YAML knows them: no tuples."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
