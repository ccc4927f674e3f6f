"""Class folders and CSV files, and what is wrong with them."""

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
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_labelled(str(file))
    file.unlink()


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
