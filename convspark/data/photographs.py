"""Photographs that come with scikit-image and scikit-learn, for the demo: nothing is downloaded."""

from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from ..errors import UsageError
from .decode import decode

# (name, package, folder in the package, file). Of the stereo pair one side only: its twin would be no
# held-out picture.
_PHOTOGRAPHS = (
    ("astronaut", "skimage", "data", "astronaut.png"),
    ("cat", "skimage", "data", "chelsea.png"),
    ("flower", "sklearn", "datasets/images", "flower.jpg"),
    ("pavilion", "sklearn", "datasets/images", "china.jpg"),
    ("coffee", "skimage", "data", "coffee.png"),
    ("motorcycle", "skimage", "data", "motorcycle_left.png"),
    ("rocket", "skimage", "data", "rocket.jpg"),
    ("galaxies", "skimage", "data", "hubble_deep_field.jpg"),
    ("tissue", "skimage", "data", "ihc.png"),
    ("retina", "skimage", "data", "retina.jpg"),
    ("cameraman", "skimage", "data", "camera.png"),
    ("coins", "skimage", "data", "coins.png"),
    ("bricks", "skimage", "data", "brick.png"),
    ("grass", "skimage", "data", "grass.png"),
    ("gravel", "skimage", "data", "gravel.png"),
    ("moon", "skimage", "data", "moon.png"),
)
_ENOUGH = 8


def demo_photographs() -> list[tuple[str, Image.Image]]:
    """(name, RGB picture) of up to sixteen photographs, 300 to 1,411 pixels a side; those in
    colour come first.

    The files are read where the packages were installed, and not through their loaders, which download what
    they miss.

    Raises:
        UsageError: scikit-image or scikit-learn is not installed, or holds too few of the photographs.
    """
    photographs: list[tuple[str, Image.Image]] = []
    for name, package, folder, file in _PHOTOGRAPHS:
        path = _package_folder(package) / folder / file
        if path.is_file():
            photographs.append((name, decode(path)))
    if len(photographs) < _ENOUGH:
        raise UsageError(
            f"demo: only {len(photographs)} of {len(_PHOTOGRAPHS)} photographs were found in scikit-image "
            "and scikit-learn; install other versions of them: pip install --upgrade 'convspark[demo]'"
        )
    return photographs


def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            "demo: its photographs come with scikit-image and scikit-learn, of which one is not installed; "
            "install them: pip install 'convspark[demo]'"
        )
    return Path(spec.submodule_search_locations[0])
