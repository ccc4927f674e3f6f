"""The lists of a run's files: any name comes back, and none is forgotten."""

from PIL import Image

from convspark.runs.folder import RunFolder
from convspark.runs.loading import Images, find_images, reopen_images, write_bad_files


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
