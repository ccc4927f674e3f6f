"""Listing: what is found, in which order, and what is said when nothing is."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from convspark.data import list_pictures
from convspark.data.files import as_lines, names_in
from convspark.data.scan import scan
from convspark.errors import DataError, UsageError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in ("b.JPG", "a.png", "deep/er/c.webp", "deep/d.tiff", "with space/e f.jpeg", "ü.jpg", "m.mpo"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name in (".hidden.jpg", "notes.txt", "labels.csv", ".git/x.jpg", "__MACOSX/y.jpg", "README"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("no picture")
    Image.new("RGB", (4, 4)).save(root / "0123abcd", format="PNG")  # a picture without a suffix
    return root


def test_folder(tree: Path) -> None:
    expected = [
        "0123abcd", "a.png", "b.JPG", "deep/d.tiff", "deep/er/c.webp", "m.mpo", "with space/e f.jpeg", "ü.jpg"
    ]  # fmt: skip
    assert [os.path.relpath(path, tree) for path in list_pictures(tree)] == expected
    assert list_pictures(f"{tree}/") == list_pictures(tree)


def test_links_are_followed_and_loops_end(tree: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "z.jpg").touch()
    (tree / "linked").symlink_to(elsewhere)
    (tree / "loop").symlink_to(tree)
    (tree / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")  # to be counted as a bad file, not passed over
    names = [os.path.relpath(path, tree) for path in list_pictures(tree)]
    assert "linked/z.jpg" in names and "gone.jpg" in names and len(names) == 10


ODD_NAMES = [
    "new\nline.png",
    "form\x0cfeed.png",
    "nel\x85.png",
    "separator\u2028.png",
    "return\r.png",
    "tab\t.png",
    " blank .png",
    "#hash.png",
    '"quoted".png',
    b"\xff\xfe.png".decode("utf-8", "surrogateescape"),
]


def test_names_of_any_kind_come_back_from_a_list(tmp_path: Path) -> None:
    text = as_lines(ODD_NAMES)
    assert names_in(text) == ODD_NAMES and len(text.splitlines()) == len(ODD_NAMES)
    for name in ODD_NAMES:
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    paths = list_pictures(tmp_path)
    assert sorted(os.path.basename(path) for path in paths) == sorted(ODD_NAMES)
    (tmp_path / "list.txt").write_text(as_lines(paths))
    assert list_pictures(tmp_path / "list.txt") == paths and scan(paths).good == paths


@given(st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1)))
def test_any_names_come_back_from_a_list(names: list[str]) -> None:
    assert names_in(as_lines(names)) == names


def test_links_and_pipes_of_all_kinds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pipe is waited for, and nothing is left out without a word."""
    folder = tmp_path / "p"
    folder.mkdir()
    for i in range(140):
        Image.new("RGB", (2, 2)).save(folder / f"{i}.png")
    os.mkfifo(tmp_path / "pipe")
    bound = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # a socket's name may not be long
    bound.bind("socket")
    bound.close()
    os.mkfifo(folder / "own_pipe")
    os.mkfifo(folder / "own_pipe.png")
    links = {
        "itself.png": "itself.png",
        "nowhere.png": "nowhere",
        "to_pipe.png": "../pipe",
        "to_pipe": "../pipe",
        "to_device.png": "/dev/zero",
        "to_socket.png": "../socket",
        "itself": "itself",
        "classes": "../gone",
        "through_a_file.png": "0.png/x.png",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    paths = list_pictures(folder)
    bad = {os.path.basename(path): reason for path, reason in scan(paths).bad}
    assert len(paths) == 146 and bad == {
        "itself.png": "a link that leads in a circle",
        "nowhere.png": "a link that leads nowhere",
        "to_pipe.png": "a pipe, socket or device, not a picture",
        "to_device.png": "a pipe, socket or device, not a picture",
        "to_socket.png": "a pipe, socket or device, not a picture",
        "through_a_file.png": "cannot be read: Not a directory",
    }
    assert "4 links lead nowhere, and may have been folders of pictures" in caplog.text


def test_pictures_that_a_run_has_drawn_among_its_own_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "runs/x/pictures/last.png", "cmp/compare.png", "model/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("runs/x/config.yaml", "runs/x/environment.json", "cmp/compare.yaml", "model/config.yaml"):
        (tmp_path / name).touch()
    assert list_pictures(str(tmp_path)) == [str(tmp_path / "a.png"), str(tmp_path / "model/b.png")]
    assert caplog.text.count("is a run of convspark: its own pictures are left out") == 2
    assert list_pictures(str(tmp_path / "runs/x")) == [str(tmp_path / "runs/x/pictures/last.png")]


def test_text_file(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("\ufeff# chosen\n\nphotos/b.JPG\n  photos/with space/e f.jpeg\nphotos/b.JPG\n/abs/x.jpg\n")
    expected = [str(tree / "b.JPG"), str(tree / "with space/e f.jpeg"), str(tree / "b.JPG"), "/abs/x.jpg"]
    assert list_pictures(listed) == expected
    # A list written in the working directory (`find photos … > lists/all.txt`), kept in another folder.
    (tmp_path / "lists").mkdir()
    listed.rename(tmp_path / "lists" / "all.txt")
    monkeypatch.chdir(tmp_path)
    assert list_pictures("lists/all.txt") == expected


def test_names_that_no_file_can_have_are_bad_pictures(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("photos/0123abcd\nphotos/a\0.png\n")
    result = scan(list_pictures(tmp_path / "list.txt"), most_bad=0.5)
    assert result.good == [str(tree / "0123abcd")] and [path for path, _ in result.bad] == [str(tree / "a\0.png")]


def test_other_sources(tree: Path) -> None:
    assert list_pictures(tree / "a.png") == [str(tree / "a.png")]
    assert list_pictures([tree / "a.png", "b.jpg"]) == [str(tree / "a.png"), "b.jpg"]
    assert list_pictures(f"{i}.jpg" for i in range(2)) == ["0.jpg", "1.jpg"]


def test_missing_folder_names_the_nearest(tree: Path) -> None:
    with pytest.raises(DataError, match=r"photoz.*does not exist.*did you mean .*photos"):
        list_pictures(tree.parent / "photoz")
    with pytest.raises(DataError, match="does not exist; give a folder"):
        list_pictures("/nowhere/at/all")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no picture in folder .*no file at all"):
        list_pictures(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.txt").touch()
    with pytest.raises(DataError, match=r"no picture in folder .*1 \.txt"):
        list_pictures(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("head.nii.gz", r"1 \.nii\.gz\).*Of \.nii\.gz, volumes: write their slices as \.npy"),
        ("a.DCM", r"1 \.dcm\).*Of \.dcm, DICOM: write them as"),
        ("a.czi", r"1 \.czi\).*Of \.czi, a microscope's own format: write it as \.tif"),
    ],
)
def test_formats_of_others_are_to_be_converted(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=words):
        list_pictures(tmp_path)


def test_unusable_lists(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n# nothing\n")
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "c.csv").write_text('path\n"' + "x" * 200_000)
    sources = [(tmp_path / "a.txt", "holds no path"), (tmp_path / "b.bin", "neither"), ([], "empty")]
    for source, words in (*sources, (tmp_path / "c.csv", "is not a CSV file")):
        with pytest.raises(DataError, match=words):
            list_pictures(source)
    with pytest.raises(UsageError, match="int"):
        list_pictures([1, 2])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'label,path\n1,x.jpg\n2,"y, z.jpg"\n'),
        ("blanks.csv", 'label, path\r\n1, x.jpg\r\n3, \r\n2," y, z.jpg"\r\n'),
        ("b.csv", 'x.jpg,1\n"y, z.jpg",2\n'),
        ("c.tsv", "image\tlabel\nx.jpg\t1\n\ny, z.jpg\t2\n"),
        ("d.csv", '\ufeffFile_Name\nx.jpg\n"y, z.jpg"\n'),
        ("e.csv", 'path;"label"\nx.jpg;1\n;\ny, z.jpg;2\n'),  # a spreadsheet's, of a country with decimal commas
    ],
)
def test_tables_of_paths(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert list_pictures(tmp_path / name) == [str(tmp_path / "x.jpg"), str(tmp_path / "y, z.jpg")]


def test_of_several_ways_to_a_folder_the_same_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "all" / "b").mkdir(parents=True)
    (tmp_path / "all" / "b" / "x.jpg").write_bytes(b"")
    for name in ("a", "c"):
        (tmp_path / "all" / name).symlink_to(tmp_path / "all" / "b")
    scandir = os.scandir
    for is_reversed in (False, True):  # file systems list as they like

        @contextmanager
        def listed(folder: str, is_reversed: bool = is_reversed) -> Iterator[list[os.DirEntry[str]]]:
            with scandir(folder) as listing:
                yield sorted(listing, key=lambda entry: entry.name, reverse=is_reversed)

        monkeypatch.setattr(os, "scandir", listed)
        assert list_pictures(tmp_path / "all") == [f"{tmp_path}/all/a/x.jpg"]
