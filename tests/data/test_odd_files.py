"""Every kind of samples comes out with the right pixels or is refused with what to do; nothing crashes."""

import contextlib
import io
from pathlib import Path

import numpy as np
import odd_files
import pytest
import tifffile
import torch
from odd_files import DEFLATE, LZMA, LZW, NONE, PACKBITS, tiff
from PIL import Image
from torch import Tensor

from convspark.data import Pixels, list_pictures
from convspark.data.decode import BadPictureError, decode, upright_size
from convspark.data.scan import scan

pytestmark = pytest.mark.robust("odd files")


def check(folder: Path, cases: list[odd_files.Case]) -> None:
    wrong: list[str] = []
    readable: list[str] = []
    for number, (name, content, expected) in enumerate(cases):
        path = folder / str(number)
        path.write_bytes(content)
        if isinstance(expected, str):
            with pytest.raises(BadPictureError, match=expected):
                decode(path)
            continue
        readable.append(str(path))
        try:
            pixels = np.asarray(decode(path)).astype(int)
            if pixels.shape[:2] != expected.shape[:2] or np.abs(pixels - expected).max() > 1:
                wrong.append(f"{name}: wrong pixels")
            elif upright_size(str(path)) != expected.shape[:2]:
                wrong.append(f"{name}: its size is another than that of its pixels")
        except BadPictureError as error:
            wrong.append(f"{name}: {error.reason}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(cases)}", *wrong])
    assert scan([str(folder / str(number)) for number in range(len(cases))], most_bad=1.0).good == readable


@pytest.mark.parametrize(("every", "least"), [(4, 400), pytest.param(1, 1600, marks=pytest.mark.slow)])
def test_tiff(tmp_path: Path, every: int, least: int) -> None:
    cases = odd_files.tiff_cases(every)
    assert len(cases) > least
    check(tmp_path, cases)


def test_other_formats(tmp_path: Path) -> None:
    check(tmp_path, odd_files.other_cases())


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u1", "i2", "u4", "f4", "f8"])
@pytest.mark.parametrize("how", [{}, {"tile": (16, 32)}, {"planar": True}, {"compression": DEFLATE}, {"big": True}])
def test_the_files_are_what_tifffile_reads(order: str, kind: str, how: dict) -> None:
    """The writer of the cases above, compared with another library."""
    samples = (np.random.default_rng(0).random((21, 37, 3)) * 200).astype(kind)
    read = tifffile.imread(io.BytesIO(tiff(samples, order=order, **how)))
    np.testing.assert_array_equal(np.moveaxis(read, 0, -1) if how.get("planar") else read, samples)
    if kind[0] != "f":
        read = tifffile.imread(io.BytesIO(tiff(samples[..., :1], order=order, compression=DEFLATE, predictor=2)))
        np.testing.assert_array_equal(read, samples[..., 0])


@pytest.mark.parametrize("how", [{}, {"tile": (16, 32)}, {"planar": True}, {"compression": LZW}])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_big_tiffs_of_either_byte_order(tmp_path: Path, kind: str, how: dict) -> None:
    """As Pillow or we read the same pixels in a usual file."""
    for bands in (1, 3):
        samples = (np.random.default_rng(bands).random((21, 37, bands)) * 200).astype(kind)
        (tmp_path / "usual.tif").write_bytes(tiff(samples, **how))
        for order in "<>":
            (tmp_path / "picture").write_bytes(tiff(samples, order=order, big=True, **how))
            assert list_pictures(tmp_path) == [str(tmp_path / "picture"), str(tmp_path / "usual.tif")]
            np.testing.assert_array_equal(decode(tmp_path / "picture"), decode(tmp_path / "usual.tif"))
            stored = Pixels(bands, stored=True).read(tmp_path / "picture")
            assert isinstance(stored, Tensor)
            largest = np.iinfo(kind).max if kind[0] == "u" else 1
            np.testing.assert_allclose(stored.permute(1, 2, 0).numpy(), samples / largest, rtol=1e-6)


