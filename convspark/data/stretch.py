"""From samples of any depth to pictures of 8 bits."""

import numpy as np
from PIL import Image


def picture_of(
    samples: np.ndarray,
    opacity: np.ndarray | None = None,
    *,
    white: float | None = None,
    missing: float | None = None,
    inverted: bool = False,
) -> Image.Image:
    """A grey or RGB picture of samples (H, W, C), on white where it is transparent.

    Samples are stretched from their own darkest to their own brightest finite value, all colours alike. What is no
    number comes out darkest, infinities as the ends of the range.

    Args:
        samples: of any type but complex; C is 1 or 3.
        opacity: (H, W), from 0 to 1. What is not seen at all does not count for the range.
        white: the value of white, where black is 0 and nothing is to be stretched.
        missing: value that stands for no number.
        inverted: the lowest value is white.

    Raises:
        ValueError: no finite value.
    """
    values = samples.astype(np.float32 if samples.itemsize <= 2 else np.float64)
    absent = np.isnan(values) if missing is None else np.isnan(values) | (samples == missing)
    low, high = 0.0, white
    if high is None:
        known = np.isfinite(values) & ~absent
        counted = values[known if opacity is None else known & (opacity > 0)[..., None]]
        if not counted.size:
            raise ValueError("no finite value")
        low, high = float(counted.min()), float(counted.max())
    half = high / 2 - low / 2  # of the range, which as a whole may be no finite number
    share = (values / 2 - low / 2).clip(0, half) / (half or 1)
    share = np.where(absent, 0, 1 - share if inverted else share)
    if opacity is not None:
        share = share * opacity[..., None] + (1 - opacity[..., None])
    levels = np.rint(255 * share).astype(np.uint8)
    return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
