"""The quick look passes no file that Pillow cannot open, and passes most pictures."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convspark.data.decode import left_out, open_header
from convspark.data.headers import is_plain

NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(file, kind, **options)
    return file.getvalue()


USUAL = {
    "baseline": encoded("JPEG"),
    "progressive": encoded("JPEG", progressive=True),
    "grey": encoded("JPEG", "L"),
    "cmyk": encoded("JPEG", "CMYK"),
    "exif": encoded("JPEG", exif=b"Exif\0\0" + bytes(20_000)),
    "comment": encoded("JPEG", comment=b"x" * 9_000),
    "rgb": encoded("PNG"),
    "rgba": encoded("PNG", "RGBA"),
    "palette": encoded("PNG", "P"),
    "resolution": encoded("PNG", dpi=(72, 72)),
}
OTHERS = {
    "animated": encoded("PNG", save_all=True, append_images=[Image.new("RGB", (50, 40))]),
    "several": encoded("MPO", save_all=True, append_images=[Image.new("RGB", (50, 40))]),
    "webp": encoded("WEBP"),
    "cut": USUAL["baseline"][:-100],
    "cut in its header": USUAL["exif"][:3000],
    "empty": b"",
    "scan of another length": USUAL["progressive"].replace(b"\xff\xda\0", b"\xff\xda\xff", 1),
    "bomb": USUAL["rgb"][:16] + (20_000).to_bytes(4) * 2 + USUAL["rgb"][24:],
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_pictures_are_plain(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(USUAL[name])
    assert is_plain(str(tmp_path / "x"))


@pytest.mark.parametrize("name", OTHERS)
def test_others_get_the_longer_look(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(OTHERS[name])
    assert not is_plain(str(tmp_path / "x"))


def test_folders_and_nothing_are_not_plain(tmp_path: Path) -> None:
    assert not is_plain(str(tmp_path)) and not is_plain(str(tmp_path / "none"))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(USUAL)), st.data())
def test_whatever_is_damaged_in_a_header_pillow_opens_what_is_plain(tmp_path_factory, name, data) -> None:
    content = bytearray(USUAL[name])
    end = min(len(content), 700)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    if is_plain(str(path)):
        with path.open("rb") as file:
            assert left_out(open_header(file)) is None
