"""Draws images/figures-*.png: the figures of a small run on photographs that come with scikit-image and scikit-learn.

    python docs/drawing/figures.py RUN

RUN is the folder of the run, which is trained if it is not there: the demo's settings, ten epochs, each of which is
kept; three minutes on two cores. The figures themselves are written to RUN/figures, smaller copies to docs/images.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from convspark import figures, pretrain
from convspark.cli.demo import SETTINGS
from convspark.data import demo_photographs

HELD_OUT = ("flower", "coffee", "cat")  # of which the first two are shown
EPOCHS = 10
COLOURS = {"mask-pattern": 16, "intensities": 16, "features": 128, "reconstructions": 128, "epochs": 128}
SHARE = 0.72  # of the dots that `figures` draws


class Pictures:
    """Pictures in memory, as a dataset."""

    def __init__(self, pictures: list[Image.Image]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Image.Image:
        return self.pictures[index]


def main(run: Path) -> None:
    photographs = dict(demo_photographs())
    if not run.is_dir():
        train = Pictures([picture for name, picture in photographs.items() if name not in HELD_OUT])
        held_out = Pictures([photographs[name] for name in HELD_OUT])
        settings = SETTINGS | {"held_out": held_out, "model": "resnet18", "keep_epochs": 1}
        pretrain(train, epochs=EPOCHS, out=str(run), **settings)
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{name}.png" for name in HELD_OUT[:2]]
        for path in paths:
            photographs[Path(path).stem].save(path)
        done = figures(str(run), paths, output=str(run / "figures"))
    for figure in done.figures:
        with Image.open(done.folder / f"{figure.name}.png") as page:
            size = round(SHARE * page.width), round(SHARE * page.height)
            small = page.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(COLOURS[figure.name])
        small.save(Path(__file__).parents[1] / "images" / f"figures-{figure.name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