@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_a_smaller_copy_before_the_picture_is_not_taken_for_it(tmp_path: Path, kind: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 36, 3)).astype(kind)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.ascontiguousarray(picture[::4, ::4]), photometric="rgb", subfiletype=1, metadata=None)
        file.write(picture, photometric="rgb", metadata=None)
    tifffile.imwrite(tmp_path / "alone.tif", picture, photometric="rgb")
    np.testing.assert_array_equal(decode(tmp_path / "a.tif"), decode(tmp_path / "alone.tif"))
    assert upright_size(str(tmp_path / "a.tif")) == (20, 36)
    read = [Pixels(3, stored=True).read(tmp_path / name) for name in ("a.tif", "alone.tif")]
    assert isinstance(read[0], Tensor) and isinstance(read[1], Tensor) and torch.equal(read[0], read[1])


@pytest.mark.parametrize("compression", [NONE, LZW, DEFLATE, PACKBITS, LZMA])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_files_that_are_cut_off_are_refused(tmp_path: Path, kind: str, compression: int) -> None:
    samples = (np.random.default_rng(0).random((60, 80, 3)) * 200).astype(kind)
    whole = tiff(samples, compression=compression)
    path, good = tmp_path / "a.tif", tmp_path / "good.tif"
    good.write_bytes(whole)
    for share in (0.05, 0.3, 0.6, 0.9, 0.99):
        content = whole[: int(share * len(whole))]
        path.write_bytes(content)
        with pytest.raises(BadPictureError):
            decode(path)
        assert scan([str(good), str(path)], most_bad=0.5).good == [str(good)]


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation(tmp_path: Path, kind: str, orientation: int) -> None:
    stored = np.arange(0, 6 * 10 * 40, 40).reshape(6, 10, 1).astype(kind)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(stored, more={274: ("H", [orientation])}))
    grey = odd_files.stretched(stored)[..., 0] if kind == "u2" else stored[..., 0]
    upright = {  # where the first row and the first column are, by TIFF 6.0; of other numbers nothing is known
        2: grey[:, ::-1],
        3: grey[::-1, ::-1],
        4: grey[::-1],
        5: grey.T,
        6: grey.T[:, ::-1],
        7: grey.T[::-1, ::-1],
        8: grey.T[::-1],
    }.get(orientation, grey)
    np.testing.assert_allclose(np.asarray(decode(path))[..., 0], upright, atol=1)
    assert upright_size(str(path)) == upright.shape


@pytest.mark.parametrize("after", [False, True])
def test_a_deep_png_is_turned_upright(tmp_path: Path, after: bool) -> None:
    samples = np.arange(6 * 10 * 3, dtype=np.uint16).reshape(6, 10, 3) * 300
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = (b"eXIf", exif.tobytes()[6:])
    content = odd_files.png(samples, 16, 2, chunk)
    if after:  # the pixels
        start, end = content.index(b"eXIf") - 4, content.index(b"IDAT") - 4
        content = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    (tmp_path / "a.png").write_bytes(content)
    upright = odd_files.stretched(samples).transpose(1, 0, 2)[:, ::-1]
    np.testing.assert_allclose(np.asarray(decode(tmp_path / "a.png")), upright, atol=1)
    assert upright_size(str(tmp_path / "a.png")) == (10, 6)


@pytest.mark.parametrize("imagej", [True, False])
def test_pictures_without_tags_of_their_own_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, imagej: bool
) -> None:
    """As ImageJ writes more than 4 GB: the tags of the first picture, and the samples of all."""
    path, array = tmp_path / "a.tif", np.arange(3 * 40 * 30, dtype=np.uint16).reshape(3, 40, 30)
    tifffile.imwrite(path, array, imagej=imagej, truncate=True, photometric="minisblack")
    with tifffile.TiffFile(path) as written:
        assert written.series[0].shape == array.shape
    assert scan([str(path)]).good == [str(path)]
    assert "1 of 1 files hold several pictures, of which the first is taken" in caplog.text
    with pytest.raises(BadPictureError, match="a TIFF of 3 pictures in one page"):
        Pixels(1, stored=True).read(path)
    caplog.clear()
    path.write_bytes(path.read_bytes()[: -2 * array[0].nbytes])  # the description alone says three
    assert scan([str(path)]).good == [str(path)] and "several" not in caplog.text
    assert Pixels(1, stored=True).read(path).shape == (1, 40, 30)


