"""`reconstruct`: what a pre-training makes of masked pictures.

The command line's `convspark reconstruct` is this function. Its module imports no torch by itself.
"""

from pathlib import Path
from typing import Any

from ..arguments import checked_arguments
from ..errors import UsageError

_MOST = 8


@checked_arguments
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
    """Draw the original, the masked and the reconstructed picture, one row for each picture.

    Args:
        run: run folder of a pre-training, or a whole model of the paper's code
            (`*_withdecoder_1kpretrained_spark_style.pth`).
        pictures: picture files, or folders, lists and archives of them, whose first pictures are taken; eight at most
            are drawn.
        output: PNG file to write; an existing one is replaced.
        mask_ratio: share of the patches to mask; by default that of training.
        seed: seed of the masks.
        show: three channels, or one, to show, counted from 1; by default those of the run's own pictures.
        model: name of the network, if the file does not name it; in Python also a module like the one that was trained,
            if it was not a named network.

    Raises:
        UsageError: no such run or file, one without a decoder, or no picture.
        DataError: a picture that cannot be read.
    """
    if Path(output).suffix.lower() != ".png":
        raise UsageError(f"output is {output!r}: expected a file that ends in .png")
    if not pictures:
        raise UsageError("pictures are missing: give one or more picture files, or a folder")

    from ..checkpoints.whole import load_whole
    from ..data import check_no_input, check_shown, few_pictures, list_pictures
    from ..model.spark import check_mask_ratio
    from ..report.reconstructions import reconstruction_grid
    from ..seeds import Use
    from .module import counted_grid

    if Path(output).exists():
        listed = (address for place in pictures for address in list_pictures(place, bands=True))
        check_no_input("output", output, [*pictures, *listed])
    whole = load_whole(run, model)
    network = whole.model
    check_shown(show, whole.pixels.channels)
    if mask_ratio is not None and whole.model.masks.endswith(".npy"):
        raise UsageError(f"mask_ratio is {mask_ratio}, but the run's masks are those of a file: leave it out")
    if mask_ratio is not None:
        check_mask_ratio(mask_ratio, network.grid_shape(whole.size))
        network.mask_ratio = mask_ratio
    images, names = few_pictures(pictures, whole.pixels, whole.size, whole.mean, whole.std, _MOST)
    result = network.reconstruct(images, counted_grid(network, images, seed, Use.HELD_OUT_MASK))
    reconstruction_grid(
        images,
        result.masked,
        result.reconstruction,
        whole.mean,
        whole.std,
        output,
        names,
        result.grid.visible,
        show=show or whole.show,
        stretch=not whole.pixels.is_plain,
    )
    return Path(output)
