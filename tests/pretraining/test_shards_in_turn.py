"""Runs of which each epoch has some of the files of pictures."""

import shutil
from itertools import pairwise

import pytest
import torch
from data.shards import pictures, write_tar
from pretraining.test_pretrain import weights

from convspark.data import index
from convspark.errors import UsageError
from convspark.pretraining.command import pretrain

FILES = pictures(30, ("png",))


@pytest.fixture(autouse=True)
def own_index(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "cache_folder", lambda: tmp_path / "index")


@pytest.fixture
def tars(tmp_path):
    """Five tars of 4 to 8 pictures."""
    names = list(FILES)
    for shard, (first, end) in enumerate(pairwise([0, 4, 9, 15, 22, 30])):
        write_tar(tmp_path / f"data/{shard}.tar", {name: FILES[name] for name in names[first:end]})
    return tmp_path / "data"


def test_a_run_goes_on_exactly_from_another_place_and_reads_ahead(tars, small, tmp_path, stopping):
    small = small | {"epochs": 4, "picture_epochs": 0, "held_out": 0.1, "shards_per_epoch": 2, "batch_size": 4}
    whole = pretrain(str(tars), out=str(tmp_path / "whole"), **small)
    with stopping(8):  # in the third epoch
        pretrain(str(tars), out=str(tmp_path / "part"), **small)
    shutil.move(tars, tmp_path / "moved")
    resumed = pretrain(str(tmp_path / "moved"), resume=str(tmp_path / "part"), workers=1)
    assert resumed.train_loss == whole.train_loss and resumed.held_out_loss == whole.held_out_loss
    ours, theirs = weights(whole.folder), weights(resumed.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len((whole.folder / "train_shards.txt").read_text().split()) == 5


def test_with_all_files_in_an_epoch_it_is_the_usual_run(tars, small, tmp_path):
    small = small | {"picture_epochs": 0}
    usual = pretrain(str(tars), out=str(tmp_path / "usual"), **small)
    in_turn = pretrain(str(tars), out=str(tmp_path / "in_turn"), shards_per_epoch=9, **small)
    assert (in_turn.train_loss, in_turn.held_out_loss) == (usual.train_loss, usual.held_out_loss)


def test_what_cannot_be_is_refused(tars, small, tmp_path):
    with pytest.raises(UsageError, match="shards_per_epoch is 0"):
        pretrain(str(tars), out=str(tmp_path / "run"), shards_per_epoch=0, **small)
    with pytest.raises(UsageError, match="check is full and shards_per_epoch is set"):
        pretrain(str(tars), out=str(tmp_path / "run"), shards_per_epoch=1, check="full", **small)