def test_an_orientation_that_is_none_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    for suffix in ("jpg", "png", "tif"):
        Image.new("RGB", (6, 4)).save(tmp_path / f"a.{suffix}", exif=exif)
        assert decode(tmp_path / f"a.{suffix}").size == (6, 4)
        assert upright_size(str(tmp_path / f"a.{suffix}")) == (4, 6)


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_left_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, whole: bool) -> None:
    grey, four = np.ones((8, 9, 1), np.uint16), np.ones((8, 9, 4), np.uint8)
    grey[0] = four[0] = 0
    several = "2 of 6 files hold several pictures, of which the first is taken"
    bands = "1 of 6 files have further bands, of which the first three are taken as red, green and blue"
    (tmp_path / "pages.tif").write_bytes(tiff(grey, pages=3))
    (tmp_path / "pyramid.tif").write_bytes(tiff(grey, pages=3, more={254: ("I", [1])}))
    (tmp_path / "one.tif").write_bytes(tiff(grey))
    (tmp_path / "bands.tif").write_bytes(tiff(four, photometric=odd_files.RGB, more={338: ("H", [0])}))
    (tmp_path / "opacity.tif").write_bytes(tiff(four, photometric=odd_files.RGB, more={338: ("H", [2])}))
    frames = [Image.new("L", (8, 8), level) for level in (0, 200)]
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    paths = sorted(map(str, tmp_path.iterdir()))
    assert scan(paths, whole=whole).good == paths
    assert f"{several}: {tmp_path / 'frames.gif'}, {tmp_path / 'pages.tif'}\n" in caplog.text
    assert f"{bands}: {tmp_path / 'bands.tif'}\n" in caplog.text


def test_a_directory_that_leads_to_itself_ends(tmp_path: Path) -> None:
    content = bytearray(tiff(np.arange(72, dtype=np.uint16).reshape(8, 9, 1), pages=2, more={254: ("I", [1])}))
    first = int.from_bytes(content[4:8], "little")
    content[-4:] = first.to_bytes(4, "little")  # after the last one, the first again
    (tmp_path / "a.tif").write_bytes(content)
    assert scan([str(tmp_path / "a.tif")]).good and decode(tmp_path / "a.tif").size == (9, 8)


def test_more_pixels_than_may_be_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    content = tiff(np.ones((8, 9, 1), np.uint16), more={256: ("I", [1 << 20]), 257: ("I", [1 << 20])})
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(BadPictureError, match="too large"):
        decode(tmp_path / "a.tif")
    for sides in ((1 << 30, 16), (16, 1 << 30)):  # of a tile, for all of which memory would be taken
        tiles = {322: ("I", [sides[0]]), 323: ("I", [sides[1]])}
        (tmp_path / "a.tif").write_bytes(tiff(np.ones((8, 9, 1), np.uint16), tile=(16, 16), more=tiles))
        with pytest.raises(BadPictureError, match="too large"):
            decode(tmp_path / "a.tif")


@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 4096, (21, 37, 3), np.uint16)
    files = [tiff(samples, compression=compression, rows=30) for compression in (NONE, LZW, DEFLATE, PACKBITS)]
    files += [
        tiff(samples, tile=(16, 16), compression=LZW),
        odd_files.png(samples, 16, 2),
        odd_files.pnm(samples, 4095),
    ]
    path = tmp_path / "a"
    for whole in files:
        for _ in range(100):
            content = bytearray(whole)
            for place in rng.integers(max(0, len(whole) - rng.choice([200, 10_000])), len(whole), 3):
                content[place] = rng.integers(256)
            path.write_bytes(content[: rng.integers(8, len(whole))] if rng.random() < 0.2 else content)
            with contextlib.suppress(BadPictureError):
                decode(path)
