"""Decoding: every kind of file gives the colours and the orientation that went in; bad files give a reason."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convspark.data.decode import BadPictureError, Shrunk, decode, picture_suffixes, to_rgb
from convspark.errors import DataError

# Height 40, width 60, four flat quarters, far apart in colour: any flip or turn shows.
RED, GREEN, BLUE, YELLOW = (200, 30, 30), (30, 160, 40), (20, 40, 200), (220, 210, 20)


def quarters(scale: int = 1) -> Image.Image:
    pixels = np.empty((40, 60, 3), np.uint8)
    pixels[:20, :30], pixels[:20, 30:] = RED, GREEN
    pixels[20:, :30], pixels[20:, 30:] = BLUE, YELLOW
    return Image.fromarray(pixels.repeat(scale, 0).repeat(scale, 1))


def assert_quarters(picture: Image.Image, tolerance: int = 0) -> None:
    assert picture.mode == "RGB"
    assert picture.width * 2 == picture.height * 3
    middles = [picture.getpixel((picture.width * x // 4, picture.height * y // 4)) for y in (1, 3) for x in (1, 3)]
    np.testing.assert_allclose(middles, [RED, GREEN, BLUE, YELLOW], atol=tolerance)


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.png", {}, 0),
        ("a.jpg", {"quality": 95}, 4),
        ("a.bmp", {}, 0),
        ("a.tif", {}, 0),
        ("a.tiff", {"compression": "tiff_lzw"}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.gif", {}, 2),
        ("a.jp2", {}, 6),
        ("a.avif", {"quality": 95}, 6),
        ("a.tga", {}, 0),
        ("a.ppm", {}, 0),
        ("a.pcx", {}, 0),
        ("a.sgi", {}, 0),
        ("a.qoi", {}, 0),
        ("a.dds", {}, 0),
        ("a.ico", {"sizes": [(60, 40)]}, 0),
        ("A.JPEG", {"quality": 95, "progressive": True}, 4),
    ],
)
def test_formats(tmp_path: Path, name: str, options: dict, tolerance: int) -> None:
    path = tmp_path / name
    try:
        quarters().save(path, **options)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"this Pillow cannot write {name}")
    assert path.suffix.lower() in picture_suffixes()
    assert_quarters(decode(path), tolerance)


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert_quarters(decode(tmp_path / "a.jpg"))


# What a camera held in each of the eight ways stores, from the EXIF standard: row 0 and column 0 of the stored pixels
# are the named sides of the scene.
STORED = {
    1: lambda scene: scene,
    2: lambda scene: scene[:, ::-1],
    3: lambda scene: scene[::-1, ::-1],
    4: lambda scene: scene[::-1],
    5: lambda scene: scene.transpose(1, 0, 2),
    6: lambda scene: scene.transpose(1, 0, 2)[::-1],
    7: lambda scene: scene.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda scene: scene.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("factor", [1.9, 5.0])
def test_orientation(tmp_path: Path, orientation: int, suffix: str, factor: float) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(quarters(10)))))
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, quality=95)
    asked: list[tuple[int, int]] = []
    picture = decode(path, lambda height, width: asked.append((height, width)) or factor)
    if factor > 2 and suffix == "jpg":
        assert isinstance(picture, Shrunk) and picture.full_size == (400, 600)
        picture = picture.picture
        assert picture.size == (150, 100)
    assert isinstance(picture, Image.Image)
    assert_quarters(picture, tolerance=4)
    assert asked == ([(400, 600)] if suffix == "jpg" else [])


def test_damaged_exif_does_not_condemn_the_pixels(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.jpg", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert_quarters(decode(tmp_path / "a.jpg"), tolerance=4)


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "a.png")), np.stack([grey] * 3, -1))
    Image.fromarray(grey > 100).save(tmp_path / "b.png")  # one bit
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "b.png"))[..., 0], (grey > 100) * 255)


def test_palette(tmp_path: Path) -> None:
    quarters().quantize(4).save(tmp_path / "a.png")
    assert_quarters(decode(tmp_path / "a.png"))


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    colours = np.zeros((2, 3, 4), np.uint8)
    colours[0] = [(200, 100, 0, 255), (200, 100, 0, 0), (200, 100, 0, 51)]  # opaque, transparent, a fifth
    colours[1] = [(0, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 51)]
    Image.fromarray(colours).save(tmp_path / "a.png")
    opacity = colours[..., 3:] / 255
    expected = colours[..., :3] * opacity + 255 * (1 - opacity)
    np.testing.assert_allclose(np.asarray(decode(tmp_path / "a.png")), expected, atol=1)

    Image.fromarray(colours[..., [0, 3]]).save(tmp_path / "grey.png")
    np.testing.assert_allclose(np.asarray(decode(tmp_path / "grey.png"))[..., 0], expected[..., 0], atol=1)


def test_a_transparent_palette_entry_or_colour_is_white(tmp_path: Path) -> None:
    palette = quarters().quantize(4)
    of_red = palette.getpixel((0, 0))
    palette.save(tmp_path / "palette.png", transparency=of_red)
    palette.save(tmp_path / "palette.gif", transparency=of_red)
    palette.save(tmp_path / "bytes.png", transparency=bytes(0 if i == of_red else 255 for i in range(4)))
    quarters().save(tmp_path / "colour.png", transparency=RED)
    for name in ("palette.png", "palette.gif", "bytes.png", "colour.png"):
        picture = decode(tmp_path / name)
        assert picture.getpixel((10, 10)) == (255, 255, 255), name
        np.testing.assert_allclose(picture.getpixel((50, 10)), GREEN, atol=2)


def test_premultiplied_alpha() -> None:
    straight = Image.new("RGBA", (2, 2), (200, 100, 0, 51))
    np.testing.assert_allclose(to_rgb(straight.convert("RGBa")).getpixel((0, 0)), (244, 224, 204), atol=3)
    grey = Image.new("LA", (2, 2), (100, 51))
    np.testing.assert_allclose(to_rgb(grey.convert("La")).getpixel((0, 0)), (224, 224, 224), atol=3)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    quarters().convert("CMYK").save(tmp_path / f"a.{suffix}", quality=95)
    assert_quarters(decode(tmp_path / f"a.{suffix}"), tolerance=5)


def test_other_colour_spaces(tmp_path: Path) -> None:
    assert_quarters(to_rgb(quarters().convert("HSV")), tolerance=4)
    assert_quarters(to_rgb(quarters().convert("YCbCr")), tolerance=4)
    Image.new("LAB", (4, 4), (255, 128, 128)).save(tmp_path / "lab.tif")
    np.testing.assert_allclose(decode(tmp_path / "lab.tif").getpixel((0, 0)), (255, 255, 255), atol=6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("highest", [4095, 65535])
def test_sixteen_bit_grey_is_stretched(tmp_path: Path, suffix: str, highest: int) -> None:
    ramp = np.linspace(0, highest, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(np.asarray(decode(tmp_path / f"a.{suffix}"))[..., 2].ravel(), np.arange(256), atol=1)


def test_sixteen_bit_big_endian_and_constant(tmp_path: Path) -> None:
    ramp = np.linspace(300, 700, 256).round().astype(">u2").reshape(16, 16)
    header = b"P5 16 16 65535\n"
    (tmp_path / "a.pgm").write_bytes(header + ramp.tobytes())
    np.testing.assert_allclose(np.asarray(decode(tmp_path / "a.pgm"))[..., 0].ravel(), np.arange(256), atol=1)
    (tmp_path / "b.pgm").write_bytes(header + np.full((16, 16), 5000, ">u2").tobytes())
    assert decode(tmp_path / "b.pgm").getextrema() == ((0, 0),) * 3


def test_float_grey_with_holes(tmp_path: Path) -> None:
    values = np.linspace(-3, 8, 256, dtype=np.float32).reshape(16, 16)
    values[3, 4], values[5, 6], values[7, 8] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    got = np.asarray(decode(tmp_path / "a.tif"))[..., 0]
    assert (got[3, 4], got[5, 6], got[7, 8]) == (0, 255, 0)
    assert (got[0, 0], got[-1, -1]) == (0, 255)


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    # Pillow writes none, so the PNG is put together by hand: one row of 2 pixels, 16 bits each of R, G, B.
    row = b"\0" + struct.pack(">6H", 0xFF00, 0x8000, 0x0100, 0x0000, 0x4000, 0xC0FF)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    body = header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    expected = [[(255, 128, 1), (0, 64, 192)]]
    np.testing.assert_allclose(np.asarray(decode(tmp_path / "a.png")), expected, atol=1)


def test_first_picture_of_many(tmp_path: Path) -> None:
    others = [Image.new("RGB", (60, 40), "black")]
    for name in ("a.gif", "a.tif", "a.webp", "a.png"):
        quarters().save(tmp_path / name, save_all=True, append_images=others, lossless=True)
        assert_quarters(decode(tmp_path / name), tolerance=2)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(1600, 1200), (1207, 1601), (17, 9)])
def test_a_jpeg_is_shrunk_no_further_than_asked_and_true_to_the_picture(
    tmp_path: Path, mode: str, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    coarse.convert(mode).save(tmp_path / "a.jpg", quality=95)
    whole = decode(tmp_path / "a.jpg")
    for factor, expected in [(1.0, 1), (1.99, 1), (2.0, 2), (3.9, 2), (4.0, 4), (8.0, 8), (100.0, 8), (0.1, 1)]:
        picture = decode(tmp_path / "a.jpg", lambda height, width, factor=factor: factor)
        if expected == 1:
            assert isinstance(picture, Image.Image) and picture.size == size
            continue
        assert isinstance(picture, Shrunk) and picture.full_size == (size[1], size[0])
        small = picture.picture
        assert small.mode == "RGB" and small.size == (-(-size[0] // expected), -(-size[1] // expected))
        if min(size) > 100:
            mean = np.asarray(whole.resize(small.size, Image.Resampling.BOX), float)
            assert np.abs(np.asarray(small, float) - mean).mean() < 1.5, factor


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is no picture, whatever its name says", "not a picture"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "truncated"),
        (b"II*\0" + bytes(50), "first bytes"),
        (bytes(1000), "not a picture"),
    ],
)
def test_not_a_picture(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(BadPictureError, match=reason) as caught:
        decode(path)
    assert caught.value.path == str(path) and isinstance(caught.value, DataError) and caught.value.exit_code == 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tif", "webp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (120, 160, 3), np.uint8))
    path = tmp_path / f"a.{suffix}"
    noise.save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(BadPictureError, match=r"truncated|damaged"):
        decode(path)
    if suffix == "jpg":
        with pytest.raises(BadPictureError, match="truncated"):
            decode(path, lambda height, width: 4.0)


def test_missing_folder_and_forbidden(tmp_path: Path) -> None:
    with pytest.raises(BadPictureError, match="no such file"):
        decode(tmp_path / "none.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(BadPictureError, match="a folder"):
        decode(tmp_path / "folder.jpg")


def test_decompression_bomb_is_a_bad_file(tmp_path: Path) -> None:
    side = 20_000  # 400 million pixels in a file of some kilobytes
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    with pytest.raises(BadPictureError, match="too large"):
        decode(tmp_path / "bomb.png")


def test_large_but_sane_pictures_pass_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # 2,400 pixels: Pillow warns from here, and refuses from 4,000
    quarters().save(tmp_path / "a.png")
    assert_quarters(decode(tmp_path / "a.png"))


def test_postscript_is_never_interpreted(tmp_path: Path) -> None:
    eps = io.BytesIO()
    quarters().save(eps, format="EPS")
    (tmp_path / "a.jpg").write_bytes(eps.getvalue())
    with pytest.raises(BadPictureError, match="not a picture"):
        decode(tmp_path / "a.jpg")
    assert ".eps" not in picture_suffixes() and ".pdf" not in picture_suffixes()
