"""Tars in a real object store on this machine: the pictures in them, also where the network or the store fails."""

import itertools
import os
import time
from collections.abc import Iterator

import pytest
import torch
from data.object_store import FAULTS, Faulty, credentials, moto
from data.shards import pictures, write_tar
from data.test_tars import same_pictures
from torch.utils.data import DataLoader

from convspark.data import EpochSampler, FileSource, HeldOutTransform, PretrainImages, list_pictures, remote, scan
from convspark.data.decode import BadPictureError
from convspark.data.scan import TooManyBadPicturesError
from convspark.data.shards import stamp_of
from convspark.errors import DataError

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
pytest.importorskip("moto", reason="moto is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # these libraries' warnings of each other

FILES = pictures(40, ("jpg",))
BUCKETS = itertools.count()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    with moto(str(tmp_path_factory.mktemp("moto") / "log")) as port, Faulty(port).running() as faulty:
        before = dict(os.environ)
        os.environ.update(credentials(faulty.server_address[1]))
        yield faulty
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def bucket(store: Faulty, tmp_path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a bucket with four tars of ten pictures."""
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(attempts=4, pause=0.01, seconds=20.0))
    monkeypatch.setattr(remote, "ATTEMPTS", remote.Attempts())
    store.fault, store.lasts = None, lambda: True
    name = f"pictures{next(BUCKETS)}"
    files = system()
    files.mkdir(name)
    names = list(FILES)
    for shard in range(4):
        part = {member: FILES[member] for member in names[shard * 10 : shard * 10 + 10]}
        files.put(str(write_tar(tmp_path / f"{shard}.tar", part)), f"{name}/{shard}.tar")
    return f"s3://{name}"


def system():
    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


def test_pictures_come_out_as_they_went_in(bucket, tmp_path) -> None:
    addresses = list_pictures(bucket)
    assert addresses == [f"tar://{name}::{bucket}/{place // 10}.tar" for place, name in enumerate(FILES)]
    assert list_pictures(f"{bucket}/{{0..3}}.tar") == list_pictures(f"{bucket}/*.tar") == addresses
    same_pictures(FileSource(addresses), list(FILES.values()), tmp_path)
    assert scan(addresses).good == scan(addresses, whole=True).good == addresses
    with pytest.raises(DataError, match=r"4\.tar' does not exist"):
        list_pictures(f"{bucket}/{{3..4}}.tar")


def test_loading_processes_give_the_same_batches(bucket) -> None:
    local = PretrainImages(_Files(), HeldOutTransform(size=16), seed=1)
    images = PretrainImages(list_pictures(bucket), HeldOutTransform(size=16), seed=1)
    assert images[0].shape == (3, 16, 16)  # read before the fork
    batches = DataLoader(images, batch_size=8, sampler=EpochSampler(40, 8, start_batch=2), num_workers=2)
    expected = DataLoader(local, batch_size=8, sampler=EpochSampler(40, 8, start_batch=2))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(batches, expected, strict=True))


class _Files:
    """The same pictures, in memory."""

    def __len__(self) -> int:
        return len(FILES)

    def read(self, index, shrink=None):
        from convspark.data.decode import decode_bytes

        return decode_bytes("", list(FILES.values())[index])

    def name(self, index) -> str:
        return list(FILES)[index]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass_are_overcome_and_counted(bucket, store, tmp_path, monkeypatch, fault) -> None:
    source = FileSource(list_pictures(bucket))
    # s3fs repeats some requests itself: all that it tries within our limit of time counts as one attempt.
    monkeypatch.setattr(remote.PATIENCE, "seconds", 1.5)
    store.fault, store.lasts = ("1.tar", fault), lambda: remote.ATTEMPTS.repeated < 1
    same_pictures(_Part(source, [12, 13]), [FILES["000012.jpg"], FILES["000013.jpg"]], tmp_path)
    assert 1 <= remote.ATTEMPTS.repeated <= 3


class _Part(FileSource):
    def __init__(self, whole: FileSource, items: list[int]) -> None:
        self.whole, self.items = whole, items

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index, shrink=None):
        return self.whole.read(self.items[index], shrink)


def test_a_fault_that_stays_makes_bad_pictures_and_no_waiting(bucket, store, monkeypatch) -> None:
    addresses = list_pictures(bucket)
    images = PretrainImages(addresses, HeldOutTransform(size=16), most_bad=0.5)
    monkeypatch.setattr(remote.PATIENCE, "seconds", 0.3)
    monkeypatch.setattr(store, "seconds", 1.0)
    store.fault = "2.tar", "slow"
    began = time.monotonic()
    batch = torch.stack([images[index] for index in range(18, 32)])  # the ten of shard 2 among them
    assert batch.shape == (14, 3, 16, 16) and time.monotonic() - began < 60
    # Three of the first picture, and none of the nine others, which are tried once. A busy machine may add some.
    assert 3 <= remote.ATTEMPTS.repeated < 10
    bad = images.bad_files()
    assert [name for name, _ in bad] == addresses[20:30]
    assert "no answer within 0.3 seconds" in bad[0][1]
    strict = PretrainImages(addresses, HeldOutTransform(size=16))
    with pytest.raises(TooManyBadPicturesError, match=r"3 of 40 pictures cannot be read"):
        [strict[index] for index in range(20, 30)]


def test_a_shard_that_is_gone(bucket) -> None:
    addresses = list_pictures(bucket)
    source = FileSource(addresses)
    system().rm(f"{bucket}/3.tar")
    with pytest.raises(BadPictureError, match="no such file"):
        source.read(35)
    assert remote.ATTEMPTS.repeated == 0  # it will not come back
    assert source.read(5).mode == "RGB"


def test_a_tar_that_is_cut_off_and_one_that_changes(bucket, tmp_path) -> None:
    addresses = list_pictures(bucket)
    source, before = FileSource(addresses), stamp_of(f"{bucket}/0.tar")
    files = system()
    content = files.cat_file(f"{bucket}/0.tar")
    files.pipe_file(f"{bucket}/0.tar", content[: len(content) // 2])
    bad = [index for index in range(10) if _is_bad(source, index)]
    assert bad and bad[-1] == 9 and bad == list(range(bad[0], 10))
    assert stamp_of(f"{bucket}/0.tar") != before
    remote._SYSTEMS.clear()  # a later run lists the bucket anew
    assert len(list_pictures(f"{bucket}/0.tar")) == bad[0] + 1


def _is_bad(source: FileSource, index: int) -> bool:
    try:
        source.read(index)
    except BadPictureError as error:
        return "truncated" in error.reason or "range" in error.reason.lower()
    return False
