"""Which pictures a run trains on and which it measures with."""

from pathlib import Path

import pytest
from data.shards import pictures, write_tar

from convspark.data import absolute, list_pictures
from convspark.runs.images import find_images

FILES = pictures(12)


@pytest.mark.parametrize("where", ["folder", "shards", "in turn"])
def test_what_is_held_out_by_another_name_is_not_trained_on(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "disk" / "val").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for i, (name, content) in enumerate(FILES.items()):
        folder = tmp_path / "disk" / ("val" if i < 4 else "")
        if where == "folder":
            (folder / name).write_bytes(content)
        else:
            write_tar(folder / f"{i}.tar", {name: content})
    held_out, per_epoch = str(tmp_path / "link" / "val"), 12 if where == "in turn" else None
    images = find_images(str(tmp_path / "disk"), held_out=held_out, shards_per_epoch=per_epoch)
    assert len(images.held_out) == 4
    assert sorted(images.train) == sorted(
        path for path in map(absolute, list_pictures(tmp_path / "disk")) if "/val/" not in path
    )
    assert "4 of the pictures to train on are held out as well" in caplog.text
    if images.in_turn is not None:
        assert len(images.in_turn.pictures(1)[0]) == 8


def test_a_link_to_a_picture_is_no_other_one(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"again-{name}").symlink_to(tmp_path / name)
    images = find_images(str(tmp_path), held_out=0.25)
    seen, measured = ({Path(path).resolve() for path in part} for part in (images.train, images.held_out))
    assert measured and not seen & measured
