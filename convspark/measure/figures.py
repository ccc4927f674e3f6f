"""`figures`: the paper's figures, of a network and pictures of the user's.

The command line's `convspark figures` is this function. Its module imports no torch by itself.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import checked_arguments
from ..errors import UsageError
from ..files import write_text
from ..names import shown_in_markdown

if TYPE_CHECKING:
    from .drawn import Drawn

_MOST = 4


@dataclass(frozen=True)
class Figures:
    """What `figures` wrote.

    Attributes:
        folder: where it lies, with `README.md` of captions and `figures.json` of numbers.
        figures: what there is.
        left_out: why reconstructions are not; None if they are.
    """

    folder: Path
    figures: "tuple[Drawn, ...]"
    left_out: str | None

    def __str__(self) -> str:
        lines = [
            f"{self.folder / figure.name}.pdf, .png: {figure.caption.partition('. ')[0]}" for figure in self.figures
        ]
        if self.left_out is not None:
            lines.append(f"no reconstructions: {self.left_out}")
        return "\n".join([*lines, f"captions: {self.folder / 'README.md'}"])


@checked_arguments
def figures(
    network: Any,
    pictures: list[str],
    *,
    output: str = "figures",
    weights: str | None = None,
    model: Any = None,
    size: int | str | None = None,
    channels: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    mask_ratio: float | None = None,
    ratios: list[float] | None = None,
    seed: int = 0,
    show: list[int] | None = None,
) -> Figures:
    """Draw what masking does to a network's maps, to pixels and to features, and what a run reconstructs.

    Args:
        network: a run folder, a weights file or an export, or a network's name with random weights (resnet50; with a
            tag, as resnet50.a1_in1k, with the weights that timm fetches); in Python also a module or a SparK.
        pictures: picture files, or folders of them, whose first pictures are taken; four at most. Maps are drawn of the
            first one.
        output: folder to write PDF and PNG files, captions and numbers into; files of these names are replaced.
        weights: weights for a network that is given by its name.
        model: name of the network, if the file does not name it; in Python also a module like the one that was trained,
            if it was not a named network.
        size: side of the images in pixels, or HxW; by default that of training, else 224.
        channels: channels of the images, if neither weights nor network say; by default 3.
        mean: mean of each channel; by default that of training, else ImageNet's.
        std: deviation of each channel; by default that of training, else ImageNet's.
        mask_ratio: share of the patches to mask; by default that of training, else 0.6.
        ratios: further shares to reconstruct with; by default 0.3, 0.6 and 0.9.
        seed: seed of masks and random weights.
        show: three channels, or one, to show, counted from 1; by default those of the run's own pictures.

    Raises:
        UsageError: no such network, weights or run; no picture; a share that leaves no patch visible, or none masked.
        DataError: a picture that cannot be read.
        NotExactError: the network cannot be run on visible patches.
    """
    if not pictures:
        raise UsageError("pictures are missing: give one or more picture files, or a folder")
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output is {output!r}, which is a file: expected a folder, a new one or one to add to")
    if (folder / "README.md").exists() and not (folder / "figures.json").exists():
        raise UsageError(
            f"output is {output!r}, whose README.md is not of figures, and would be replaced: name another"
        )
    from ..data import check_shown, few_pictures
    from ..model.spark import check_mask_ratio
    from ..report.style import in_style, write
    from .drawn import Maker, every
    from .subject import find_subject

    subject = find_subject(network, weights, model, size, channels, mean, std, seed)
    check_shown(show, subject.pixels.channels)
    images, names = few_pictures(pictures, subject.pixels, subject.size, subject.mean, subject.std, _MOST)
    ratio = subject.mask_ratio if mask_ratio is None else mask_ratio
    maker = Maker(subject, images, names, ratio, seed, show)
    for share in (ratio, *(ratios or ())):
        check_mask_ratio(share, maker.grid_shape())
    run = network if isinstance(network, str) and Path(network).is_dir() else None
    with in_style():
        drawn = list(every(maker, ratios, run, model))  # all of them, before the first is written
        for description, figure in drawn:
            write(figure, folder / description.name)
    done = Figures(folder, tuple(description for description, _ in drawn), subject.why_not)
    facts = {
        "network": subject.name,
        "weights": subject.weights,
        "pictures": names,
        "size": list(subject.size),
        "patch_size": list(subject.patch_size),
        "mask_ratio": ratio,
        "seed": seed,
    }
    content = {**facts, "figures": [asdict(description) for description in done.figures], "left_out": done.left_out}
    write_text(folder / "figures.json", json.dumps(content, indent=2) + "\n")
    write_text(folder / "README.md", _page(facts, done))
    return done


def _page(facts: dict[str, Any], done: Figures) -> str:
    """The figures with their captions."""
    lines = [f"# Figures of {shown_in_markdown(facts['network'])}", ""]
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        lines.append(f"* {name.replace('_', ' ')}: {shown_in_markdown(text)}")
    for figure in done.figures:
        counterpart = f"Its counterpart in the SparK paper (arXiv 2301.03580) is {figure.paper}."
        lines += ["", f"![]({figure.name}.png)", "", shown_in_markdown(figure.caption)]
        lines += ["", counterpart if figure.paper else "The SparK paper (arXiv 2301.03580) has no such figure."]
    if done.left_out is not None:
        lines += ["", f"No reconstructions: {shown_in_markdown(done.left_out)}."]
    return "\n".join(lines) + "\n"
