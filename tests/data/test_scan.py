"""Scanning and holding out."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from convspark.data.decode import decode
from convspark.data.scan import _THREADS, _TRUSTED, TooManyBadPicturesError, _mapped, check_bad_share, hold_out, scan
from convspark.errors import DataError, UsageError

SUFFIXES = ("jpg", "png", "webp", "gif", "tif", "bmp", "jp2", "tga")


def write(path: Path, seed: int = 0) -> str:
    noise = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return str(path)


def bad_pictures(folder: Path) -> dict[str, str]:
    """The four kinds of bad file, with a word that their reason must hold."""
    truncated, empty, mislabelled, bomb = (
        str(folder / f"bad_{i}.{s}") for i, s in enumerate(("jpg", "png", "jpg", "png"))
    )
    write(Path(truncated))
    os.truncate(truncated, os.path.getsize(truncated) * 3 // 4)
    Path(empty).touch()
    Path(mislabelled).write_text("not a picture at all, just words")
    Image.new("1", (20_000, 20_000)).save(bomb)
    return {truncated: "truncated", empty: "empty", mislabelled: "not a picture", bomb: "too large"}


def test_bad_files_among_good_ones_are_named(tmp_path: Path) -> None:
    good = [write(tmp_path / f"good_{i}.jpg") for i in range(100)]
    bad = bad_pictures(tmp_path)
    mixed = good[:50] + list(bad) + good[50:]
    result = scan(mixed, progress=True)
    assert result.good == good
    assert [path for path, _ in result.bad] == list(bad)
    for path, reason in result.bad:
        assert bad[path] in reason


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_cut_is_found_and_no_whole_picture_turned_away(tmp_path: Path, suffix: str) -> None:
    good = write(tmp_path / f"good.{suffix}")
    content = Path(good).read_bytes()
    padded = tmp_path / f"padded.{suffix}"
    padded.write_bytes(content + bytes(50))  # as some cameras and download tools leave them
    paths = [good, str(padded)]
    for share in np.linspace(0.02, 0.95, 20):
        paths.append(str(tmp_path / f"{share:.4f}.{suffix}"))
        Path(paths[-1]).write_bytes(content[: int(len(content) * share)])
    bad = {path for path, _ in scan(paths, most_bad=1.0).bad}
    for path in paths:
        try:
            decode(path)
            assert path not in bad
        except DataError:
            assert path in bad
    assert good not in bad


def test_a_thumbnails_end_is_not_the_pictures(tmp_path: Path) -> None:
    """The end-of-image marker of a thumbnail in the metadata lies before the picture that is cut off."""
    path = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(noise).save(path, comment=b"thumbnail \xff\xd9 end")
    path.write_bytes(path.read_bytes()[:-100])
    assert scan([write(tmp_path / "good.jpg"), str(path)], most_bad=0.5).bad[0][0] == str(path)


def test_more_than_five_percent_is_fatal(tmp_path: Path) -> None:
    good = [write(tmp_path / f"good_{i}.png", i) for i in range(38)]
    bad = [str(tmp_path / f"none_{i}.png") for i in range(3)]
    assert len(scan(good + bad[:2]).bad) == 2  # 5.0 %
    with pytest.raises(
        TooManyBadPicturesError, match=r"3 of 41 pictures cannot be read:\n.*none_0.png: no such file"
    ) as caught:
        scan(good + bad)
    assert isinstance(caught.value, DataError) and "more than 5%" in str(caught.value)


def test_without_one_readable_picture(tmp_path: Path) -> None:
    bad = list(bad_pictures(tmp_path))[:2] * 8
    with pytest.raises(DataError, match=r"16 of 16 .*(.|\n)*and 8 more"):
        scan(bad, most_bad=1.0)
    with pytest.raises(DataError, match="no pictures"):
        scan([])


def test_check_bad_share_lists_a_few() -> None:
    check_bad_share([], 10)
    check_bad_share([("a", "b")], 20)
    with pytest.raises(TooManyBadPicturesError, match=r"x.jpg: empty"):
        check_bad_share([("x.jpg", "empty")], 19)


def test_a_workers_error_keeps_its_own_words() -> None:
    wrapped = (
        "Caught TooManyBadPicturesError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    )
    wrapped += '  File "x.py", line 1\nconvspark.data.scan.TooManyBadPicturesError: images: 3 of 4\n  a: b\n'
    assert str(TooManyBadPicturesError(wrapped)) == "images: 3 of 4\n  a: b"


def test_hold_out() -> None:
    items = [f"{i}.jpg" for i in range(1000)]
    train, held_out = hold_out(items, seed=3)
    assert len(held_out) == 20 and sorted(train + held_out) == sorted(items)
    assert [i for i in items if i in set(held_out)] == held_out
    assert hold_out(items, seed=3) == (train, held_out) != hold_out(items, seed=4)
    assert len(hold_out(range(100_000))[1]) == 1000
    assert len(hold_out(items, most=7)[1]) == 7
    # At least one, never all, none if asked for none.
    assert [len(hold_out(items[:n])[1]) for n in (0, 1, 2, 49, 75, 100)] == [0, 0, 1, 1, 2, 2]
    assert hold_out(items, share=0)[1] == hold_out(items, most=0)[1] == []
    for options in ({"share": 1.0}, {"share": -0.1}, {"most": -1}):
        with pytest.raises(UsageError, match="held-out"):
            hold_out(items, **options)  # type: ignore[arg-type]
    # Spread over the whole list, not taken from an end of it.
    places = [items.index(item) for item in hold_out(items, share=0.2)[1]]
    assert 400 < np.mean(places) < 600


@pytest.mark.parametrize("several_are_quicker", [False, True])
@pytest.mark.parametrize("count", [0, 1, _THREADS, _THREADS + 1, _THREADS + 2, 2 * (_THREADS + 1 + _TRUSTED) + 3])
def test_results_come_in_order_by_either_way(count: int, several_are_quicker: bool, monkeypatch) -> None:
    clock = iter(range(10_000))
    if several_are_quicker:  # by a clock on which all parts take equally long
        monkeypatch.setitem(_mapped.__globals__, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    chunks = [range(start, start + 3) for start in range(count)]
    assert list(_mapped(sum, chunks)) == [sum(chunk) for chunk in chunks]
