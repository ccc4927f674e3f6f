"""Settings that the user left open: the facts for their choice are gathered here, `measure/choices.py` chooses."""

from math import prod
from typing import Any

import torch
from torch.utils.data import Subset
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoints.origin import find_weights
from ..data.glance import Glance, glance, sample
from ..measure.choices import Choices, Known, Network, choose
from ..model.stages import Stages, evaluating
from ..runs.images import Images
from ..runs.machine import Machine
from ..runs.numbers import parse_size
from .settings import AUTO, PretrainSettings

_USUAL = Glance(224, 224**2, are_grey=False)


def of_weights(settings: PretrainSettings) -> dict[str, Any]:
    """The settings of the network whose weights a run starts from, if they name no network themselves."""
    if settings.init is None or settings.model != AUTO:
        return {}
    origin = find_weights(settings.init)
    return {"model": origin.model, "model_args": settings.model_args or dict(origin.model_args) or None}


def choices_for(
    settings: PretrainSettings, images: Images, machine: Machine, stages: Stages | None, processes: int
) -> Choices:
    """The settings that are left to choose.

    Args:
        stages: of the network, where the settings name one.
        processes: that share each batch.
    """
    s = settings
    if AUTO not in (s.model, s.size) and s.epochs is not None and s.batch_size is not None:
        return Choices()
    size = None if s.size == AUTO else parse_size(s.size)
    typical = _USUAL
    if size is None or s.epochs is None:
        places = sample(len(images.train), are_files=images.are_files)
        some = [images.train[place] for place in places] if images.are_files else Subset(images.train, places)
        typical = glance(images.source(some)) or _USUAL
    return choose(
        Known(len(images.train), typical.short, typical.area, typical.are_grey and s.channels == 3, s.crops_per_image),
        machine,
        network=None if stages is None else Network(_gmac(stages), max(stages.patch_size)),
        size=size,
        epochs=s.epochs,
        batch_size=s.batch_size,
        passes=s.accumulate or 1,
        processes=processes,
        may_dilate=s.model_args is None and s.patch_size is None and s.stages is None,
        may_start_anew=s.init is None,
    )


def _gmac(stages: Stages) -> float:
    """Of the dense network, in 1e9 multiplications, for an image of 224 pixels."""
    size = stages.probe_size
    image = torch.zeros(1, stages.in_chans, *size, dtype=stages.dtype, device=stages.device)
    with evaluating(stages.backbone), torch.no_grad(), FlopCounterMode(display=False) as counted:
        stages(image)
    return counted.get_total_flops() / 2e9 * _USUAL.area / prod(size)
