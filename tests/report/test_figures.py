"""Figures show the numbers that they were given, as vectors, and in tones that differ in grey."""

import re
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from convspark.report import figures, style

RISING = [0.4, 0.45, 0.5, 0.7, 0.65, 0.9, 1.0, 1.0, 1.0]


def maps(shares) -> list[np.ndarray]:
    """(1, 10, 10) each, of which a share is True."""
    return [np.arange(100).reshape(1, 10, 10) < round(100 * share) for share in shares]


def pattern():
    with style.in_style():
        names = [f"layer{i}.blocks.0.conv_dw_$x_" for i in range(len(RISING))]
        return figures.draw_pattern(names, maps(RISING), maps([0.4] * len(RISING)))


def test_lines_are_the_shares_of_all_layers():
    dense, visible = pattern().axes[-1].get_lines()
    np.testing.assert_allclose(dense.get_ydata(), [100 * share for share in RISING])
    np.testing.assert_allclose(visible.get_ydata(), 40)
    assert list(dense.get_xdata()) == list(range(1, len(RISING) + 1))


def test_maps_tell_visible_filled_and_empty_positions():
    axes = pattern().axes
    titles = [ax.get_title() for ax in axes if ax.get_title()]
    shown = [int(title.partition(".")[0]) - 1 for title in titles]
    assert shown[0] == 0 and shown[-1] == len(RISING) - 1 and shown == sorted(set(shown)) and len(shown) <= 6
    for column, layer in enumerate(shown):
        values = np.asarray(axes[column].get_images()[0].get_array())
        counts = [int((values == kind).sum()) for kind in (2, 1, 0)]
        assert counts == [40, round(100 * RISING[layer]) - 40, 100 - round(100 * RISING[layer])]
        below = np.asarray(axes[column + len(shown)].get_images()[0].get_array())
        assert [int((below == kind).sum()) for kind in (2, 1, 0)] == [40, 0, 60]


@pytest.mark.parametrize("shares", [[1.0], [0.4] * 9, [0.4, 1.0], RISING, np.linspace(0.4, 1, 100).tolist()])
def test_few_layers_are_chosen_whatever_the_shares(shares):
    chosen = figures._evenly_risen(shares)
    assert chosen == sorted(set(chosen)) and chosen[0] == 0 and chosen[-1] == len(shares) - 1 and len(chosen) <= 6


def test_histograms_are_drawn_as_they_are():
    edges, whole = np.linspace(-2, 2, 5), np.array([0.1, 0.4, 0.3, 0.2])
    zeros, visible = np.array([0.04, 0.16, 0.72, 0.08]), np.array([0.1, 0.3, 0.4, 0.2])
    with style.in_style():
        figure = figures.draw_intensities(edges, whole, zeros, visible, (0.42, 0.1))
    for axes, expected in zip(figure.axes, (whole, zeros, visible), strict=True):
        steps = [patch.get_data() for patch in axes.patches]
        np.testing.assert_allclose(steps[0].values, 100 * expected)
        np.testing.assert_allclose(steps[1].values, 100 * whole)
        np.testing.assert_allclose(steps[0].edges, edges)
    (note,) = figure.axes[1].texts
    assert "72 %" in note.get_text() and "42 % of the distribution" in figure.axes[1].get_title()
    assert not figure.axes[2].texts


def test_features_and_pictures_are_where_they_belong():
    rng = np.random.default_rng(0)
    pictures, stages = rng.random((3, 8, 8, 3)), [rng.random((3, 4, 4)), rng.random((3, 2, 2))]
    stages[0][2, 0, 0] = np.nan
    with style.in_style():
        figure = figures.draw_features(pictures, ["stride 2", "stride 4"], *zip(*stages, strict=True))
    drawn = [axes.get_images()[0].get_array() for axes in figure.axes]
    for row, kind in enumerate((0, 2, 1)):  # whole, visible, zeros
        assert np.array_equal(drawn[3 * row], pictures[row])
        for column, stage in enumerate(stages, start=1):
            assert np.array_equal(np.ma.filled(drawn[3 * row + column], np.nan), stage[kind], equal_nan=True)
    with style.in_style():
        columns = [figures.Column(f"c{i}", pictures[i : i + 2]) for i in range(2)]
        figure = figures.draw_pictures(columns, ["one", "_two$"])
    assert np.array_equal(figure.axes[1].get_images()[0].get_array(), pictures[1])
    assert np.array_equal(figure.axes[2].get_images()[0].get_array(), pictures[1])


def test_pdfs_are_vectors_with_letters_and_the_same_every_time(tmp_path):
    edges, shares = np.linspace(-1, 1, 4), np.array([0.2, 0.5, 0.3])
    for place in ("one", "two"):
        with style.in_style():
            figure = figures.draw_intensities(edges, shares, shares, shares, (0.0, 0.0))
            pdf, png = style.write(figure, tmp_path / place / "fig.1")
    assert (pdf.name, png.name) == ("fig.1.pdf", "fig.1.png")
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF") and b"/Subtype /Image" not in content
    assert b"/FontFile2" in content  # letters as TrueType, not as outlines
    assert (tmp_path / "one" / "fig.1.pdf").read_bytes() == content
    assert (tmp_path / "one" / "fig.1.png").read_bytes() == png.read_bytes()
    with style.in_style():
        pdf, png = style.write(pattern(), tmp_path / "pattern")
    images = re.findall(rb"<<[^>]*/Subtype /Image[^>]*>>", pdf.read_bytes())
    sides = {int(side) for image in images for side in re.findall(rb"/(?:Width|Height) (\d+)", image)}
    assert sides == {10}  # the maps alone are pixels, one a position; all else is vectors
    with Image.open(png) as page:
        assert page.width == 200 * style.WIDTH


def luminance(colour) -> float:
    return float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114)))


def test_tones_differ_in_grey():
    tones = sorted(luminance(colour) for colour in (style.DARK, style.LIGHT, "white"))
    assert min(np.diff(tones)) > 0.25
    scale = [luminance(style.MAGNITUDE(value)[:3]) for value in np.linspace(0, 1, 50)]
    assert min(np.diff(scale)) > 0
    assert luminance(style.MASKED) > scale[-1] + 0.15


@pytest.mark.parametrize("shape", [(96, 96), (32, 128)])
def test_long_names_stay_beside_their_rows(shape):
    with style.in_style():
        picture = np.zeros((*shape, 3))
        names = [f"{'86a0-e0bd' * 5}-{number}.jpg" for number in range(3)]
        drawn = figures.draw_pictures([figures.Column("a", [picture] * 3)] * 5, names)
        drawn.canvas.draw()
        axes = [ax for ax in drawn.axes if ax.get_ylabel()]
        assert [ax.get_ylabel()[0] + ax.get_ylabel()[-1:] for ax in axes] == ["…g"] * 3
        texts = [ax.yaxis.label.get_window_extent() for ax in axes]
        assert all(upper.y0 > lower.y1 for upper, lower in pairwise(texts))
        (short,) = figures.draw_pictures([figures.Column("a", [picture])], ["x.png"]).axes
        assert short.get_ylabel() == "x.png"
