"""Pictures of any bands and types, against the arrays that were written."""

import gc
import io
import os
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import odd_files
import pytest
import torch
from data.shards import write_tar
from odd_files import DEFLATE, LZW, RGB, tiff
from PIL import Image, ImageOps
from torch import Tensor

from convspark.data import (
    BadPictureError,
    HeldOutTransform,
    Pixels,
    PretrainTransform,
    fitting,
    list_pictures,
    measure,
    scan,
)
from convspark.data.stored import Axis, opened
from convspark.errors import DataError, UsageError

tifffile = pytest.importorskip("tifffile", reason="tifffile writes the pictures")

KINDS = ("u1", "u2", "i2", "u4", "i4", "f2", "f4", "f8")
SHAPE = (5, 11, 13)  # bands, height, width: no two alike


def values(kind: str, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """Over the whole range of a type, with a NaN and infinities where it has them."""
    rng = np.random.default_rng(seed)
    if np.dtype(kind).kind == "f":
        array = (rng.normal(size=shape) * 1000).astype(kind)
        array.reshape(-1)[:3] = np.nan, np.inf, -np.inf
        return array
    ends = np.iinfo(kind)
    return rng.integers(ends.min, ends.max, shape, kind, endpoint=True)


def stored(
    path: Path, wanted: int | None = None, asked: Axis | None = None, content: bytes | None = None
) -> np.ndarray:
    """(bands, H, W)"""
    with opened(str(path), content) as file:
        return file.samples(file.layout.axis(wanted, asked)).transpose(2, 0, 1)


def same(read: np.ndarray, written: np.ndarray) -> None:
    assert read.dtype == written.dtype and read.shape == written.shape
    assert read.tobytes() == written.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_tiffs_of_any_layout_bit_for_bit(tmp_path: Path, kind: str) -> None:
    array, path = values(kind), tmp_path / "a.tif"
    last = np.ascontiguousarray(array.transpose(1, 2, 0))
    for options in ({}, {"compression": "zlib"}, {"tile": (16, 16)}, {"byteorder": ">"}):
        tifffile.imwrite(path, last, photometric="minisblack", planarconfig="contig", **options)
        same(stored(path), array)
        tifffile.imwrite(path, array, photometric="minisblack", planarconfig="separate", **options)
        same(stored(path), array)
        tifffile.imwrite(path, array, photometric="minisblack", **options)  # a page a band
        same(stored(path, 5), array)
    if kind != "f2":  # which OME and ImageJ do not know
        tifffile.imwrite(path, array, photometric="minisblack", metadata={"axes": "CYX"}, ome=True)
        same(stored(path), array)
    if kind in ("u1", "u2", "f4"):
        tifffile.imwrite(path, array, imagej=True, metadata={"axes": "CYX"})
        same(stored(path), array)


def test_what_tifffile_writes_of_an_array_with_its_bands_last(tmp_path: Path) -> None:
    """Eleven pages of 13 x 5: only the description that it writes tells that they are a picture of 5 bands."""
    array, path = values("u2"), tmp_path / "a.tif"
    tifffile.imwrite(path, array.transpose(1, 2, 0))
    with tifffile.TiffFile(path) as written:
        assert len(written.pages) == 11
    same(stored(path, 5), array)


@pytest.mark.parametrize(("axes", "words"), [("ZYX", "slices of a volume"), ("TYX", "moments of a film")])
def test_volumes_and_films_are_no_bands(tmp_path: Path, axes: str, words: str) -> None:
    path, array = tmp_path / "a.tif", values("u2")
    for options in ({"ome": True}, {"imagej": True}, {}):
        tifffile.imwrite(path, array, photometric="minisblack", metadata={"axes": axes}, **options)
        with pytest.raises(BadPictureError, match=f"5 pages, which it calls {words}, not bands"):
            Pixels(5).read(path)


@pytest.mark.parametrize("compression", [LZW, DEFLATE])
def test_compressed_with_a_predictor(tmp_path: Path, compression: int) -> None:
    array = values("u2", (11, 13, 6))
    (tmp_path / "a.tif").write_bytes(tiff(array, compression=compression, predictor=2, photometric=1))
    same(stored(tmp_path / "a.tif"), array.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_bit_for_bit(tmp_path: Path, kind: str, suffix: str) -> None:
    array, path = values(kind), tmp_path / f"a.{suffix}"

    def write(content: np.ndarray) -> None:
        if suffix == "npy":
            np.save(path, content)
        else:
            np.savez_compressed(path, content)

    for content in (array, array.transpose(1, 2, 0), array.astype(array.dtype.newbyteorder(">"))):
        write(content)
        for wanted in (5, None):
            same(stored(path, wanted), array)
            same(stored(Path(f"elsewhere.{suffix}"), wanted, content=path.read_bytes()), array)
    write(array[0])
    same(stored(path), array[:1])
    several = np.stack([array, array[::-1]]).transpose(0, 2, 3, 1)
    write(several)
    names = list_pictures(tmp_path, bands=True)
    assert names == [f"{path}[0]", f"{path}[1]"] == list_pictures(path, bands=True)
    assert list_pictures(names[1], bands=True) == names[1:]
    same(stored(Path(names[0]), 5), array)
    same(stored(Path(names[1]), 5), array[::-1].copy())


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that take turns at every chance, also during garbage collection, which runs all the time."""

    def change(*_: object) -> None:
        time.sleep(0)

    kept = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(1)
    sys.setswitchinterval(1e-6)
    gc.callbacks.append(change)
    yield
    gc.callbacks.remove(change)
    gc.set_threshold(*kept[0])
    sys.setswitchinterval(kept[1])


def test_arrays_read_in_threads(tmp_path: Path, hasty: None) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((4, 4, 5), np.int16), *[np.zeros(1)] * 100)
    pixels = Pixels(5, stored=True)
    with ThreadPoolExecutor(8) as pool:
        for read in pool.map(pixels.read, [tmp_path / "a.npz"] * 100):
            assert read.shape == (5, 4, 4)


def test_which_axis_is_told_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(4 * 9 * 4).reshape(4, 9, 4))
    with pytest.raises(BadPictureError, match=r"4 x 9 x 4, of which the first axis or the last .* --band-axis"):
        Pixels(4).read(path)
    first, last = (Pixels(4, band_axis=axis).read(path) for axis in ("first", "last"))
    assert isinstance(first, Tensor) and first.shape == (4, 9, 4)
    assert isinstance(last, Tensor) and last.shape == (4, 4, 9) and torch.equal(last, first.permute(2, 0, 1))
    np.save(path, np.zeros((13, 7, 7)))
    with pytest.raises(BadPictureError, match="13 x 7 x 7"):
        Pixels(2, (1, 2)).read(path)
    np.save(path, np.zeros((9, 8, 6)))
    with pytest.raises(BadPictureError, match="a picture of 6 bands, where 4 are wanted"):
        Pixels(4).read(path)


def test_arrays_of_yes_and_no(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 2, (4, 9, 8)).astype(bool)
    np.save(tmp_path / "a.npy", array)
    picture = Pixels(4).read(tmp_path / "a.npy")
    assert isinstance(picture, Tensor)
    np.testing.assert_array_equal(picture.numpy(), array)


def test_arrays_that_are_cut_off_or_say_too_much(tmp_path: Path) -> None:
    """Bytes that are announced and missing, or that follow the array, take no memory."""
    several = np.zeros((10, 20, 20, 4))
    np.save(tmp_path / "a.npy", several)
    os.truncate(tmp_path / "a.npy", 5000)
    head = np.lib.format.header_data_from_array_1_0(several) | {"shape": (10**6, 20, 20, 4)}
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive, archive.open("b.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, head)
    assert list_pictures(tmp_path, bands=True) == [str(tmp_path / "a.npy"), str(tmp_path / "b.npz")]
    for name, words in (("a.npy", r"truncated: 4872 of the 128000 bytes"), ("b.npz", "truncated: 0 of the")):
        with pytest.raises(BadPictureError, match=words):
            Pixels(4).read(tmp_path / name)
    with (
        zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("c.npy", "w") as member,
    ):
        np.lib.format.write_array(member, np.zeros((9, 8, 4)))
        for _ in range(32):
            member.write(bytes(1 << 20))
    tracemalloc.start()
    assert Pixels(4).read(tmp_path / "c.npz").shape == (4, 9, 8)  # type: ignore[union-attr]
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_arrays_that_are_no_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for content, words in (
        (np.zeros(5), "shape"),
        (np.zeros((0, 4)), "shape"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.array([[None]]), "object"),
        (np.full((4, 4), np.nan), "all is missing"),
    ):
        np.save(path, content)
        with pytest.raises(BadPictureError, match=words):
            Pixels(1, stored=True).read(path)
    np.savez(tmp_path / "b.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    with pytest.raises(BadPictureError, match=r"2 arrays .*\(a, b\)"):
        Pixels(1, stored=True).read(tmp_path / "b.npz")


def test_png_and_jpeg_as_they_are_stored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65536, (11, 13), np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    same(stored(tmp_path / "a.png"), deep[None])
    for mode, bands in (("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)):
        array = rng.integers(0, 256, (11, 13, bands), np.uint8)
        picture = Image.fromarray(array[..., 0] if bands == 1 else array, mode=None)
        assert picture.mode == mode
        picture.save(tmp_path / "a.png")
        same(stored(tmp_path / "a.png"), array.transpose(2, 0, 1))
    picture.convert("RGB").save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as decoded:
        same(stored(tmp_path / "a.jpg"), np.asarray(decoded).transpose(2, 0, 1))


@pytest.mark.parametrize("bands", [1, 3])
def test_a_colour_of_sixteen_bits_that_stands_for_transparent(tmp_path: Path, bands: int) -> None:
    """As PNG's chunk tRNS says: it is missing, as it is in pictures of 8 bits."""
    array = values("u2", (bands, 11, 13))
    array[:, 2:4, 5] = array[:, :1, 0]
    seen = (array != array[:, :1, :1]).any(0)
    key = b"tRNS", array[:, 0, 0].astype(">u2").tobytes()
    (tmp_path / "a.png").write_bytes(odd_files.png(array.transpose(1, 2, 0), 16, 2 if bands == 3 else 0, key))
    picture = Pixels(bands, stored=True).read(tmp_path / "a.png")
    assert isinstance(picture, Tensor)
    np.testing.assert_allclose(picture.numpy(), np.where(seen, array / 65535, np.nan), rtol=1e-6)


@pytest.mark.parametrize("in_words", [False, True])
@pytest.mark.parametrize("bands", [1, 3])
def test_portable_maps_of_twelve_bits_are_not_scaled(tmp_path: Path, bands: int, in_words: bool) -> None:
    array = np.random.default_rng(0).integers(0, 4096, (bands, 11, 13), np.uint16)
    content = odd_files.pnm(array.transpose(1, 2, 0), 4095)
    if in_words:
        first, *others = map(str, array.transpose(1, 2, 0).flat)
        content = f"P{2 if bands == 1 else 3}\n13 11\n4095\n{first} # and more\n{' '.join(others)}".encode()
    (tmp_path / "a.pnm").write_bytes(content)
    same(stored(tmp_path / "a.pnm"), array)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
def test_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    """As Pillow turns the same picture of 8 bits."""
    array = np.random.default_rng(0).integers(0, 256, (9, 14), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, plain = tmp_path / f"a.{suffix}", tmp_path / f"plain.{'png' if suffix == 'tif' else suffix}"
    Image.fromarray(array).save(plain, exif=exif)
    if suffix == "tif":
        more: dict[int, tuple[str, Any]] = {274: ("H", [orientation])}
        path.write_bytes(tiff(array.astype(np.uint16)[..., None], more=more))
    else:
        path = plain
    with Image.open(plain) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(stored(path)[0], expected)
    assert Pixels(1, stored=True).upright_size(str(path)) == expected.shape


def test_bands_and_scale(tmp_path: Path) -> None:
    array = values("u2")
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", planarconfig="separate")
    low, high = (1000.0, 0.0, 30000.0), (50000.0, 65535.0, 30001.0)
    picture = Pixels(3, (4, 1, 1), low=low, high=high).read(tmp_path / "a.tif")
    chosen = zip((3, 0, 0), low, high, strict=True)
    expected = [((array[i].astype(np.longdouble) - a) / (b - a)).clip(0, 1) for i, a, b in chosen]
    assert isinstance(picture, Tensor)
    np.testing.assert_allclose(picture.numpy(), np.stack(expected).astype(float), atol=1e-6)
    shares = Pixels(5).read(tmp_path / "a.tif")
    assert isinstance(shares, Tensor)
    np.testing.assert_allclose(shares.numpy(), array / 65535, atol=1e-7)
    with pytest.raises(BadPictureError, match="a picture of 5 bands, where band 6 is wanted"):
        Pixels(2, (1, 6)).read(tmp_path / "a.tif")


def test_what_is_missing_becomes_the_mean(tmp_path: Path) -> None:
    """No number, infinite, GDAL's value for no data, transparent."""
    array = np.full((2, 4, 4), 8.0, np.float32)
    array[0, 0, :3], array[1, 3, 3] = (np.nan, np.inf, -3.4028234663852886e38), np.nan
    nodata = (42113, "s", 0, "-3.4028234663852886e+38", True)
    options: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "a.tif", array, extratags=[nodata], **options)
    pixels = Pixels(2, low=(0.0, 0.0), high=(10.0, 10.0))
    picture = pixels.read(tmp_path / "a.tif")
    assert isinstance(picture, Tensor)
    assert picture.isnan().nonzero().tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [1, 3, 3]]
    image = HeldOutTransform(size=4, mean=(0.3, 0.7), std=(0.5, 0.1))(picture)
    assert image.isfinite().all()
    assert image[0, 0, :3].abs().max() < 1e-6 and image[1, 3, 3].abs() < 1e-5
    torch.testing.assert_close(image[0, 1:], torch.full((3, 4), 1.0))
    torch.testing.assert_close(image[1, :3], torch.full((3, 4), 1.0), rtol=1e-4, atol=1e-5)

    integers = np.full((6, 6, 3), 7, np.int16)
    integers[2, 2] = -9999, 5, -9999
    (tmp_path / "b.tif").write_bytes(tiff(integers, photometric=RGB, more={42113: ("s", b"-9999\0")}))
    picture = Pixels(3, stored=True).read(tmp_path / "b.tif")
    assert isinstance(picture, Tensor) and picture.isnan().nonzero().tolist() == [[0, 2, 2], [2, 2, 2]]

    rgba = np.full((3, 3, 4), 200, np.uint8)
    rgba[1, 1, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "c.png")
    picture = Pixels(3, stored=True).read(tmp_path / "c.png")
    assert isinstance(picture, Tensor) and picture.isnan().nonzero().tolist() == [[c, 1, 1] for c in range(3)]
    bands = Pixels(4).read(tmp_path / "c.png")  # where opacity is a channel, it is one like the others
    assert isinstance(bands, Tensor) and float(bands[3, 1, 1]) == 0 and not bands.isnan().any()


def test_grey_stands_for_colour(tmp_path: Path) -> None:
    deep = values("u2", (12, 12))
    Image.fromarray(deep).save(tmp_path / "a.png")
    transform = HeldOutTransform(size=12, mean=(0.0,) * 3, std=(1.0,) * 3)
    image = transform(Pixels(3, low=(0.0,) * 3, high=(65535.0,) * 3).read(tmp_path / "a.png"))
    assert image.shape == (3, 12, 12)
    np.testing.assert_allclose(image[1].numpy(), deep / 65535, atol=1e-6)


@pytest.mark.parametrize("counter", [(0, 1, 0, 3), (5, 1, 2, 7), (9, 1, 1, 1)])
def test_crops_are_those_of_pictures(tmp_path: Path, counter: tuple[int, ...]) -> None:
    """The same place, mirrored alike, resized as Pillow's bytes are."""
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8))
    picture = coarse.resize((80, 60), Image.Resampling.BICUBIC)
    array = np.asarray(picture).astype(np.float32) * 37 + 5
    np.save(tmp_path / "a.npy", array)
    transform = PretrainTransform(size=(24, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    pixels = Pixels(3, low=(5.0,) * 3, high=(5.0 + 37 * 255,) * 3)
    difference = transform(pixels.read(tmp_path / "a.npy"), counter) - transform(picture, counter)
    assert float(difference.abs().max()) < 3 / 255 / 0.2


def test_statistics(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal((100, -5, 0), (30, 1, 0.001), (20, 30, 3)).astype(np.float32) for _ in range(4)]
    arrays[2][0, :, 1] = np.nan
    for i, array in enumerate(arrays):
        np.save(tmp_path / f"{i}.npy", array)
    paths = list_pictures(tmp_path, bands=True)
    pixels = fitting(paths, Pixels(3))
    assert not pixels.is_plain
    stats = measure(paths, pixels)
    every = np.stack(arrays).reshape(-1, 3).astype(float)
    assert stats.files == stats.total == 4 and stats.pixels == 2400 and stats.kinds == {"float32": 4}
    np.testing.assert_allclose(stats.missing, [0, 30 / 2400, 0])
    np.testing.assert_allclose(stats.minimum, np.nanmin(every, 0))
    low, high = np.nanquantile(every, (0.001, 0.999), axis=0)
    assert stats.low is not None and stats.high is not None
    np.testing.assert_allclose([stats.low, stats.high], [low, high], rtol=1e-6)
    scaled = ((every - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose([stats.mean, stats.std], [np.nanmean(scaled, 0), np.nanstd(scaled, 0)], rtol=1e-5)
    # What is trained on has mean 0 and deviation 1.
    transform = HeldOutTransform(size=(20, 30), mean=stats.mean, std=stats.std)
    images = torch.stack([transform(stats.scaled(pixels).read(path)) for path in paths])
    assert images.mean((0, 2, 3)).abs().max() < 0.02 and (images.std((0, 2, 3)) - 1).abs().max() < 0.02
    assert stats.scaled(pixels).low == tuple(stats.low)
    kept = measure(paths, Pixels(3, low=(0.0,) * 3, high=(200.0,) * 3))
    assert kept.low == [0.0] * 3 and kept.mean[0] == pytest.approx(np.mean(every[:, 0].clip(0, 200) / 200), rel=1e-5)


def test_statistics_of_plain_pictures(tmp_path: Path) -> None:
    arrays = [np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8) for i in range(3)]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    paths = list_pictures(tmp_path, bands=True)
    assert fitting(paths, Pixels(3)).is_plain
    stats = measure(paths, Pixels(3))
    every = np.stack(arrays).reshape(-1, 3) / 255
    assert stats.low is None and stats.scaled(Pixels(3)).is_plain
    np.testing.assert_allclose([stats.mean, stats.std], [every.mean(0), every.std(0)], rtol=1e-6)


def test_a_band_that_tells_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    array = np.ones((8, 8, 2), np.uint16)
    array[0, 0, 0] = 3
    np.save(tmp_path / "a.npy", array)
    stats = measure([str(tmp_path / "a.npy")], Pixels(2))
    assert stats.low == [1, 1] and stats.high is not None and stats.high[1] == 2 and stats.std[1] == 1
    assert "channel 2: it carries no information" in caplog.text
    np.save(tmp_path / "a.npy", np.where(array == 1, np.nan, array))
    with pytest.raises(DataError, match="channel 2 has no value in any of 1 files"):
        measure([str(tmp_path / "a.npy")], Pixels(2))


def test_scanning_finds_other_bands_and_damage(tmp_path: Path) -> None:
    good = []
    for i in range(3):
        good.append(str(tmp_path / f"{i}.tif"))
        tifffile.imwrite(good[-1], values("i2", (6, 20, 20), i), photometric="minisblack", planarconfig="separate")
    np.save(tmp_path / "x.npy", values("i2", (6, 20, 20)))
    good.append(str(tmp_path / "x.npy"))
    tifffile.imwrite(
        tmp_path / "four.tif", values("i2", (4, 20, 20)), photometric="minisblack", planarconfig="separate"
    )
    for name in ("0.tif", "x.npy"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(content[: len(content) * 2 // 3])
    result = scan(list_pictures(tmp_path, bands=True), most_bad=1, pixels=Pixels(6))
    assert result.good == sorted(good)
    reasons = {Path(path).name: reason for path, reason in result.bad}
    assert reasons["four.tif"].startswith("a picture of 4 bands, where 6 are wanted")
    assert "truncated" in reasons["cut-0.tif"] and reasons["cut-x.npy"]
    assert sorted(reasons) == ["cut-0.tif", "cut-x.npy", "four.tif"]


def test_arrays_count_only_where_bands_are_asked_for(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.zeros((4, 4, 3)))
    assert list_pictures(tmp_path) == [str(tmp_path / "a.png")]
    assert len(list_pictures(tmp_path, bands=True)) == 2
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"Of \.npy, tell how many bands there are: --channels N --stats auto"):
        list_pictures(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bands": (0, 1, 2)}, "counted from 1"),
        ({"bands": (1, 2)}, "--channels 2"),
        ({"low": (0.0,) * 3}, "belong together"),
        ({"low": (0.0,), "high": (1.0,)}, "expected 3"),
        ({"low": (0.0, 0.0, 2.0), "high": (1.0, 1.0, 2.0)}, "low is 2 where high is 2"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Pixels(**options)


def test_pixels_round_trip() -> None:
    pixels = Pixels(2, (4, 1), "last", (0.0, 1.0), (5.0, 6.0))
    assert Pixels.of_dict(pixels.as_dict()) == pixels
    assert Pixels().as_dict() == {"channels": 3}


def test_real_files(shared_data_dir: Path, tmp_path: Path) -> None:
    import tarfile

    archive = shared_data_dir / "data" / "multiband.tar"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / "multiband"
    for path in sorted(folder.glob("*tif*")):
        array = tifffile.imread(path)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        same(stored(path), np.ascontiguousarray(array))
    scenes = np.load(folder / "sentinel2_5scenes_13band.npy")
    names = list_pictures(folder / "sentinel2_5scenes_13band.npy", bands=True)
    assert len(names) == 5
    for name, scene in zip(names, scenes, strict=True):
        same(stored(Path(name), 13), np.ascontiguousarray(scene.transpose(2, 0, 1)))


@pytest.mark.parametrize(("channels", "name"), [(3, "a.npy"), (1, "A.NPY")])
def test_arrays_of_bytes_are_read_as_they_are_stored(channels: int, name: str, tmp_path: Path) -> None:
    """Of 8 bits, like plain pictures; but Pillow reads none."""
    array = np.random.default_rng(0).integers(0, 256, (20, 30, channels), np.uint8)
    np.save(tmp_path / "x.npy", np.stack([array, array]))
    (tmp_path / "x.npy").rename(tmp_path / name)
    paths = list_pictures(tmp_path, bands=True)
    assert [path.rpartition("/")[2] for path in paths] == [f"{name}[0]", f"{name}[1]"]
    pixels = fitting(paths, Pixels(channels))
    stats = measure(paths, pixels)
    assert stats.low is not None and stats.high is not None
    low, high = np.quantile(np.tile(array.reshape(-1, channels), (2, 1)), (0.001, 0.999), axis=0)
    read = stats.scaled(pixels).read(paths[0])
    assert isinstance(read, torch.Tensor)
    np.testing.assert_allclose(read.permute(1, 2, 0), ((array - low) / (high - low)).clip(0, 1), atol=1e-5)


def test_arrays_of_bytes_in_tars_are_arrays_too(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((20, 30, 3), np.uint8))
    write_tar(tmp_path / "a.tar", {"a.npy": file.getvalue()})
    pixels = fitting(list_pictures(tmp_path, bands=True), Pixels(3))
    assert not pixels.is_plain


def test_one_large_value_everywhere_has_a_scale(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((8, 8), 1e20, np.float32))
    paths = list_pictures(tmp_path, bands=True)
    stats = measure(paths, Pixels(1, stored=True))
    assert stats.mean == pytest.approx([0.0], abs=1e-3) and stats.std == [1.0]
    assert stats.scaled(Pixels(1)).low == pytest.approx((1e20,))


def test_a_scale_is_of_finite_numbers() -> None:
    for low, high in ((-np.inf, 1.0), (0.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(UsageError, match="low below high, finite numbers"):
            Pixels(1, low=(low,), high=(high,))
