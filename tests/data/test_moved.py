"""Pictures of a run that lie elsewhere now: found by name and size."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from convspark.data import UNKNOWN, at_new_place, file_sizes, list_pictures
from convspark.errors import DataError


@pytest.fixture
def old(tmp_path: Path) -> Path:
    for i in range(30):
        path = tmp_path / "old" / "all" / ("cats" if i % 2 else "dogs") / f"{i % 5}-{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (i + 1))
    return tmp_path / "old" / "all"


def names(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*.png"))


def test_a_folder_that_was_moved_or_renamed(old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = names(old)
    sizes = file_sizes(paths)
    assert sorted(sizes) == list(range(1, 31))
    new = tmp_path / "disk" / "pictures"
    shutil.move(old, new)
    with caplog.at_level("INFO"):
        assert at_new_place(paths, sizes, str(new)) == names(new)
    assert f"30 pictures are taken from {new}, where they were in {old}; all have their sizes" in caplog.text
    assert at_new_place(paths, [], f"{new}/") == names(new)  # of a run that did not keep sizes
    # of a list of pictures from one folder, the new place may be that folder or one above it
    cats = [path for path in paths if "cats" in path]
    assert at_new_place(cats, [], str(new / "cats")) == names(new / "cats") == at_new_place(cats, [], str(new))
    assert at_new_place(paths, sizes, str(tmp_path / "list.txt"), names(new)[::-1]) == names(new)


def test_a_move_that_was_interrupted_goes_on(old: Path, tmp_path: Path) -> None:
    paths, new = names(old), tmp_path / "new"
    sizes = file_sizes(paths)
    shutil.move(old, new)
    half = [*names(new)[:7], *paths[7:]]
    assert at_new_place(half, sizes, str(new)) == names(new) == at_new_place(names(new), sizes, str(new))


def test_others_are_refused(old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths, new = names(old), tmp_path / "new"
    sizes = file_sizes(paths)
    shutil.copytree(old, new)
    changed = new / Path(paths[3]).relative_to(old)
    changed.write_bytes(b"x" * 99)
    for known in (sizes, []):  # where no sizes were kept, those of the files at the old place
        with pytest.raises(DataError, match=rf"1 of the 30 pictures .* are others .*{changed} has 99 bytes, it had"):
            at_new_place(paths, known, str(new))
    shutil.rmtree(old)
    assert at_new_place(paths, [], str(new)) == names(new)  # no size is known any more
    changed.unlink()
    with caplog.at_level("INFO"):
        assert len(at_new_place(paths, sizes, str(new))) == 30
    assert f"missing are 1: {changed}" in caplog.text
    for path in names(new)[:2]:
        Path(path).unlink()
    with pytest.raises(DataError, match=r"3 of the 30 pictures of the run are not at .*below .*all'.*took its place"):
        at_new_place(paths, sizes, str(new))
    with pytest.raises(DataError, match=r"30 of the 30"):
        at_new_place(paths, sizes, str(tmp_path))
    assert file_sizes(paths) == [UNKNOWN] * 30


def test_pictures_of_an_array_move_with_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8), np.uint8)[..., None])
    paths = list_pictures(tmp_path, bands=True)
    (tmp_path / "new").mkdir()
    (tmp_path / "a.npy").rename(tmp_path / "new" / "a.npy")
    assert at_new_place(paths, [], str(tmp_path / "new")) == [f"{tmp_path}/new/a.npy[{i}]" for i in range(3)]
