"""`reconstruct`: what a pre-training makes of masked pictures.

The command line's `convspark reconstruct` is this function. Its module imports no torch by itself.
"""

import os
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError

_MOST = 8


def reconstruct(
    run: str,
    pictures: list[str],
    *,
    output: str = "reconstructions.png",
    mask_ratio: float | None = None,
    seed: int = 0,
    show: list[int] | None = None,
    model: Any = None,
) -> Path:
    """Draw original, masked and reconstructed, a row a picture.

    Args:
        run: run folder of a pre-training.
        pictures: picture files, or folders of them, whose first pictures are taken; eight at most are drawn.
        output: PNG file to write; an existing one is replaced.
        mask_ratio: share of the patches to mask; by default the one trained with.
        seed: of the masks.
        show: three channels, or one, to draw, counted from 1; by default those of the run's own pictures.
        model: a module like the one trained, where that was not a timm network (Python only).

    Raises:
        UsageError: no such run, or no picture.
        DataError: a picture that cannot be read.
    """
    if Path(output).suffix.lower() != ".png":
        raise UsageError(f"output is {output!r}: expected a file that ends in .png")
    if not pictures:
        raise UsageError("pictures are missing: give one or more picture files, or a folder")

    import torch

    from ..data import HeldOutTransform, item_of, list_images
    from ..model.spark import check_mask_ratio
    from ..report.reconstructions import reconstruction_grid
    from ..runs.numbers import normalisation, parse_size
    from ..seeds import Use
    from .build import check_shown, load_run, pixels_of
    from .module import counted_grid

    network, settings = load_run(run, model)
    pixels = pixels_of(settings, settings.channels)
    check_shown(show, settings.channels)
    paths: list[str] = []
    for picture in pictures:
        listed = os.path.isdir(picture) or (os.path.isfile(picture) and not pixels.is_plain)
        paths += list_images(picture, bands=not pixels.is_plain) if listed else [picture]
    paths = paths[:_MOST]
    for path in paths:
        if not os.path.exists(item_of(path)[0]):
            raise DataError(f"pictures: there is no file {path!r}")
    size = parse_size(settings.size)
    if mask_ratio is not None:
        check_mask_ratio(mask_ratio, network.grid_shape(size))
        network.mask_ratio = mask_ratio
    mean, std = normalisation(settings.channels, settings.mean, settings.std)
    transform = HeldOutTransform(size=size, mean=mean, std=std)
    images = torch.stack([transform(pixels.read(path, transform.shrink)) for path in paths])
    shown = network.reconstruct(images, counted_grid(network, images, seed, Use.HELD_OUT_MASK))
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    names = [os.path.basename(path) for path in paths]
    reconstruction_grid(
        images,
        shown.masked,
        shown.reconstruction,
        mean,
        std,
        output,
        names,
        shown.grid.visible,
        show=show or settings.show,
        stretch=not pixels.is_plain,
    )
    return Path(output)
