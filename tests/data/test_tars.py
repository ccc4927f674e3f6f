"""Pictures in tars come out as from files of their own."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from data.shards import pictures, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from convspark.data import FileSource, Pixels, decode, list_pictures, scan
from convspark.data.addresses import Within, absolute, expanded, within
from convspark.data.decode import BadPictureError
from convspark.data.shards import labels_of, masks_of
from convspark.errors import DataError

FILES = pictures(12)


def same_pictures(source: FileSource, contents: list[bytes], folder: Path) -> None:
    assert len(source) == len(contents) > 0
    for index, content in enumerate(contents):
        (folder / "alone").write_bytes(content)
        assert np.array_equal(source.read(index), decode(folder / "alone"))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_the_files(tmp_path: Path, kind: int) -> None:
    long = {f"{'deep/' * 15}{name}": content for name, content in FILES.items()}
    others = {
        "000000.cls": b"3",
        "notes.json": b"{}",
        "._000001.jpg": b"fork",
        "__MACOSX/x.jpg": b"fork",
        ".cache/x.jpg": b"x",
    }
    path = write_tar(tmp_path / "a.tar", {**others, **long}, format=kind)
    addresses = list_pictures(path)
    assert addresses == [f"tar://{name}::{path}" for name in long]
    same_pictures(FileSource(addresses), list(long.values()), tmp_path)
    assert scan(addresses).good == addresses


def test_arrays_are_pictures_where_bands_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arrays = {f"{i}.{suffix}": np.random.default_rng(i).random((9, 8, 5)) for i, suffix in enumerate(("npy", "npz"))}
    contents: dict[str, bytes] = {}
    for name, array in arrays.items():
        file = io.BytesIO()
        (np.savez if name.endswith("npz") else np.save)(file, array)
        contents[name] = file.getvalue()
    path = write_tar(tmp_path / "a.tar", {**contents, **FILES})
    assert [within(address).inner for address in list_pictures(path)] == list(FILES)
    every = list_pictures(path, bands=True)
    assert [within(address).inner for address in every] == [*arrays, *FILES]
    source = FileSource(every[:2], pixels=Pixels(5))
    for index, array in enumerate(arrays.values()):
        assert np.array_equal(source.read(index), np.moveaxis(array, 2, 0).astype(np.float32))
    with pytest.raises(DataError, match="no picture in"):
        list_pictures(write_tar(tmp_path / "b.tar", contents))
    assert "holds 2 arrays and no pictures: tell how many bands they have" in caplog.text
    file = io.BytesIO()
    np.save(file, np.zeros((2, 9, 8, 5)))
    (several,) = list_pictures(write_tar(tmp_path / "c.tar", {"a.npy": file.getvalue()}), bands=True)
    with pytest.raises(BadPictureError, match="2 pictures, which are read from files on this machine alone"):
        FileSource([several], pixels=Pixels(5)).read(0)


def test_names_without_suffix_links_and_repetitions(tmp_path: Path) -> None:
    names = list(FILES)
    path = write_tar(tmp_path / "a.tar", {"first": FILES[names[0]], "words": b"no picture", names[1]: FILES[names[1]]})
    with tarfile.open(path, "a") as tar:
        again = tarfile.TarInfo("again.png")
        again.type, again.linkname = tarfile.LNKTYPE, names[1]
        tar.addfile(again)
        twice = tarfile.TarInfo(names[1])
        twice.size = len(FILES[names[2]])
        (tmp_path / "x").write_bytes(FILES[names[2]])
        with (tmp_path / "x").open("rb") as file:
            tar.addfile(twice, file)
    addresses = list_pictures(path)
    assert [within(address).inner for address in addresses] == ["first", names[1], "again.png", f"{names[1]}#2"]
    same_pictures(FileSource(addresses), [FILES[names[i]] for i in (0, 1, 1, 2)], tmp_path)


def test_every_way_to_name_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(FILES)
    for shard in range(3):
        part = {name: FILES[name] for name in names[shard * 4 : shard * 4 + 4]}
        write_tar(tmp_path / f"data/{shard:03}.tar", part)
    every = [f"tar://{name}::{tmp_path}/data/{place // 4:03}.tar" for place, name in enumerate(names)]
    shards = [str(tmp_path / f"data/{shard:03}.tar") for shard in range(3)]
    (tmp_path / "data/list.txt").write_text("000.tar\n001.tar\n002.tar\n")
    (tmp_path / "written.txt").write_text("\n".join(every))
    monkeypatch.chdir(tmp_path)
    ways = ["data", "data/{000..002}.tar", "data/*.tar", shards, "data/list.txt", "written.txt", every]
    for images in ways:
        assert list_pictures(images) == every, images
    assert list_pictures("data/{000..001}.tar") == every[:8]
    with pytest.raises(DataError, match=r"003\.tar' does not exist"):
        list_pictures("data/{002..003}.tar")


def test_cut_off_tars(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is whole is used; a picture that is cut off is bad; that others may be missing is logged."""
    path = write_tar(tmp_path / "a.tar", FILES)
    with tarfile.open(path) as tar:
        last, before = tar.getmembers()[-1], tar.getmembers()[-2]
    os.truncate(path, last.offset_data + last.size // 2)
    addresses = list_pictures(path)
    assert len(addresses) == 12 and "is damaged or cut off after 12 members" in caplog.text
    ((bad, reason),) = scan(addresses, most_bad=0.1).bad
    assert bad == addresses[-1] and "truncated" in reason
    os.truncate(path, before.offset + 100)
    assert list_pictures(path) == addresses[:10]
    os.truncate(path, before.offset)
    caplog.clear()
    assert list_pictures(path) == addresses[:10] and "has no end" in caplog.text


def test_pictures_that_are_not_reached_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    halves = [dict(list(FILES.items())[:6]), dict(list(FILES.items())[6:])]
    one, other = (write_tar(tmp_path / f"{i}.tar", half).read_bytes() for i, half in enumerate(halves))
    (tmp_path / "both.tar").write_bytes(one + other)
    assert len(list_pictures(tmp_path / "both.tar")) == 6
    assert "both.tar has more after its end, which is after 6 members" in caplog.text
    with tarfile.open(tmp_path / "0.tar") as tar:
        third = tar.getmembers()[2].offset
    (tmp_path / "torn.tar").write_bytes(one[:third] + b"x" * 512 + one[third + 512 :])
    assert len(list_pictures(tmp_path / "torn.tar")) == 2
    assert "torn.tar is damaged after 2 members" in caplog.text


def test_labels_and_masks_of_names_that_come_again(tmp_path: Path) -> None:
    picture = FILES["000001.png"]

    def answers(*members: tuple[str, bytes]) -> tuple[list[str], list[str], list[str]]:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        addresses = list_pictures(tmp_path / "a.tar")
        inner = [[getattr(within(one), "inner", "") for one in every] for every in (addresses, masks_of(addresses))]
        return inner[0], labels_of(addresses), inner[1]

    cat = ("a.png", picture), ("a.cls", b"cat"), ("a.mask.png", picture)
    dog = ("a.mask.png", picture), ("a.cls", b"dog"), ("a.png", picture)
    assert answers(*cat, *dog) == (["a.png", "a.png#2"], ["cat", "dog"], ["a.mask.png", "a.mask.png#2"])
    assert answers(*cat, *cat)[1] == ["cat", "cat"]
    assert answers(*cat[:2], *dog[2:])[1] == ["cat", "cat"]  # a picture that was added again
    assert answers(*cat[:2], *dog[2:], *dog)[1] == ["", "", ""]  # whose label is missing, nothing tells


def test_what_is_no_tar(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", FILES)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar.gz").read_bytes())
    (tmp_path / "c.tar").write_bytes(b"words" * 1000)
    write_tar(tmp_path / "d.tar", {"a.txt": b"x"})
    refusals = {
        "a.tar.gz": "without compression",
        "b.tar": "is no tar file",
        "c.tar": "is no tar",
        "d.tar": "no picture in",
    }
    for name, words in refusals.items():
        with pytest.raises(DataError, match=words):
            list_pictures(tmp_path / name)


