"""Real pictures, where they are at hand: photographs, grey microscopy, multi-band TIFF."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convspark.data import BadPictureError, Shrunk, decode, list_pictures, scan


@pytest.fixture
def unpack(shared_data_dir: Path, tmp_path: Path) -> Callable[[str, int], Path]:
    def unpack(name: str, every: int) -> Path:
        archive = shared_data_dir / "data" / f"{name}.tar"
        if not archive.is_file():
            pytest.skip(f"no {archive}")
        with tarfile.open(archive) as tar:
            files = [member for member in tar.getmembers() if member.isfile()]
            tar.extractall(tmp_path, members=files[::every], filter="data")
        return tmp_path / name

    return unpack


@pytest.mark.parametrize(
    ("name", "every"), [("clothing160", 60), ("tinyimagenet25", 150), ("dsb_fluo", 25), ("bccd", 20)]
)
def test_pictures(unpack: Callable[[str, int], Path], name: str, every: int) -> None:
    paths = list_pictures(unpack(name, every))
    assert len(paths) >= 15
    assert scan(paths).good == paths
    for path in paths:
        picture = decode(path)
        with Image.open(path) as plain:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(plain.convert("RGB")))
        small = decode(path, lambda height, width: 2.0)
        if isinstance(small, Shrunk):
            assert small.full_size == (picture.height, picture.width)
            height, width = picture.height // 2, picture.width // 2
            full = np.asarray(picture, float)[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
            mean, shrunk = full.mean((1, 3)), np.asarray(small.picture, float)[:height, :width]
            # nearly the mean of each four pixels: far nearer than one of the four is
            assert np.abs(shrunk - mean).mean() < 0.4 * np.abs(full[:, 0, :, 0] - mean).mean() + 0.5
        else:
            assert not path.endswith((".jpg", ".JPEG"))


def test_microscopy_and_bands(unpack: Callable[[str, int], Path]) -> None:
    folder = unpack("multiband", 1)
    for name in ("fluorescence_uint16.tif", "uint16_1band.tiff"):
        values = np.asarray(decode(folder / name))[..., 0]
        with Image.open(folder / name) as raw:
            stored = np.asarray(raw).astype(float)
        expected = (stored - stored.min()) / (stored.max() - stored.min()) * 255
        np.testing.assert_allclose(values, expected, atol=0.51)
    with pytest.raises(BadPictureError, match=r"5 bands, which are not said to be .* pass a Dataset"):
        decode(folder / "float32_5band.tiff")
