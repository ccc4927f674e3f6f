"""Class folders and CSV files, and what is wrong with them."""

import os
import shutil
from collections import Counter

import pytest
from labelled_pictures import write_pictures

from convspark.errors import DataError, UsageError
from convspark.tasks.classification.data import read_labelled


def test_folders_with_splits_are_taken_as_they_are(pictures):
    data = read_labelled(str(pictures))
    assert data.classes == ["blue", "green", "red"]
    assert (len(data.train), len(data.val), len(data.test)) == (48, 12, 18)
    assert all(data.classes[label] in path for path, label in data.train + data.val + data.test)
    assert data.final[0] == "test" and not data.val_is_split


def test_plain_class_folders_are_split_by_the_seed(pictures):
    data = read_labelled(str(pictures / "train"), 0.25)
    assert Counter(label for _, label in data.val) == {0: 4, 1: 4, 2: 4}
    assert not set(data.val) & set(data.train) and len(data.train) == 36
    assert data.val == read_labelled(str(pictures / "train"), 0.25).val
    assert data.val != read_labelled(str(pictures / "train"), 0.25, seed=1).val
    assert data.final[0] == "val" and data.val_is_split


@pytest.mark.parametrize("share", [1e-9, 0.5, 0.99])
def test_a_picture_of_each_class_is_left_on_both_sides_of_a_split(pictures, share):
    data = read_labelled(str(pictures / "train"), val_share=share)
    for part in (data.train, data.val):
        assert {label for _, label in part} == set(range(len(data.classes)))
    assert len({*data.train, *data.val}) == 48


def test_a_share_of_the_labels_keeps_every_class_and_is_part_of_a_larger_one(pictures):
    data = read_labelled(str(pictures))
    small, large = data.with_fraction(0.01, 0), data.with_fraction(0.5, 0)
    assert Counter(label for _, label in small.train) == {0: 1, 1: 1, 2: 1}
    assert Counter(label for _, label in large.train) == {0: 8, 1: 8, 2: 8}
    assert set(small.train) < set(large.train)
    assert data.with_fraction(0.5, 1).train != large.train and large.test == data.test


def test_a_csv_names_pictures_relative_to_itself(pictures):
    file = pictures / "labels.csv"
    rows = [
        f"train/{name}/{i}.png,{name},{part}" for name in ("red", "blue") for i, part in enumerate(["train", "val"])
    ]
    file.write_text("path,label,split\n" + "\n".join(rows) + "\n")
    data = read_labelled(str(file))
    assert data.classes == ["blue", "red"] and len(data.train) == len(data.val) == 2
    file.write_text("path,label\n" + "".join(f"train/red/{i}.png,{i % 2}\n" for i in range(10)))
    assert len(read_labelled(str(file)).val) == 2
    file.unlink()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nnothing.png,a\nalso.png,b\n", "2 of the 2 pictures .* do not exist: .*nothing.png"),
        ("file,class\na.png,b\n", "has the columns .* expected path,label"),
        ("path,label,split\ntrain/red/0.png,a,training set\n", "line 2 .* split 'training set': expected train, val"),
        ("path,label\ntrain/red/0.png,\n", "line 2 .* empty path or label"),
        ("path,label\n\n\ntrain/red/0.png\n", "line 4 .* empty path or label"),
        (
            "path,label\ntrain/red/0.png,cat, big\n",
            "line 2 .* has 3 cells, but there are 2 columns: put .*double",
        ),
        ("path,label\ntrain/red/0.png,caf\udce9\n", "line 2 .* has the label .*: expected text in UTF-8"),
        ("\udcff\udcfep\0a\0", "neither a folder nor a CSV file in UTF-8"),
        (
            "path,label\ntrain/red/0.png,a\ntrain/blue/../red/0.png,b\n",
            r"1 pictures are the same files as others: .*red/0.png \(b",
        ),
        ("path,label\ntrain/red/0.png,a\ntrain/red/1.png,a\n", "single class, 'a'"),
        ("path,label\ntrain/red/0.png,a\ntrain/red/1.png,b\n", "a single picture cannot be both"),
        ("path,label,split\ntrain/red/0.png,a,val\n", "no pictures to train on"),
        (
            "path,label,split\ntrain/red/0.png,a,train\ntrain/red/0.png,a,val\n",
            "names 1 pictures more than once: .*0.png",
        ),
    ],
)
def test_a_bad_csv_is_told_apart(pictures, text, message):
    file = pictures / "bad.csv"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message):
        read_labelled(str(file))
    file.unlink()


