"""Pictures in parquet files and saved datasets come out as from files of their own."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.shards import pictures
from data.test_tars import same_pictures
from PIL import Image
from torch.utils.data import Subset

from convspark.data import FileSource, adapt, list_labelled, list_pictures, scan
from convspark.data.decode import BadPictureError, Shrunk
from convspark.errors import DataError

FILES = pictures(25)


@pytest.fixture
def arrow() -> Any:
    return pytest.importorskip("pyarrow", reason="pyarrow is not installed")


def write(file: Path, /, **columns: Any) -> Path:
    from pyarrow import parquet, table

    parquet.write_table(table(columns), file, row_group_size=10)
    return file


@pytest.mark.parametrize("as_struct", [False, True], ids=["bytes", "struct"])
def test_rows_are_the_files(arrow: Any, tmp_path: Path, as_struct: bool) -> None:
    content = list(FILES.values())
    cells = [{"bytes": picture, "path": None} for picture in content] if as_struct else content
    path = write(tmp_path / "a.parquet", label=list(range(25)), image=cells, mask=[b"x"] * 25)
    addresses = list_pictures(path)
    assert addresses == [f"parquet://image/{row}::{path}" for row in range(25)]
    source = FileSource(addresses)
    same_pictures(source, content, tmp_path)
    order = np.random.default_rng(0).permutation(25)
    same_pictures(FileSource([addresses[i] for i in order]), [content[i] for i in order], tmp_path)
    assert scan(addresses).good == addresses
    (tmp_path / "alone").unlink()
    assert list_pictures(tmp_path) == addresses  # a folder of such files
    assert source.places is not None
    assert source.places.blocks().tolist() == [0] * 10 + [1] * 10 + [2] * 5


def test_a_table_that_is_written_anew_is_read_anew(arrow: Any, tmp_path: Path) -> None:
    """In one process, which keeps what it read last."""
    content = list(FILES.values())
    for first in (0, 10):
        path = write(tmp_path / "a.parquet", image=content[first : first + 10])
        same_pictures(FileSource(list_pictures(path)), content[first : first + 10], tmp_path)
    source = FileSource(list_pictures(write(tmp_path / "b.parquet", image=content[:10])))
    write(tmp_path / "b.parquet", image=content[:5])
    with pytest.raises(BadPictureError, match="damaged: IndexError"):
        source.read(7)


@pytest.mark.parametrize("kind", ["dictionary", "view"])
def test_columns_of_any_encoding(arrow: Any, tmp_path: Path, kind: str) -> None:
    content = list(FILES.values())
    (tmp_path / "pictures").mkdir()
    for name in FILES:
        (tmp_path / "pictures" / name).write_bytes(FILES[name])
    columns = [arrow.array(content, arrow.binary()), arrow.array([f"pictures/{name}" for name in FILES])]
    if kind == "dictionary":
        columns = [column.dictionary_encode() for column in columns]
    else:
        columns = [columns[0].cast(arrow.binary_view()), columns[1].cast(arrow.string_view())]
    for name, column in zip(("image", "path"), columns, strict=True):
        path = write(tmp_path / f"{name}.parquet", **{name: column})
        same_pictures(FileSource(list_pictures(path)), content, tmp_path)


def test_rows_without_a_picture_are_bad(arrow: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=[*list(FILES.values())[:24], None])
    ((bad, reason),) = scan(list_pictures(path)).bad
    assert bad == f"parquet://image/24::{path}" and "no picture in this row" in reason


def test_lists_of_paths(arrow: Any, tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    files = [str(tmp_path / name) for name in FILES]
    write(tmp_path / "list.parquet", label=[1] * 25, path=list(FILES))
    assert list_pictures(tmp_path / "list.parquet") == files


def test_what_cannot_be_chosen_is_told(arrow: Any, tmp_path: Path) -> None:
    for name, columns, words in (
        ("none", {"a": [1], "b": [2.0]}, "no column of pictures or of their paths"),
        ("several", {"a": [b"x"], "b": [b"y"]}, "several columns of bytes, a, b"),
    ):
        path = write(tmp_path / f"{name}.parquet", **columns)
        with pytest.raises(DataError, match=words):
            list_pictures(path)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(DataError, match="damaged"):
        list_pictures(tmp_path / "damaged.parquet")


@pytest.fixture
def hub() -> Any:
    return pytest.importorskip("datasets", reason="datasets is not installed")


def dataset_of(hub: Any, content: list[bytes]) -> Any:
    rows = {"label": list(range(len(content))), "image": [{"bytes": picture, "path": None} for picture in content]}
    return hub.Dataset.from_dict(rows, features=hub.Features({"label": hub.Value("int64"), "image": hub.Image()}))


def test_saved_datasets(hub: Any, tmp_path: Path) -> None:
    content = list(FILES.values())
    dataset = dataset_of(hub, content)
    dataset.save_to_disk(tmp_path / "saved", num_shards=3)
    addresses = list_pictures(tmp_path / "saved")
    assert addresses[3] == f"dataset://image/3::{tmp_path / 'saved'}"
    same_pictures(FileSource(addresses), content, tmp_path)
    assert scan(addresses).good == addresses
    dataset.select([4, 2, 7]).save_to_disk(tmp_path / "chosen")
    same_pictures(FileSource(list_pictures(tmp_path / "chosen")), [content[i] for i in (4, 2, 7)], tmp_path)


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_damaged_dataset_is_refused_in_words(hub: Any, tmp_path: Path, name: str) -> None:
    dataset_of(hub, list(FILES.values())[:2]).save_to_disk(tmp_path / "saved")
    content = (tmp_path / "saved" / name).read_bytes()
    (tmp_path / "saved" / name).write_bytes(content[: len(content) // 2])
    for ask in (list_pictures, list_labelled):
        with pytest.raises(DataError, match=r"saved' cannot be read: "):
            ask(str(tmp_path / "saved"))


@pytest.mark.parametrize("end", [2**30, -5])
def test_a_wrong_length_in_a_dataset_makes_a_bad_picture(hub: Any, tmp_path: Path, end: int) -> None:
    content = list(FILES.values())[:3]
    dataset_of(hub, content).save_to_disk(tmp_path / "saved")
    (arrow_file,) = (tmp_path / "saved").glob("*.arrow")
    ends = np.cumsum([0, *map(len, content)]).astype("<i4")
    written = arrow_file.read_bytes()
    assert written.count(ends.tobytes()) == 1
    arrow_file.write_bytes(written.replace(ends.tobytes(), np.array([*ends[:3], end], "<i4").tobytes()))
    addresses = list_pictures(tmp_path / "saved")
    result = scan(addresses, most_bad=0.5)
    assert result.good == addresses[:2] and "damaged: ArrowInvalid" in result.bad[0][1]


def test_a_damaged_table_is_refused_in_words(arrow: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=list(FILES.values()), label=["a", "b", "c", "d", "e"] * 5)
    path.write_bytes(path.read_bytes()[:-9])
    for ask in (list_pictures, list_labelled):
        with pytest.raises(DataError, match=r"a\.parquet' cannot be read: "):
            ask(str(path))


def test_the_split_to_train_on(hub: Any, tmp_path: Path) -> None:
    content = list(FILES.values())
    train, test = dataset_of(hub, content[:5]), dataset_of(hub, content[5:])
    hub.DatasetDict({"test": test, "train": train}).save_to_disk(tmp_path / "both")
    same_pictures(FileSource(list_pictures(tmp_path / "both")), content[:5], tmp_path)
    hub.DatasetDict({"test": test, "other": train}).save_to_disk(tmp_path / "neither")
    with pytest.raises(DataError, match="holds test, other: give one of these"):
        list_pictures(tmp_path / "neither")
    same_pictures(FileSource(list_pictures(tmp_path / "neither/test")), content[5:], tmp_path)


def test_datasets_in_python(hub: Any, tmp_path: Path) -> None:
    large = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)).save(large, "JPEG")
    content = [*FILES.values(), b"no picture", large.getvalue()]
    dataset = dataset_of(hub, content)
    source = adapt(dataset)
    same_pictures(adapt(Subset(dataset, range(25))), content[:25], tmp_path)
    assert isinstance(source.read(26, lambda height, width: 4.0), Shrunk)  # as from a file
    with pytest.raises(BadPictureError, match=r"item 25.*not a picture"):
        source.read(25)
    chosen = adapt(Subset(dataset, [24, 3]))
    same_pictures(chosen, [content[24], content[3]], tmp_path)
    assert chosen.name(0) == "item 24"
