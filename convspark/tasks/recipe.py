"""The recipe of fine-tuning (SparK paper, appendix), scaled to the data at hand; nothing here needs torch."""

import math
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from ..runs.settings import check_positive, check_shares

_MOST_EPOCHS, _FEWEST_EPOCHS = 300, 30
_EPOCHS_OF_ONE_IMAGE = 5000
_LARGEST_BATCH = 64


def default_epochs(images: int) -> int:
    """Epochs for so many images to train on: 300, the paper's, for few, down to 30, as 5000 / sqrt(images)."""
    return round(min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, _EPOCHS_OF_ONE_IMAGE / math.sqrt(images))))


def epochs_at(fraction: float, epochs: int) -> int:
    """Epochs over a share of the images where all of them get `epochs`: more of them, but fewer steps in all."""
    return max(epochs, min(_MOST_EPOCHS, round(epochs / math.sqrt(fraction))))


def default_batch_size(images: int) -> int:
    """64, or for few images a smaller power of two, so that an epoch has at least about eight steps."""
    return max(2, min(_LARGEST_BATCH, 1 << max(1, (max(1, images // 8)).bit_length() - 1)))


def default_learning_rate(optimizer: str, batch_size: int) -> float:
    """Peak rate: AdamW 1e-3 at a batch of 64, by its square root for others; LAMB 8e-3 likewise.

    The paper's rule, linear in the batch (2e-4 for AdamW and 2e-3 for LAMB each 256 images), belongs to batches of
    thousands: at 64 it hardly moves.
    """
    return {"adamw": 1e-3, "lamb": 8e-3}[optimizer] * math.sqrt(batch_size / 64)


def ema_decay(steps: int) -> float:
    """The paper's 0.9999, or for runs below 100,000 steps such that it averages over their last tenth."""
    return min(0.9999, max(0.5, 1 - 10 / steps))


def measure_every(epochs: int) -> int:
    """Epochs between measurements: a divisor of `epochs`, for at most about twenty of them."""
    most = max(1, epochs // 20)
    return max(n for n in range(1, 2 * most + 1) if epochs % n == 0)


def check_training(config: Mapping[str, Any]) -> None:
    """What can be seen to be wrong with the settings of any training here without reading anything."""
    names = ("epochs", "batch_size", "learning_rate", "layer_decay", "checkpoint_minutes")
    check_positive(**{name: config[name] for name in names})
    for name in ("mixup", "cutmix", "weight_decay", "warmup_epochs", "seed", "workers"):
        if config.get(name) is not None and config[name] < 0:
            raise UsageError(f"{name} is {config[name]}: expected a number that is not negative")
    check_shares(drop_path=config["drop_path"])
    if config["layer_decay"] is not None and config["layer_decay"] > 1:
        raise UsageError(f"layer_decay is {config['layer_decay']}: expected a number above 0 and at most 1")


def check(config: Mapping[str, Any]) -> None:
    """What can be seen to be wrong with the settings of `finetune` without reading anything."""
    check_training(config)
    for name in ("mix_share", "erase"):
        if not 0 <= config[name] <= 1:
            raise UsageError(f"{name} is {config[name]}: expected a share from 0 to 1")
    check_shares(smoothing=config["smoothing"])
    if not 0 < config["fraction"] <= 1:
        raise UsageError(f"fraction is {config['fraction']}: expected a share of the labels, above 0 and at most 1")
    low, high = config["crop_scale"]
    if not 0 < low <= high <= 1:
        raise UsageError(f"crop_scale is {[low, high]}: expected two shares of the area, 0 < smallest <= largest <= 1")
