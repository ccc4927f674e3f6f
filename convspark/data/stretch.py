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
        if opacity is not None:
            known &= (opacity > 0)[..., None]
        low, high = (
            float(end(values, where=known, initial=start)) for end, start in ((np.min, np.inf), (np.max, -np.inf))
        )
        if low > high:
            raise ValueError("no finite value")
    values /= 2  # the range as a whole may be no finite number
    values -= low / 2
    half = high / 2 - low / 2
    np.clip(values, 0, half, out=values)
    values /= half or 1
    if inverted:
        np.subtract(1, values, out=values)
    values[absent] = 0
    if opacity is not None:
        values *= opacity[..., None]
        values += 1 - opacity[..., None]
    values *= 255
    levels = np.rint(values, out=values).astype(np.uint8)
    return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
