"""Files are looked at again exactly when they are new, changed, or were bad."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convspark.data import index, scan
from convspark.data.scan import ScanResult

scanning = sys.modules[scan.__module__]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(40):
        noise = np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i:02}.{('png', 'jpg')[i % 2]}")
    age(tmp_path)
    return tmp_path


def age(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    examine = scanning._examine

    def noting(source, index, whole):
        seen.append(os.path.basename(source.name(index)))
        return examine(source, index, whole)

    monkeypatch.setattr(scanning, "_examine", noting)
    return seen


def look(folder: Path, **options) -> ScanResult:
    return scan(sorted(str(path) for path in folder.iterdir()), place=str(folder), most_bad=0.1, **options)


def test_unchanged_files_are_looked_at_once(folder, looked_at) -> None:
    first = look(folder)
    assert len(looked_at) == 40
    looked_at.clear()
    assert look(folder) == first and not looked_at


def test_new_and_changed_files_are_looked_at_again(folder, looked_at) -> None:
    look(folder)
    looked_at.clear()
    (folder / "05.jpg").write_bytes((folder / "05.jpg").read_bytes()[:-50])  # by size
    os.utime(folder / "05.jpg", ns=(10**18, 10**18))
    content = bytearray((folder / "07.jpg").read_bytes())
    content[-2:] = b"\0\0"
    (folder / "07.jpg").write_bytes(content)  # by time
    (folder / "08.png").rename(folder / "80.png")
    (folder / "09.jpg").unlink()
    result = look(folder)
    assert sorted(looked_at) == ["05.jpg", "07.jpg", "80.png"]
    assert [os.path.basename(path) for path, _ in result.bad] == ["05.jpg", "07.jpg"]
    looked_at.clear()
    assert look(folder) == result
    assert sorted(looked_at) == ["05.jpg", "07.jpg"]  # what was bad may have been mended in a way that does not show


def test_what_was_changed_a_moment_ago_is_not_trusted(folder, looked_at) -> None:
    (folder / "03.jpg").touch()
    look(folder)
    looked_at.clear()
    look(folder)
    assert looked_at == ["03.jpg"]


def test_a_quick_look_is_no_full_one(folder, looked_at) -> None:
    damaged = bytearray((folder / "04.png").read_bytes())
    damaged[damaged.index(b"IDAT") + 8] ^= 255
    (folder / "04.png").write_bytes(damaged)
    age(folder)
    assert not look(folder).bad
    assert [os.path.basename(path) for path, _ in look(folder, whole=True).bad] == ["04.png"]
    looked_at.clear()
    look(folder, whole=True)
    assert looked_at == ["04.png"]


def test_remarks_are_made_again(folder, caplog) -> None:
    pages = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    pages[0].save(folder / "90.gif", save_all=True, append_images=pages[1:])
    age(folder)
    for _ in range(2):
        caplog.clear()
        look(folder)
        assert "hold several pictures" in caplog.text and "90.gif" in caplog.text


def test_a_damaged_index_is_made_anew(folder, looked_at) -> None:
    first = look(folder)
    for damage in (lambda content: content[:100], lambda content: b"", lambda content: bytes(len(content))):
        (kept,) = index.cache_folder().iterdir()
        kept.write_bytes(damage(kept.read_bytes()))
        looked_at.clear()
        assert look(folder) == first and len(looked_at) == 40


def test_nowhere_to_keep_an_index_is_no_obstacle(folder, monkeypatch) -> None:
    (folder.parent / "file").touch()
    monkeypatch.setattr(index, "cache_folder", lambda: folder.parent / "file" / "x")
    assert len(look(folder).good) == 40


def test_neither_is_a_user_without_a_home(folder, monkeypatch) -> None:
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(index, "cache_folder", nowhere)
    assert len(look(folder).good) == 40
