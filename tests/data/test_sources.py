"""Sources: files by path, and any map-style dataset."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import ImageFolder

from convspark.data import FileSource, HeldOutTransform, PretrainImages, PretrainTransform, adapt
from convspark.data.decode import BadPictureError
from convspark.errors import DataError, UsageError

VALUES = np.random.default_rng(0).integers(0, 256, (6, 20, 30, 3), np.uint8)
EXACT = HeldOutTransform(size=(20, 30), mean=(0, 0, 0), std=(1, 1, 1))


def test_paths_of_any_kind(tmp_path: Path) -> None:
    paths = [
        str(tmp_path / name) for name in ("a.png", "ü ñ.png", b"\xff\xfe.png".decode("utf-8", "surrogateescape"), "d")
    ]
    source = FileSource(paths)
    assert [source.name(i) for i in range(len(source))] == paths
    for path in paths:
        Image.new("RGB", (2, 2)).save(path, format="PNG")
    assert all(source.read(i).size == (2, 2) for i in range(4))
    with pytest.raises(DataError):
        FileSource([])


@pytest.mark.parametrize(
    "items",
    [
        [Image.fromarray(v) for v in VALUES],
        [(Image.fromarray(v), 3) for v in VALUES],
        [{"label": 0, "image": Image.fromarray(v)} for v in VALUES],
        list(VALUES),
        [(torch.from_numpy(v).permute(2, 0, 1), 1) for v in VALUES],
        [torch.from_numpy(v).permute(2, 0, 1) / 255 for v in VALUES],
        [(v.astype(np.uint16) * 257, "name") for v in VALUES],
        [(v.astype(np.uint16) * 257).astype(">u2") for v in VALUES],
        [(v / 255).astype(">f4") for v in VALUES],
        TensorDataset(torch.from_numpy(VALUES).permute(0, 3, 1, 2), torch.zeros(6)),
    ],
)
def test_items_of_any_kind(items: Any) -> None:
    dataset = PretrainImages(adapt(items), EXACT)
    assert len(dataset) == 6
    for i in range(6):
        torch.testing.assert_close(
            dataset[i], torch.from_numpy(VALUES[i] / 255).permute(2, 0, 1).float(), rtol=0, atol=1e-4
        )


def test_grey_and_many_channels() -> None:
    grey = PretrainImages(adapt([v[..., 0] for v in VALUES]), EXACT)
    assert grey[0].shape == (3, 20, 30) and torch.equal(grey[0][0], grey[0][2])
    bands = np.random.default_rng(0).random((4, 25, 35, 13)).astype(np.float32)
    transform = PretrainTransform(size=16, mean=[0.5] * 13, std=[0.25] * 13)
    assert PretrainImages(adapt(bands), transform)[2].shape == (13, 16, 16)


def test_image_folder_and_subset(tmp_path: Path) -> None:
    for i, v in enumerate(VALUES):
        (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(v).save(tmp_path / f"class{i % 2}/{i}.png")
    folder = ImageFolder(str(tmp_path))
    source = adapt(folder)
    assert source.name(0) == folder.samples[0][0]
    (tmp_path / "class0/0.png").write_bytes(b"")
    with pytest.raises(BadPictureError, match=r"class0/0.png: "):
        source.read(0)
    subset = PretrainImages(adapt(Subset(folder, [1, 2])), EXACT)
    assert len(subset) == 2
    torch.testing.assert_close(subset[0], torch.from_numpy(VALUES[2] / 255).permute(2, 0, 1).float(), rtol=0, atol=1e-4)


def test_what_is_no_dataset_of_images() -> None:
    class Stream(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(())

    for items, words in (
        (Stream(), "Stream .*map-style"),
        (["a.jpg"], "type str"),
        ([{"text": 1}], "keys"),
        ([np.zeros((2, 3, 4, 5))], r"shape \(2, 3, 4, 5\)"),
        ([np.zeros((8, 8, 3), np.int64)], "type int64, of which nothing says what is white"),
        ([torch.zeros(3, 8, 8, dtype=torch.int32)], "type int32"),
        ([np.zeros((8, 8), np.uint32)], "type uint32"),
        ([np.zeros((8, 8), ">i4")], "type int32"),
        ([np.zeros((8, 8), np.complex64)], "type complex64"),
        ([torch.zeros(3, 8, 8, dtype=torch.complex64)], "type complex64"),
        ([np.zeros((8, 8), object)], "type object"),
        ([np.zeros((8, 8), [("red", "u1")])], "type .*red"),
    ):
        with pytest.raises(UsageError, match=words):
            adapt(items)
    with pytest.raises(DataError, match="empty"):
        adapt([])


def test_mistakes_in_a_dataset_are_seen() -> None:
    class Broken(list[int]):
        def __getitem__(self, index: Any) -> Any:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        adapt(Broken([1]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_make_a_bad_picture_that_is_named(value):
    images = [torch.rand(4, 8, 8) for _ in range(3)]
    images[1][2, 3:5, 0] = value
    source = adapt(images)
    assert torch.equal(source.read(0), images[0])
    with pytest.raises(BadPictureError, match=r"item 1.*2 values of channel 2 .* are NaN or infinite"):
        source.read(1)


def test_masked_values_are_not_taken_for_what_lies_under_the_mask() -> None:
    values = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    source = adapt([np.ma.masked_array(values), np.ma.masked_less(values, 5)])
    assert torch.equal(source.read(0), torch.from_numpy(values).permute(2, 0, 1))
    with pytest.raises(BadPictureError, match=r"item 1.*5 values are masked; put a number in their place"):
        source.read(1)


def test_a_dictionary_of_datasets_is_no_dataset() -> None:
    """As `datasets.load_dataset` gives without `split`."""
    with pytest.raises(UsageError, match=r"has the parts train, test; expected one of them, as in dataset\['train'\]"):
        adapt({"train": [1], "test": [2]})
