"""What a fine-tuning chooses by default: the paper's recipe, scaled to the data at hand; no torch here."""

import math

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
