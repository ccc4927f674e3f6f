"""Class names in pictures: letter by letter, whatever matplotlib would make of them, and none is left out."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from convspark.report import confusion
from convspark.report.comparison import accuracy_against_labels
from convspark.report.confusion import confusion_matrix
from convspark.report.detections import draw_detections
from convspark.report.label_maps import draw_label_maps
from convspark.report.labels import draw_at_last

NAMES = [
    "a$$b",
    r"$\frac{1$",
    "_under",
    "中文",
    "\x1b[31m",
    "new\nline",
    b"\xff".decode("utf-8", "surrogateescape"),
    "n" * 100_000,
    "",
]
SHOWN = ["a$$b", r"$\frac{1$", "_under", "中文", r"\x1b[31m", r"new\nline", r"\udcff", "n" * 59 + "…", ""]


@pytest.fixture
def texts(monkeypatch):
    """The texts that were drawn, and whether formulas were read in them."""
    drawn = []

    def saved(figure, *args, **options):
        saved_before(figure, *args, **options)
        drawn.extend((text.get_text(), text.get_parse_math()) for text in figure.findobj(Text))

    saved_before = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", saved)
    return drawn


def test_confusion_matrix(tmp_path, texts):
    labels = np.arange(len(NAMES))
    confusion_matrix(labels, labels[::-1], NAMES, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width < 4000
    for name in SHOWN[:-1]:
        assert (name, False) in texts and (name, True) not in texts


def test_legends(tmp_path, texts, monkeypatch):
    picture = tmp_path / "$a$$.png"
    Image.new("RGB", (20, 20)).save(picture)
    scenes = SimpleNamespace(scenes=[SimpleNamespace(path=str(picture), things=[])], classes=NAMES)
    draw_detections(scenes, [], tmp_path / "d.png")
    maps = np.zeros((20, 20), np.uint8)
    draw_label_maps([(picture.name, Image.open(picture), maps, maps)], ["background", *NAMES], tmp_path / "l.png")
    scores = [SimpleNamespace(arm=name, labels=i + 1, values={"top1": [0.5, 0.6]}) for i, name in enumerate(NAMES)]
    accuracy_against_labels(scores, tmp_path / "a.png")
    for name in SHOWN[:-1]:
        assert texts.count((name, False)) == 3 and (name, True) not in texts
    assert ("$a$$.png", False) in texts and ("$a$$.png, truth: 0", False) in texts


@pytest.mark.parametrize("first", ["background", "class 1"])
def test_every_class_but_the_background_is_coloured(tmp_path, texts, monkeypatch, first):
    """A first class of another name is one like the others, in pictures and legend."""
    views = []
    monkeypatch.setattr(Axes, "imshow", lambda _, view: views.append(view))
    maps = np.array([[0, 1], [2, 255]], np.uint8)
    draw_label_maps([("a", Image.new("RGB", (2, 2)), maps, maps)], [first, "b", "c"], tmp_path / "l.png")
    has_colour = views[1].any(axis=2).tolist()
    assert has_colour == [[first != "background", True], [True, False]]
    assert len({tuple(pixel) for pixel in views[1].reshape(4, 3).tolist()}) == (3 if first == "background" else 4)
    names = [text for text, _ in texts]
    assert ("background (not coloured)" in names) == (first == "background") and ("class 1" in names) == (
        first != "background"
    )


def test_a_picture_that_fails_is_told_and_a_full_disk_is_an_error(tmp_path, caplog, monkeypatch):
    def fail(*_args, **_options):
        raise failure

    monkeypatch.setattr(confusion, "written_whole", fail)
    failure = ValueError("Image size of 1e9 pixels is too large")
    with caplog.at_level(logging.WARNING):
        draw_at_last(lambda: confusion_matrix(np.zeros(2, int), np.zeros(2, int), ["a", "b"], tmp_path / "c.png"))
    assert "could not be drawn (ValueError: Image size of 1e9 pixels is too large); all else is written" in caplog.text
    failure = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        draw_at_last(lambda: confusion_matrix(np.zeros(2, int), np.zeros(2, int), ["a", "b"], tmp_path / "c.png"))
