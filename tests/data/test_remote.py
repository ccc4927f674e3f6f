"""Files at URLs are read like those on the disk."""

import io
import os
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from data.shards import pictures, write_tar
from data.test_tars import same_pictures
from hypothesis import given, settings
from hypothesis import strategies as st

from convspark.data import FileSource, list_pictures, remote, scan
from convspark.data.decode import BadPictureError
from convspark.errors import DataError, UsageError

FILES = pictures(12)


@pytest.fixture
def memory() -> Iterator[str]:
    """The URL of a folder in memory, empty."""
    import fsspec

    fsspec.filesystem("memory").store.clear()
    yield "memory://folder"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(attempts=4, pause=0.001, seconds=5.0))
    monkeypatch.setattr(remote, "ATTEMPTS", remote.Attempts())


def put(url: str, content: bytes) -> None:
    import fsspec

    with fsspec.open(url, "wb") as file:
        file.write(content)  # type: ignore[union-attr]


def test_pictures_shards_and_lists(memory: str, tmp_path: Path) -> None:
    names = list(FILES)
    for name, content in FILES.items():
        put(f"{memory}/photos/deep/{name}", content)
    for left_out in (".hidden.jpg", ".cache/a.jpg", "__MACOSX/deep/a.jpg", "array.npy"):
        put(f"{memory}/photos/{left_out}", b"")
    put(f"{memory}/photos/words.txt", b"")
    put(f"{memory}/a.tar", write_tar(tmp_path / "a.tar", FILES).read_bytes())
    put(f"{memory}/list.txt", "\n".join(f"photos/deep/{name}" for name in names).encode())
    put(f"{memory}/list.csv", "\n".join(["label,path", *(f"1,photos/deep/{name}" for name in names)]).encode())
    single = [f"memory:///folder/photos/deep/{name}" for name in names]
    assert list_pictures(f"{memory}/photos") == single
    array = "memory:///folder/photos/array.npy"
    assert list_pictures(f"{memory}/photos", bands=True) == [array, *single]
    assert list_pictures(array, bands=True) == [array]
    assert list_pictures(f"{memory}/photos/deep/*.webp") == [url for url in single if url.endswith(".webp")]
    listed = [f"{memory}/photos/deep/{name}" for name in names]
    assert list_pictures(f"{memory}/list.txt") == list_pictures(f"{memory}/list.csv") == listed
    inside = list_pictures(f"{memory}/a.tar")
    for addresses in (single, listed, inside):
        same_pictures(FileSource(addresses), list(FILES.values()), tmp_path)
        assert scan(addresses, whole=True).good == addresses


def test_parquet(memory: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from data.test_tables import write

    put(f"{memory}/a.parquet", write(tmp_path / "a.parquet", image=list(FILES.values())).read_bytes())
    same_pictures(FileSource(list_pictures(f"{memory}/a.parquet")), list(FILES.values()), tmp_path)


def test_a_file_of_a_plain_server_that_changes_is_read_anew(tmp_path: Path) -> None:
    """A server like Python's own tells the time of a file, but no tag of its content."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    names = list(FILES)[:4]
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.tar"
        sizes: set[int] = set()
        for seconds, order in enumerate((names, names[::-1])):
            path = write_tar(tmp_path / "a.tar", {name: FILES[name] for name in order})
            os.utime(path, (seconds, seconds))
            sizes.add(path.stat().st_size)
            assert list_pictures(url) == [f"tar://{name}::{url}" for name in order]
        server.shutdown()
    assert len(sizes) == 1


def test_what_is_not_there_is_told(memory: str) -> None:
    put(f"{memory}/words.txt", b"nothing")
    with pytest.raises(DataError, match="does not exist"):
        list_pictures("memory://folder/none.tar")
    with pytest.raises(DataError, match="no picture below"):
        list_pictures("memory://folder/")
    with pytest.raises(UsageError, match="not a URL that can be read"):
        list_pictures("nonsense://folder")
    with pytest.raises(BadPictureError, match="no such file"):
        FileSource(["memory://folder/none.jpg"]).read(0)


CONTENT = bytes(range(256)) * 8


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 700), st.lists(st.tuples(st.integers(0, 2100), st.integers(0, 900)), max_size=10))
def test_files_behind_urls_read_like_files(block: int, reads: list[tuple[int, int]]) -> None:
    put("memory://ranges", CONTENT)
    mine, theirs = remote.RangeFile("memory://ranges", block), io.BytesIO(CONTENT)
    for place, size in reads:
        assert mine.seek(place) == theirs.seek(place)
        assert mine.read(size) == theirs.read(size) and mine.tell() == theirs.tell()
    assert mine.seek(-5, io.SEEK_END) == len(CONTENT) - 5 and mine.read() == CONTENT[-5:]


def failing(times: int, error: Exception) -> tuple[list[int], object]:
    calls: list[int] = []

    def act() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return calls, act


def test_attempts_are_counted_and_end() -> None:
    attempts = remote.Attempts()
    calls, act = failing(3, ConnectionResetError("gone"))
    assert attempts.make(act, "a") == "done" and attempts.repeated == 3  # type: ignore[arg-type]
    calls, act = failing(99, ValueError("odd"))
    with pytest.raises(remote.UnreachableError, match="4 times: ValueError: odd"):
        attempts.make(act, "a")  # type: ignore[arg-type]
    # The next one at the same place is not tried so often.
    with pytest.raises(remote.UnreachableError, match="cannot be read: ValueError: odd"):
        attempts.make(act, "a")  # type: ignore[arg-type]
    assert len(calls) == 5 and attempts.repeated == 6
    calls, act = failing(99, FileNotFoundError())
    with pytest.raises(FileNotFoundError):
        attempts.make(act, "b")  # type: ignore[arg-type]
    assert len(calls) == 1


def test_nothing_is_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote.PATIENCE, "seconds", 0.02)
    with pytest.raises(remote.UnreachableError, match=r"no answer within 0\.02 seconds"):
        remote.Attempts().make(lambda: time.sleep(1), "a")


def test_repeated_reads_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    _, act = failing(2, OSError("odd"))
    remote.ATTEMPTS.make(act, "a")  # type: ignore[arg-type]
    remote.tell_repeated()
    remote.tell_repeated()
    assert caplog.text.count("2 reads through the network failed and were tried again") == 1