def test_a_name_that_parts_addresses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has '::' in its name.*rename it"):
        list_pictures(write_tar(tmp_path / "a::b" / "a.tar", FILES))


def test_a_tar_that_changes_is_read_anew(tmp_path: Path) -> None:
    names = list(FILES)
    path = write_tar(tmp_path / "a.tar", {name: FILES[name] for name in names[:3]})
    assert len(list_pictures(path)) == 3
    write_tar(path, {name: FILES[name] for name in names[2:7]})
    addresses = list_pictures(path)
    same_pictures(FileSource(addresses), [FILES[name] for name in names[2:7]], tmp_path)


def test_pictures_that_are_gone_are_bad_ones(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", FILES)
    addresses = [*list_pictures(path)[:2], f"tar://none.jpg::{path}", f"tar://x.jpg::{tmp_path}/none.tar"]
    source = FileSource(addresses)
    assert source.places is not None and source.places.missing.tolist() == [False, False, True, True]
    for index, words in ((2, "no longer in the file"), (3, "gone or cannot be read")):
        with pytest.raises(BadPictureError, match=words):
            source.read(index)
    path.unlink()
    with pytest.raises(BadPictureError, match="no such file"):
        source.read(0)


def test_files_and_members_mixed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", FILES)
    name, content = next(iter(FILES.items()))
    (tmp_path / name).write_bytes(content)
    inside = list_pictures(path)
    source = FileSource([inside[3], str(tmp_path / name), inside[1]])
    same_pictures(source, [list(FILES.values())[3], content, list(FILES.values())[1]], tmp_path)


@given(st.text(min_size=1), st.text(st.characters(exclude_characters=":"), min_size=1))
def test_addresses_come_back(inner: str, shard: str) -> None:
    assert within(str(Within("tar", inner, shard))) == ("tar", inner, shard)


@settings(max_examples=50)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 5))
def test_braces_as_in_a_shell(low: int, high: int, width: int) -> None:
    step = 1 if low <= high else -1
    written = f"{low:0{width}}..{high:0{width}}"
    width = (
        max(len(f"{low:0{width}}"), len(f"{high:0{width}}")) if "0" in (written[0], written.split("..")[1][0]) else 0
    )
    expected = [f"a{number:0{width}}.tar" for number in range(low, high + step, step)]
    assert expanded(f"a{{{written}}}.tar") == expected


def test_other_braces() -> None:
    assert expanded("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    assert expanded("plain") == ["plain"] and expanded("{one}") == ["{one}"]
    assert absolute("tar://x.jpg::s3://bucket/a.tar") == "tar://x.jpg::s3://bucket/a.tar"
    assert absolute("tar://x.jpg::a.tar") == f"tar://x.jpg::{os.getcwd()}/a.tar"
