"""Masks in blocks, from a file and by a user's function: as many visible as asked, the same whatever part is drawn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from convspark.errors import UsageError
from convspark.model.masks import masks_named
from convspark.sparse import PatchGrid


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3).map(tuple),
    ratio=st.floats(0, 1),
    parts=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_blocks_leave_as_many_and_are_the_same_in_parts(shape, ratio, parts, seed):
    draw, total = masks_named("blocks"), sum(parts)
    whole = draw(total, shape, ratio, seeded(seed))
    assert whole.counts().tolist() == [round(np.prod(shape) * (1 - ratio))] * total
    assert whole.visible_per_image == round(np.prod(shape) * (1 - ratio))
    first, drawn = 0, []
    for count in parts:
        drawn.append(draw(count, shape, ratio, seeded(seed), first=first, total=total).visible)
        first += count
    assert torch.equal(torch.cat(drawn), whole.visible)


def test_blocks_are_coarser_than_chance():
    """As many masked patches in fewer pieces, by scipy's labels of connected pieces."""

    def pieces(name: str) -> float:
        masked = ~masks_named(name)(100, (14, 14), 0.4, seeded()).visible.numpy()
        return float(np.mean([ndimage.label(one)[1] for one in masked]))

    assert pieces("blocks") < pieces("random") / 3


def test_blocks_lie_anywhere():
    masked = ~masks_named("blocks")(2000, (14, 14), 0.4, seeded()).visible
    share = masked.float().mean(0)
    assert share.min() > 0.02 and share.max() < 0.8  # corners are hit less often than the middle, but are hit


def test_masks_of_a_file_are_drawn_from_it(tmp_path):
    stored = (torch.rand(5, 3, 4, generator=seeded()) < 0.5).numpy()
    np.save(tmp_path / "masks.npy", stored)
    draw = masks_named(str(tmp_path / "masks.npy"))
    grid = draw(200, (3, 4), 0.6, seeded(1))
    assert {one.tobytes() for one in grid.visible.numpy()} == {one.tobytes() for one in stored}
    assert torch.equal(draw(50, (3, 4), 0.6, seeded(1), first=100, total=200).visible, grid.visible[100:150])
    with pytest.raises(UsageError, match="masks of 3x4 patches: expected 2x2"):
        draw(1, (2, 2), 0.6, seeded())


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (np.ones((2, 3, 3)), r"float64 of shape \(2, 3, 3\)"),
        (np.ones((3, 3), bool), r"of shape \(3, 3\)"),
        (np.ones((2, 3, 3), bool), "must leave at least one patch visible and mask at least one"),
        (np.array([[[0, 1]], [[0, 0]]]), "must leave at least one patch visible and mask at least one"),
    ],
)
def test_files_that_hold_no_masks_are_refused(tmp_path, stored, message):
    np.save(tmp_path / "masks.npy", stored)
    with pytest.raises(UsageError, match=message):
        masks_named(str(tmp_path / "masks.npy"))


def test_masks_of_a_function(tmp_path, monkeypatch):
    (tmp_path / "drawn_in_columns.py").write_text(
        "import torch\n"
        "def columns(images, shape, mask_ratio, generator):\n"
        "    seen = torch.rand(images, 1, shape[1], generator=generator) > mask_ratio\n"
        "    seen[:, :, 0], seen[:, :, 1] = True, False\n"
        "    return seen.expand(images, *shape)\n"
        "def wrong(images, shape, mask_ratio, generator):\n"
        "    return torch.ones(images, *shape)\n"
        "def all_seen(images, shape, mask_ratio, generator):\n"
        "    return torch.ones(images, *shape, dtype=torch.bool)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    grid = masks_named("drawn_in_columns:columns")(6, (4, 5), 0.5, seeded())
    expected = torch.rand(6, 1, 5, generator=seeded()) > 0.5
    expected[:, :, 0], expected[:, :, 1] = True, False
    assert torch.equal(grid.visible, expected.expand(6, 4, 5))
    with pytest.raises(UsageError, match=r"gave torch.float32 \(2, 4, 5\): expected a bool tensor \(2, 4, 5\)"):
        masks_named("drawn_in_columns:wrong")(2, (4, 5), 0.5, seeded())
    with pytest.raises(UsageError, match="left an image all visible or all masked"):
        masks_named("drawn_in_columns:all_seen")(2, (4, 5), 0.5, seeded())
    with pytest.raises(UsageError, match=r"cannot be called with \(images, shape, mask_ratio, generator\)"):
        masks_named("os:getcwd")(2, (4, 5), 0.5, seeded())
    with pytest.raises(UsageError, match="a int: expected a function"):
        masks_named("drawn_in_columns:number")
    with pytest.raises(UsageError, match="has no 'column'; did you mean columns"):
        masks_named("drawn_in_columns:column")
    with pytest.raises(UsageError, match="cannot be imported"):
        masks_named("not_there_at_all:f")


def test_random_masks_are_the_grids_own():
    drawn = masks_named("random")(3, (5, 5), 0.6, seeded())
    assert torch.equal(drawn.visible, PatchGrid.random(3, (5, 5), 0.6, seeded()).visible)
    with pytest.raises(UsageError, match="masks is 'block': expected random, blocks"):
        masks_named("block")
