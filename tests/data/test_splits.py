"""Splits that are kept with a run."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convspark.data import Split
from convspark.errors import DataError

NAMES = st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1))


def test_a_run_without_one() -> None:
    assert Split.kept_in(None) is None and Split.kept_in("nowhere") is None


@given(NAMES, NAMES, NAMES, NAMES)
def test_any_names_are_kept(
    tmp_path_factory, train: list[str], val: list[str], test: list[str], classes: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    split = Split(train, val, test, classes, list(range(len(classes))))
    (folder / Split.FILE).write_text(split.as_text(), encoding="ascii")
    assert Split.kept_in(str(folder)) == split


def test_one_of_before_classes_were_kept(tmp_path: Path) -> None:
    (tmp_path / Split.FILE).write_text('{"train": ["a"], "val": ["b"], "test": []}')
    assert Split.kept_in(str(tmp_path)) == Split(["a"], ["b"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        '{"train": []}',
        '{"train": [1], "val": [], "test": []}',
        '{"train": 1, "val": [], "test": []}',
        '{"train": "ab", "val": [], "test": []}',
        '{"train": [], "val": [], "test": [], "classes": [1]}',
        '{"train": [], "val": [], "test": [], "classes": ["a", "b"], "values": [1]}',
        '{"train": [], "val": [], "test": [], "classes": ["a"], "values": ["1"]}',
    ],
)
def test_damaged_files(tmp_path: Path, text: str) -> None:
    (tmp_path / Split.FILE).write_text(text)
    with pytest.raises(DataError, match=r"split.json does not hold the names of a run's pictures"):
        Split.kept_in(str(tmp_path))
