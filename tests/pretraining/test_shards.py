"""A run on tars goes on exactly, and tells when they have changed."""

import logging

import pytest
import torch
from data.shards import pictures, write_tar
from pretraining.test_pretrain import weights

from convspark.data import index
from convspark.data.sources import FileSource
from convspark.errors import DataError
from convspark.pretraining.command import pretrain
from convspark.runs.folder import RunFolder
from convspark.runs.images import find_images, reopen_images

FILES = pictures(26, ("png",))


@pytest.fixture(autouse=True)
def own_index(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "cache_folder", lambda: tmp_path / "index")


@pytest.fixture
def shards(tmp_path):
    names = list(FILES)
    for shard in range(2):
        write_tar(tmp_path / f"data/{shard}.tar", {name: FILES[name] for name in names[shard * 13 : shard * 13 + 13]})
    return tmp_path / "data"


def test_a_run_on_tars_is_the_run_on_the_files_in_them_and_goes_on_exactly(shards, small, tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / "plain").mkdir(exist_ok=True)
        (tmp_path / "plain" / name).write_bytes(content)
    small = small | {"epochs": 3, "picture_epochs": 0}
    plain = pretrain(str(tmp_path / "plain"), out=str(tmp_path / "of_files"), **small)
    whole = pretrain([str(shards / "0.tar"), str(shards / "1.tar")], out=str(tmp_path / "whole"), **small)
    assert whole.train_loss == plain.train_loss and whole.held_out_loss == plain.held_out_loss

    read, reads = FileSource.read, []

    def stopping(self, *arguments):
        reads.append(arguments)
        if len(reads) == 45:  # in the second epoch
            raise KeyboardInterrupt
        return read(self, *arguments)

    monkeypatch.setattr(FileSource, "read", stopping)
    small["checkpoint_minutes"] = 1e-6
    with pytest.raises(KeyboardInterrupt):
        pretrain(str(shards / "{0..1}.tar"), out=str(tmp_path / "part"), **small)
    monkeypatch.setattr(FileSource, "read", read)
    resumed = pretrain(resume=str(tmp_path / "part"))
    assert resumed.train_loss == whole.train_loss
    ours, theirs = weights(whole.folder), weights(resumed.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def begun(shards, tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    images = find_images(str(shards), held_out=0.1)
    images.write_lists(folder)
    return folder, images


def test_nothing_is_said_of_tars_as_they_were(begun, caplog):
    folder, images = begun
    again = reopen_images(folder, None)
    assert (again.train, again.held_out) == (images.train, images.held_out)
    assert "changed" not in caplog.text


def test_a_tar_with_more_in_it_is_told_and_the_run_has_what_it_had(begun, shards, caplog):
    folder, images = begun
    names = list(FILES)
    write_tar(shards / "0.tar", {"new.png": FILES[names[20]]} | {name: FILES[name] for name in names[:13]})
    again = reopen_images(folder, None)
    assert (again.train, again.held_out) == (images.train, images.held_out)
    assert "1 files of pictures have changed" in caplog.text and "0.tar" in caplog.text
    source = FileSource(again.train)
    for place, address in enumerate(again.train):
        assert source.content(place) == FILES[address.split("::")[0].removeprefix("tar://")]


def test_pictures_that_are_gone_are_told(begun, shards, caplog):
    folder, _ = begun
    names = list(FILES)
    write_tar(shards / "1.tar", {name: FILES[name] for name in names[13:25]})
    with caplog.at_level(logging.WARNING):
        reopen_images(folder, None)
    assert "1 of its pictures are gone, others stand in for them" in caplog.text
    (shards / "1.tar").unlink()
    with pytest.raises(DataError, match=r"13 of its 26 pictures are gone.*start a new run"):
        reopen_images(folder, None)


def test_a_torn_record_is_told(begun, caplog):
    folder, images = begun
    folder.shards.write_text("{")
    assert reopen_images(folder, None).train == images.train and "is torn" in caplog.text


@pytest.mark.parametrize("check", ["quick", "full", "none"])
def test_checks(shards, check):
    damaged = bytearray(FILES["000003.png"])
    damaged[damaged.index(b"IDAT") + 8] ^= 255
    names = list(FILES)
    write_tar(shards / "0.tar", {name: FILES[name] for name in names[:13]} | {"000003.png": bytes(damaged)})
    images = find_images(str(shards), held_out=0, check=check)
    assert len(images.bad) == (check == "full") and len(images.train) + len(images.bad) == 26
