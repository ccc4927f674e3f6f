"""The same labelled pictures, in folders and in files that hold many, are the same examples of the same split."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.shards import write_tar
from PIL import Image

from convspark.data import FileSource, list_in_parts, list_labelled, list_pictures
from convspark.data.labelled import LabelledPicture
from convspark.data.moved import as_place, at_new_place
from convspark.errors import DataError
from convspark.tasks.classification.data import read_labelled

CLASSES = ["ant", "bee", "cat"]
COUNTS = {"train": 15, "val": 6, "test": 3}


def _picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


# (file, class) of each part; classes follow each other, as in folders.
PARTS = {
    part: [(_picture(100 * number + i), CLASSES[i * 3 // count]) for i in range(count)]
    for number, (part, count) in enumerate(COUNTS.items())
}


def folder(root: Path) -> Path:
    for part, rows in PARTS.items():
        for i, (content, label) in enumerate(rows):
            file = root / part / label / f"{i:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return root


def tars(root: Path) -> Path:
    """Two of each part, one with `.cls`, the other with `.json` members; a name with dots in it."""
    for part, rows in PARTS.items():
        half = len(rows) // 2
        first: dict[str, bytes] = {}
        for i, (content, label) in enumerate(rows[:half]):
            first |= {f"a.{i:03}.cls": f"{label}\n".encode(), f"a.{i:03}.png": content}
        second: dict[str, bytes] = {}
        for i, (content, label) in enumerate(rows[half:]):
            second |= {f"{i:03}.png": content, f"{i:03}.json": json.dumps({"label": label, "of": part}).encode()}
        write_tar(root / part / "0.tar", first)
        write_tar(root / part / "1.tar", second)
    return root


def listed(root: Path) -> Path:
    """A CSV file of members of tars, one level up."""
    tars(root)
    rows = ["path;label;split"]
    for part, examples in PARTS.items():
        addresses = list_pictures([root / part / "0.tar", root / part / "1.tar"])
        relative = [address.replace(f"::{root}", "::..") for address in addresses]
        rows += [f"{address};{label};{part}" for address, (_, label) in zip(relative, examples, strict=True)]
    (root / "lists").mkdir()
    (root / "lists" / "a.csv").write_text("\n".join(rows))
    return root / "lists" / "a.csv"


def parquet(root: Path, *, noted: bool = True) -> Path:
    """As the Hub has it: a part is the beginning of a file's name, a class a number; in two files each."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    for part, dataset in _datasets(datasets).items():
        for i in range(2):
            file = root / f"{part}-0000{i}-of-00002.parquet"
            half = dataset.shard(2, i, contiguous=True)
            half.to_parquet(file) if noted else _without_notes(half, file)
    return root


def beside(root: Path) -> Path:
    """The names of the classes in a file of their own."""
    root.mkdir()
    info = {"features": {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}}
    (root / "dataset_info.json").write_text(json.dumps(info))
    return parquet(root, noted=False)


def saved(root: Path) -> Path:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    datasets.DatasetDict(_datasets(datasets)).save_to_disk(root)
    return root


def _datasets(datasets):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    parts = {}
    for part, rows in PARTS.items():
        columns = {
            "image": [{"bytes": content, "path": None} for content, _ in rows],
            "label": [CLASSES.index(label) for _, label in rows],
        }
        parts[{"val": "validation"}.get(part, part)] = datasets.Dataset.from_dict(columns, features=features)
    return parts


def _without_notes(dataset, file: Path) -> None:
    from pyarrow import parquet as writer

    writer.write_table(dataset.data.table.replace_schema_metadata(None), file)


def far(make: Callable[[Path], Path]) -> Callable[[Path], str]:
    """The same in fsspec's memory."""

    def put(root: Path) -> str:
        import fsspec

        memory = fsspec.filesystem("memory")
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]
        memory.put(str(make(root)), "/data", recursive=True)
        return "memory://data"

    return put


