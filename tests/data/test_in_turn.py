"""Files of many pictures, of which each epoch has some."""

import logging
from collections import Counter

import pytest
from data.shards import pictures, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from convspark.data import ShardsInTurn, list_pictures, list_shards
from convspark.errors import DataError

FILES = pictures(12, ("png",))


@pytest.fixture
def tars(tmp_path):
    """Six tars of two pictures."""
    names = list(FILES)
    return [
        str(write_tar(tmp_path / f"data/{shard}.tar", {name: FILES[name] for name in names[2 * shard : 2 * shard + 2]}))
        for shard in range(6)
    ]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3), st.integers(0, 5))
def test_each_file_has_its_turn_once(count, per_epoch, seed, turn):
    in_turn = ShardsInTurn([f"{number:02}.tar" for number in range(count)], per_epoch, seed)
    epochs = range(turn * in_turn.groups, (turn + 1) * in_turn.groups)
    groups = [in_turn.group(epoch) for epoch in epochs]
    assert Counter(shard for group in groups for shard in group) == Counter(in_turn.shards)
    sizes = {len(group) for group in groups}
    assert min(sizes) >= 1 and max(sizes) <= min(per_epoch, min(sizes) + 1)
    assert groups == [in_turn.group(epoch) for epoch in epochs]


def test_another_turn_divides_them_anew():
    in_turn = ShardsInTurn([f"{number}.tar" for number in range(40)], 10)
    first, second = ({tuple(in_turn.group(epoch)) for epoch in range(start, start + 4)} for start in (0, 4))
    assert first.isdisjoint(second)


def test_pictures_of_a_turn_are_all_pictures_less_those_left_out(tars):
    every = list_pictures(tars)
    in_turn = ShardsInTurn(tars, 4, left_out=frozenset(every[3:5]))
    listed = [in_turn.pictures(epoch) for epoch in range(in_turn.groups)]
    assert sorted(one for part, _ in listed for one in part) == sorted(set(every) - set(every[3:5]))
    assert listed == [in_turn.pictures(epoch, share) for epoch, share in ((0, 0.4), (1, 0.99))]
    assert ShardsInTurn(tars, 6).pictures(7) == (every, [])


def test_a_file_that_cannot_be_read_is_told_and_many_end_the_run(tmp_path, caplog):
    tars = [str(write_tar(tmp_path / f"{shard:02}.tar", FILES)) for shard in range(40)]
    (tmp_path / "05.tar").write_bytes(b"no tar")
    (tmp_path / "07.tar").unlink()
    with caplog.at_level(logging.WARNING):
        addresses, bad = ShardsInTurn(tars, 40).pictures(2)
    assert len(addresses) == 38 * 12 and [shard for shard, _ in bad] == [tars[5], tars[7]]
    assert "epoch 3 goes without the pictures of" in caplog.text and "does not exist" in caplog.text
    write_tar(tmp_path / "09.tar", {})
    with pytest.raises(DataError, match=r"3 of the 40 files of epoch 1 cannot be used"):
        ShardsInTurn(tars, 40).pictures(0)


def test_shards_are_named_as_pictures_are(tars, tmp_path):
    folder = str(tmp_path / "data")
    (tmp_path / "list.txt").write_text("".join(f"data/{number}.tar\n" for number in range(6)))
    for named in (folder, tars, f"{folder}/{{0..5}}.tar", f"{folder}/*.tar", str(tmp_path / "list.txt")):
        assert list_shards(named) == tars
    (tmp_path / "data" / "one.png").write_bytes(FILES["000000.png"])
    with pytest.raises(DataError, match=r"one\.png' is a picture: expected only files of many"):
        list_shards(folder)
    with pytest.raises(DataError, match="does not exist"):
        list_shards(f"{folder}/6.tar")
