"""The lists of a run's files: any name comes back, and none is forgotten."""

import numpy as np
import pytest
from PIL import Image

from convspark.errors import DataError, UsageError
from convspark.runs.folder import RunFolder
from convspark.runs.images import Images, find_images, reopen_images, write_bad_files


def test_files_of_any_name_come_back(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    names = ["new\nline.png", "nel\x85.png", "separator\u2028.png", b"\xff.png".decode("utf-8", "surrogateescape")]
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    images = find_images([tmp_path / name for name in names], held_out=0.25)
    images.write_lists(folder)
    again = reopen_images(folder, None)
    assert (again.train, again.held_out) == (images.train, images.held_out)
    assert sorted(again.train + again.held_out) == sorted(str(tmp_path / name) for name in names)


def test_what_the_scan_could_not_read_stays_in_the_list(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    Images([], None, [("/a.png", "empty (0 bytes)"), ("/new\nline.png", "not a\npicture")]).write_lists(folder)
    write_bad_files(folder, [])
    write_bad_files(folder, [("/c.png", "damaged: in its midst"), ("/a.png", "empty (0 bytes)")])
    assert folder.bad_files.read_text().splitlines() == [
        "/a.png\tempty (0 bytes)",
        '"/new\\nline.png"\tnot a picture',
        "/c.png\tdamaged: in its midst",
    ]


def test_a_damaged_picture_is_not_held_out(tmp_path, caplog):
    for i in range(100):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / f"{i:02}.png")
    kept = find_images(str(tmp_path), held_out=0.1).held_out
    with open(kept[3], "r+b") as file:
        content = bytearray(file.read())
        content[content.index(b"IDAT") + 8] ^= 255
        file.seek(0)
        file.write(content)
    again = find_images(str(tmp_path), held_out=0.1)
    assert again.held_out == kept[:3] + kept[4:] and [path for path, _ in again.bad] == [kept[3]]
    assert "1 of 10 pictures cannot be read" in caplog.text


def write_some(folder, count):
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.png")


def test_what_is_held_out_is_not_trained_on_where_its_folder_lies_in_the_other(tmp_path, caplog):
    write_some(tmp_path / "all", 6)
    write_some(tmp_path / "all" / "val", 3)
    images = find_images(str(tmp_path / "all"), held_out=str(tmp_path / "all" / "val"))
    assert images.train == [str(tmp_path / "all" / f"{i}.png") for i in range(6)]
    assert images.held_out == [str(tmp_path / "all" / "val" / f"{i}.png") for i in range(3)]
    assert "3 of the pictures to train on are held out as well: they are not trained on" in caplog.text
    with pytest.raises(DataError, match="held_out: it names all pictures"):
        find_images(str(tmp_path / "all"), held_out=tmp_path / "all")


def test_what_is_wrong_with_held_out_pictures_names_them(tmp_path):
    write_some(tmp_path / "all", 6)
    with pytest.raises(DataError, match=r"^held_out: '.*nowhere' does not exist"):
        find_images(str(tmp_path / "all"), held_out=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"^held_out is None"):
        find_images(str(tmp_path / "all"), held_out=None)


def test_files_held_out_from_a_dataset_stay_the_same(tmp_path):
    write_some(tmp_path / "val", 3)
    pictures, folder = np.zeros((6, 8, 8, 3), np.uint8), RunFolder.create(tmp_path / "run")
    before = find_images(pictures, held_out=str(tmp_path / "val"))
    before.write_lists(folder)
    Image.new("RGB", (4, 4)).save(tmp_path / "val" / "later.png")
    after = reopen_images(folder, pictures, held_out=str(tmp_path / "val"))
    assert after.held_out == [str(tmp_path / "val" / f"{i}.png") for i in range(3)] and after.train is pictures


def test_a_list_of_bad_files_that_somebody_has_edited_is_added_to(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.bad_files.write_bytes(b"a line of theirs\n/\xff.png\tdamaged\n")
    write_bad_files(folder, [("/c.png", "empty (0 bytes)")])
    assert folder.bad_files.read_bytes() == b"/\xff.png\tdamaged\n/c.png\tempty (0 bytes)\n"


def test_a_picture_that_a_list_names_twice_is_not_in_both_parts(tmp_path):
    names = [str(tmp_path / f"{i}.png") for i in range(10)]
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(name)
    images = find_images(names * 2, held_out=0.2)
    assert images.held_out and not {*images.held_out} & {*images.train}
    assert {*images.held_out, *images.train} == {*names}
