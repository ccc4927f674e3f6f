"""The page of reconstructions shows the pixels it was given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from convspark.report.reconstructions import reconstruction_grid

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(colour: tuple[float, float, float], side: int = 200) -> Tensor:
    """(1, 3, side, side) of one colour."""
    value = (torch.tensor(colour) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return value[None, :, None, None].expand(1, 3, side, side).clone()


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def area(page: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(page.astype(int) - colour).max(-1) <= 1).sum())


def masked_left_half(images: Tensor) -> Tensor:
    masked = images.clone()
    masked[..., : images.shape[-1] // 2] = 0
    return masked


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_every_pixel_is_on_the_page(tmp_path: Path, rows: int) -> None:
    original = normalised((250, 0, 5)).repeat(rows, 1, 1, 1)
    reconstruction = normalised((0, 200, 90)).repeat(rows, 1, 1, 1)
    path = tmp_path / "new" / "grid.png"
    reconstruction_grid(original, masked_left_half(original), reconstruction, MEAN, STD, path)
    page = pixels(path)
    assert area(page, (250, 0, 5)) == rows * 200 * 300  # the original and the visible half
    assert area(page, (0, 200, 90)) == rows * 200 * 200
    assert area(page, (128, 128, 128)) == rows * 200 * 100  # masked
    assert [entry.name for entry in path.parent.iterdir()] == ["grid.png"]


def test_visible_patches_win_over_guessing(tmp_path: Path) -> None:
    original = torch.zeros(1, 3, 200, 200)  # exactly the mean colour: no telling from zeros what is masked
    visible = torch.tensor([[[True, False], [True, True]]])
    reconstruction_grid(original, original, original, MEAN, STD, tmp_path / "a.png", visible=visible)
    page = pixels(tmp_path / "a.png")
    assert area(page, (128, 128, 128)) == 100 * 100
    assert area(page, (124, 116, 104)) == 2 * 200 * 200 + 3 * 100 * 100


def test_grey_pictures_are_painted_grey(tmp_path: Path) -> None:
    original = torch.cat([normalised((70, 70, 70)), normalised((70, 70, 75))])
    reconstruction = normalised((30, 60, 90)).repeat(2, 1, 1, 1)
    reconstruction_grid(original, original, reconstruction, MEAN, STD, tmp_path / "a.png")
    page = pixels(tmp_path / "a.png")
    assert area(page, (60, 60, 60)) == area(page, (30, 60, 90)) == 200 * 200


def test_chosen_channels_from_their_darkest_to_their_brightest(tmp_path: Path) -> None:
    """Of a ramp, 1 % at each end is cut off."""
    images = torch.zeros(1, 4, 200, 200)
    images[:, 1] = torch.linspace(0, 1, 200)[None]
    images[:, 3] = torch.linspace(5, 4, 200)[:, None]
    reconstruction_grid(images, images, images, [0.0] * 4, [1.0] * 4, tmp_path / "a.png", show=[4, 1, 2])
    page = pixels(tmp_path / "a.png")
    left, top = np.argwhere((page == (255, 0, 0)).all(2))[0][::-1]
    shown = page[top : top + 200, left : left + 200].astype(float)
    ramp = ((np.linspace(0, 1, 200) - 0.01) / 0.98).clip(0, 1) * 255
    np.testing.assert_allclose(shown[..., 0], np.repeat(ramp[::-1, None], 200, 1), atol=2)
    np.testing.assert_allclose(shown[..., 2], np.repeat(ramp[None], 200, 0), atol=2)
    assert (shown[..., 1] == 0).all()


def test_at_most_eight_rows_and_values_out_of_range(tmp_path: Path) -> None:
    original = normalised((10, 20, 30)).repeat(11, 1, 1, 1)
    wild = normalised((400, -300, 20)).repeat(11, 1, 1, 1)
    wild[:, :, 0, 0] = float("nan")
    reconstruction_grid(original, original, wild, MEAN, STD, tmp_path / "a.png", captions=[f"n{i}" for i in range(11)])
    page = pixels(tmp_path / "a.png")
    assert area(page, (10, 20, 30)) == 8 * 2 * 200 * 200
    assert area(page, (255, 0, 20)) == 8 * (200 * 200 - 1)


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_any_number_of_channels(tmp_path: Path, channels: int) -> None:
    images = torch.randn(2, channels, 64, 96)
    mean, std = [0.5] * channels, [100.0] * channels
    reconstruction_grid(images, masked_left_half(images), images, mean, std, tmp_path / "a.png")
    page = pixels(tmp_path / "a.png")
    assert page.std() > 20
    if channels <= 2:
        assert (page.max(-1) - page.min(-1)).max() < 8  # grey


def test_small_images_are_enlarged_and_long_names_cut(tmp_path: Path) -> None:
    original = normalised((250, 0, 5), side=32)
    names = ["/a/very/long/path" * 30 + "/x.jpg", "bytes \udcff"]
    images = original.repeat(2, 1, 1, 1)
    reconstruction_grid(images, images, images, MEAN, STD, tmp_path / "a.png", captions=names)
    page = pixels(tmp_path / "a.png")
    assert area(page, (250, 0, 5)) == 2 * 3 * 192 * 192
    assert page.shape[1] < 700
    assert (page[:, [0, -1]] == 255).all()  # nothing runs off the page


def test_a_failure_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(_: object, file: Path, **__: object) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", fail)
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(KeyboardInterrupt):
        reconstruction_grid(images, images, images, MEAN, STD, path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