@pytest.mark.parametrize(("start", "mark"), [("\ufeff", ";"), ("", "\t"), ("\ufeff", ",")])
def test_a_csv_as_spreadsheets_write_it(tmp_path, start, mark):
    write_pictures(tmp_path, 2)
    strange = tmp_path / "red" / "caf\udce9.png"  # a name that is no UTF-8
    (tmp_path / "red" / "1.png").rename(strange)
    rows = [["Path", "Label"], *(["blue/0.png", f'two "big"{mark} cats'], ["blue/1.png", f'two "big"{mark} cats'])]
    rows += [["red/0.png", "röt"], ["red/caf\udce9.png", "röt"]]
    text = "\r\n".join(mark.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    (tmp_path / "l.csv").write_bytes((start + text).encode("utf-8", "surrogateescape"))
    data = read_labelled(str(tmp_path / "l.csv"), 0.5)
    assert data.classes == sorted([f'two "big"{mark} cats', "röt"], key=str)
    assert {path for path, _ in data.train + data.val} == {
        *(str(tmp_path / name) for name in ("blue/0.png", "blue/1.png", "red/0.png")),
        str(strange),
    }


@pytest.mark.parametrize(("link", "target"), [("val/red", "train/red"), ("train/crimson", "train/red")])
def test_pictures_that_links_bring_twice_are_refused(tmp_path, link, target):
    for part in ("train", "val"):
        write_pictures(tmp_path / part, 2)
    for old in (tmp_path / link).glob("*"):
        old.unlink()
    if (tmp_path / link).is_dir():
        (tmp_path / link).rmdir()
    (tmp_path / link).symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=r"2 pictures are the same files as others: .*red/0"):
        read_labelled(str(tmp_path))


def test_bad_folders_are_told_apart(tmp_path, caplog):
    with pytest.raises(DataError, match="holds no folders"):
        read_labelled(str(tmp_path))
    write_pictures(tmp_path / "train", 2)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(DataError, match=r"classes without pictures .*'empty'"):
        read_labelled(str(tmp_path))
    (tmp_path / "train" / "empty").rmdir()
    write_pictures(tmp_path / "val", 1)
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "rouge")
    with pytest.raises(DataError, match=r"val has classes that train does not have: 'rouge'; train has 'blue'"):
        read_labelled(str(tmp_path))
    (tmp_path / "val" / "rouge").rename(tmp_path / "val" / "red")
    (tmp_path / "spare").mkdir()
    assert len(read_labelled(str(tmp_path)).train) == 6 and "'spare', which is left out" in caplog.text
    (tmp_path / "spare").rmdir()
    (tmp_path / "train").rename(tmp_path / "test")
    with pytest.raises(DataError, match=r"has 'test', 'val', but no train"):
        read_labelled(str(tmp_path))
    with pytest.raises((DataError, UsageError), match="does not exist"):
        read_labelled(str(tmp_path / "trian"))


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_picture_twice_in_a_class_is_refused_too(tmp_path, link):
    """Where pictures to validate with are split off, they could be trained on, too."""
    write_pictures(tmp_path, 3)
    link(tmp_path / "red" / "0.png", tmp_path / "red" / "again.png")
    with pytest.raises(
        DataError, match=r"^data: 1 pictures are the same files as others: '.*red/again.png \(red, train\)"
    ):
        read_labelled(str(tmp_path))


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX"])
@pytest.mark.parametrize("part", ["", "train"])
def test_folders_that_servers_and_archivers_leave_are_no_classes(tmp_path, name, part):
    write_pictures(tmp_path / part, 3)
    (tmp_path / part / "red" / "0.png").rename(write_empty(tmp_path / part / name) / "0.png")
    assert read_labelled(str(tmp_path)).classes == ["blue", "green", "red"]


def write_empty(folder):
    folder.mkdir()
    return folder


def test_pictures_beside_the_classes_are_told(tmp_path, caplog):
    write_pictures(tmp_path, 3)
    (tmp_path / "red" / "0.png").rename(tmp_path / "LOOSE.PNG")
    data = read_labelled(str(tmp_path))
    assert len(data.train) + len(data.val) == 8 and "are of no class, and left out: 'LOOSE.PNG'" in caplog.text


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_folder_of_a_part_without_classes_is_left_out(tmp_path, caplog, part):
    """As competitions publish their test pictures."""
    write_pictures(tmp_path / "train", 3)
    (write_empty(tmp_path / part) / "1.png").write_bytes((tmp_path / "train" / "red" / "0.png").read_bytes())
    data = read_labelled(str(tmp_path))
    assert (len(data.train), len(data.val), data.test) == (6, 3, []) and data.val_is_split
    assert f"no picture of {part} in " in caplog.text


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10.0", "9.0", "-1", "-10"], ["-10", "-1", "9.0", "10.0"]),
        (["10", "9", "b"], ["10", "9", "b"]),
        (["010", "2", "02"], ["02", "2", "010"]),
    ],
)
def test_classes_are_in_the_order_of_their_numbers(tmp_path, names, expected):
    write_pictures(tmp_path, 1)
    for name in names:
        shutil.copytree(tmp_path / "red", tmp_path / "numbers" / name)
        shutil.copy(tmp_path / "red" / "0.png", tmp_path / "numbers" / name / "1.png")
    assert read_labelled(str(tmp_path / "numbers")).classes == expected


def test_what_cannot_be_read_is_said_of_data(tmp_path):
    write_pictures(tmp_path, 2)
    (tmp_path / "red" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^data: 1 of 6 pictures cannot be read"):
        read_labelled(str(tmp_path))