FORMS = {
    "folder": folder,
    "tars": tars,
    "list of members": listed,
    "parquet": parquet,
    "names beside": beside,
    "saved": saved,
    "folder far away": far(folder),
    "tars far away": far(tars),
    "parquet far away": far(parquet),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_are_the_same_examples(tmp_path: Path, form: str) -> None:
    data = read_labelled(str(FORMS[form](tmp_path / "data")))
    assert data.classes == CLASSES and not data.bad and not data.val_is_split
    for part, rows in PARTS.items():
        examples = getattr(data, part)
        assert [CLASSES[label] for _, label in examples] == [label for _, label in rows]
        source = FileSource([address for address, _ in examples])
        for place, (content, _) in enumerate(rows):
            with source.open(place) as file:
                assert file.read() == content


@pytest.mark.parametrize("form", ["tars", "parquet", "saved"])
def test_a_split_is_drawn_alike(tmp_path: Path, form: str) -> None:
    whole = FORMS[form](tmp_path / "data")
    one = str(whole / "train") if form != "parquet" else str(whole / "train*.parquet")
    expected = read_labelled(str(folder(tmp_path / "folder") / "train"), 0.4, 3).with_fraction(0.5, 3)
    data = read_labelled(one, 0.4, 3).with_fraction(0.5, 3)
    for part in ("train", "val"):
        ours, theirs = getattr(data, part), getattr(expected, part)
        assert [label for _, label in ours] == [label for _, label in theirs]
        pictures = [FileSource([address for address, _ in pairs]) for pairs in (ours, theirs)]
        for i in range(len(ours)):
            np.testing.assert_array_equal(*(np.asarray(source.read(i)) for source in pictures))


def test_lists_of_files_that_tell_classes(tmp_path: Path) -> None:
    tars(tmp_path)
    shards = [f"train/{i}.tar" for i in range(2)]
    (tmp_path / "shards.txt").write_text("\n".join(shards))
    labelled = list_labelled(str(tmp_path / "shards.txt"))
    assert [one.label for one in labelled] == [label for _, label in PARTS["train"]]
    (tmp_path / "pictures.txt").write_text("# chosen\n" + "\n".join(one.address for one in labelled[3:5]))
    assert list_labelled(str(tmp_path / "pictures.txt")) == labelled[3:5]


def test_labels_in_tars_of_any_bytes(tmp_path: Path) -> None:
    """With a byte order mark or without; labels that are no UTF-8 stay apart."""
    labels = [b"red", "\ufeffred".encode(), "gr\u00fcn".encode("latin-1"), "gr\u00e8n".encode("latin-1")]
    members = {f"{i}.png": _picture(i) for i in range(6)} | {f"{i}.cls": label for i, label in enumerate(labels)}
    members |= {"4.json": '\ufeff{"label": "red"}'.encode(), "5.json": b'{"label": "\\ud800"}'}
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=r"1 of the 6 pictures .* have no label: 'tar://5.png"):
        list_labelled(str(path))
    del members["5.png"]
    labelled = list_labelled(str(write_tar(tmp_path / "b.tar", members)))
    assert [one.label for one in labelled] == ["red", "red", "gr\udcfcn", "gr\udce8n", "red"]


def test_a_list_in_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from data.test_tables import write

    folder(tmp_path)
    names = [f"train/{label}/{i:03}.png" for i, (_, label) in enumerate(PARTS["train"])]
    numbers = [CLASSES.index(label) for _, label in PARTS["train"]]
    write(tmp_path / "list.parquet", file_name=names, label=numbers, split=["train"] * 14 + ["val"])
    labelled = list_labelled(str(tmp_path / "list.parquet"))
    parts = ["train"] * 14 + ["val"]
    expected = zip(names, numbers, parts, strict=True)
    assert labelled == [LabelledPicture(str(tmp_path / name), str(number), part) for name, number, part in expected]
    info = {"features": {"label": {"_type": "ClassLabel", "names": CLASSES}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.chdir(tmp_path)  # a path of its name alone
    assert [one.label for one in list_labelled("list.parquet")] == [label for _, label in PARTS["train"]]


def test_a_list_in_parquet_without_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from data.test_tables import write

    for paths in ([], [""]):
        write(tmp_path / "list.parquet", file_name=pyarrow.array(paths, pyarrow.string()), label=[0] * len(paths))
        with pytest.raises(DataError, match="holds no path"):
            list_pictures(tmp_path / "list.parquet")


def test_classes_that_are_numbers_are_ordered_so(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for i in range(24):
        files |= {f"{i}.cls": str(i % 12).encode(), f"{i}.png": _picture(i)}
    write_tar(tmp_path / "a.tar", files)
    data = read_labelled(str(tmp_path / "a.tar"), 0.5)
    assert data.classes == list(map(str, range(12)))


def test_a_part_without_labels_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tars(tmp_path)
    write_tar(tmp_path / "test" / "0.tar", {"0.png": _picture(0)})
    (tmp_path / "test" / "1.tar").unlink()
    data = read_labelled(str(tmp_path))
    assert not data.test and len(data.val) == 6 and "no picture of test" in caplog.text


def test_what_is_not_clear_is_told(tmp_path: Path) -> None:
    tars(tmp_path)
    first = tmp_path / "train" / "0.tar"
    write_tar(tmp_path / "some" / "0.tar", {"0.png": _picture(0), "0.cls": b"ant", "1.png": _picture(1)})
    with pytest.raises(DataError, match=r"1 of the 2 pictures .* have no label: 'tar://1\.png"):
        list_labelled(str(tmp_path / "some"))
    (tmp_path / "some" / "deep").mkdir()
    os.rename(tmp_path / "some" / "0.tar", tmp_path / "some" / "deep" / "0.tar")
    with pytest.raises(DataError, match="folders of files that hold labels of their own"):
        list_labelled(str(tmp_path / "some"))
    for name in ("train-0.tar", "more.tar"):
        (tmp_path / "named").mkdir(exist_ok=True)
        (tmp_path / "named" / name).write_bytes(first.read_bytes())
    with pytest.raises(DataError, match=r"1 of 2 files say .* others do not: .*more\.tar"):
        list_labelled(str(tmp_path / "named"))
    with pytest.raises(DataError, match="names 7 pictures more than once"):
        list_labelled(f"{{{first},{first}}}")


def test_numbers_without_a_meaning_are_no_classes(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from data.test_tables import write

    path = write(tmp_path / "a.parquet", image=[_picture(0)] * 2, label=[0.5, 1.5])
    with pytest.raises(DataError, match=r"the column 'label' .* holds double: expected the class"):
        list_labelled(str(path))
    path = write(tmp_path / "b.parquet", image=[_picture(0)] * 2, kind=["x", "y"])
    with pytest.raises(DataError, match=r"2 of the 2 pictures .* have no label"):
        list_labelled(str(path))


def test_masks_are_no_pictures_of_their_own(tmp_path: Path) -> None:
    files = {"0.png": _picture(0), "0.mask.png": _picture(1), "b.c.png": _picture(2), "b.c.seg.png": _picture(3)}
    path = write_tar(tmp_path / "a.tar", files | {"alone.mask.png": _picture(4)})
    inside = [f"tar://{name}::{path}" for name in ("0.png", "b.c.png", "alone.mask.png")]
    assert list_pictures(path) == inside
    assert list_in_parts(str(path)) == [(address, "train") for address in inside]


@pytest.mark.parametrize("form", ["tars", "saved", "parquet", "list of members"])
def test_files_of_many_at_another_place(tmp_path: Path, form: str) -> None:
    old, new = tmp_path / "old", tmp_path / "deep" / "new"
    place = str(FORMS[form](old))
    before = [one.address for one in list_labelled(place)]
    new.parent.mkdir()
    old.rename(new)
    place = place.replace(str(old), str(new))
    after = [one.address for one in list_labelled(place)]
    assert at_new_place(before, [-1] * len(before), *as_place(place, after)) == after
    assert after == [address.replace(str(old), str(new)) for address in before]


def test_a_column_of_parts(tmp_path: Path) -> None:
    from data.test_tables import write

    parts = ["train", "training", "val", "Validation", "test", "test"]
    pictures = [_picture(i) for i in range(6)]
    path = write(tmp_path / "a.parquet", image=pictures, label=["x", "y"] * 3, split=parts)
    assert [one.part for one in list_labelled(str(path))] == ["train", "train", "val", "val", "test", "test"]
    path = write(tmp_path / "c.parquet", image=pictures, label=["x", "y"] * 3, split=[None, "", *parts[2:]])
    assert [one.part for one in list_labelled(str(path))] == ["train", "train", "val", "val", "test", "test"]
    path = write(tmp_path / "b.parquet", image=pictures, label=["x", "y"] * 3, split=[*parts[:5], "dev"])
    with pytest.raises(DataError, match=r"the column split is neither train nor val nor test for 1 pictures: .*'dev'"):
        list_labelled(str(path))


def test_labels_of_pandas_categories(tmp_path: Path) -> None:
    from data.test_tables import write

    pyarrow = pytest.importorskip("pyarrow")
    labels = pyarrow.array(["cat", "dog", "cat"]).dictionary_encode()
    path = write(tmp_path / "a.parquet", image=[_picture(i) for i in range(3)], label=labels)
    assert [one.label for one in list_labelled(str(path))] == ["cat", "dog", "cat"]


def test_what_is_missing_is_said_of_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data: .* does not exist"):
        list_labelled(str(tmp_path / "none"))


def test_pictures_in_two_parts_by_two_names_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "a.png").write_bytes(b"")
    (tmp_path / "val" / "cat" / "b.png").write_bytes(b"")
    list_labelled(str(tmp_path))
    assert "trained on as well" not in caplog.text
    (tmp_path / "val" / "cat" / "a.png").symlink_to(tmp_path / "train" / "cat" / "a.png")
    list_labelled(str(tmp_path))
    assert "1 of the pictures of" in caplog.text and "trained on as well, by another name" in caplog.text
    caplog.clear()
    rows = "train/cat/a.png,cat,train", "val/../train/cat/a.png,cat,val"
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    list_labelled(str(tmp_path / "list.csv"))
    assert "trained on as well, by another name" in caplog.text
