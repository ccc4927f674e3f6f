"""Examples and their order: counted by (seed, epoch, index), whatever the workers, batches and interruptions."""

from collections import Counter as Tally
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from convspark.data import EpochSampler, PretrainImages, PretrainTransform, Shrunk, TooManyBadPicturesError
from convspark.data.transforms import Picture
from convspark.errors import UsageError
from convspark.seeds import Counter


class Flat:
    """A source of pictures of one value each: picture i is i everywhere. It counts how often it is read."""

    def __init__(self, length: int) -> None:
        self.length, self.reads = length, 0

    def __len__(self) -> int:
        return self.length

    def read(self, index: int, shrink: object = None) -> Tensor:
        self.reads += 1
        return torch.full((1, 4, 4), float(index))

    def name(self, index: int) -> str:
        return str(index)


def shown(picture: Tensor, counter: object) -> Tensor:
    return picture[0, 0, 0]


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{i:02}.png") for i in range(20)]
    for i, path in enumerate(paths):
        coarse = np.random.default_rng(i).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC).save(path)
    return paths


def epoch_of(dataset: PretrainImages, workers: int, **options: int) -> Tensor:
    order = EpochSampler(len(dataset), 8, seed=5, crops_per_image=dataset.crops_per_image, **options)
    loader = DataLoader(dataset, batch_size=order.images_a_pass, sampler=order, num_workers=workers)
    batches = iter(loader)
    try:
        return torch.cat(list(batches))
    finally:
        # Left to the garbage collector, after an error, each worker is waited for five seconds.
        getattr(batches, "_shutdown_workers", lambda: None)()


def test_the_same_for_any_number_of_workers(photos: list[str]) -> None:
    dataset = PretrainImages(photos, PretrainTransform(size=16), seed=1)
    alone = epoch_of(dataset, 0, epoch=2)
    assert alone.shape == (24, 3, 16, 16) and alone.dtype == torch.float32
    assert torch.equal(alone, epoch_of(dataset, 1, epoch=2))
    assert torch.equal(alone, epoch_of(dataset, 2, epoch=2))
    assert torch.equal(alone[16:], epoch_of(dataset, 2, epoch=2, start_batch=2))
    other_epoch, other_seed = (
        epoch_of(dataset, 0, epoch=3),
        epoch_of(PretrainImages(photos, dataset.transform, seed=2), 0),
    )
    assert not any(torch.equal(a, b) for a in alone for b in (*other_epoch, *other_seed))


def test_an_example_is_a_function_of_its_key(photos: list[str]) -> None:
    dataset = PretrainImages(photos, PretrainTransform(size=16), crops_per_image=3)
    batch = dataset.__getitems__([(1, 5), (1, 4), (1, 3), (0, 3)])
    for key, example in zip([(1, 5), (1, 4), (1, 3), 3], batch, strict=True):
        assert torch.equal(dataset[key], example)
    assert len({example.sum().item() for example in batch}) == 4
    with pytest.raises(IndexError):
        dataset[-1]


def test_epoch_visits_every_picture_once_and_fills_the_last_batch() -> None:
    order = EpochSampler(103, 16, seed=2, epoch=4)
    keys = list(order)
    assert len(keys) == len(order) == 112 and {epoch for epoch, _ in keys} == {4}
    indices = [index for _, index in keys]
    assert sorted(indices[:103]) == list(range(103)) and indices[:103] != sorted(indices[:103])
    assert [index - 103 for index in indices[103:]] == indices[:9]  # the same pictures as at the start, other crops
    images = [int(v) for v in PretrainImages(Flat(103), shown).__getitems__(keys)]
    assert max(Tally(images).values()) == 2 and set(images) == set(range(103))


def test_fewer_pictures_than_a_batch_holds() -> None:
    images = [index % 3 for _, index in EpochSampler(3, 8)]
    assert len(images) == 8 and max(Tally(images).values()) == 3
    assert len(set(EpochSampler(3, 8))) == 8  # no example twice


def test_shuffled_by_seed_and_epoch() -> None:
    order = EpochSampler(50, 10, seed=1)
    first = [index for _, index in order]
    assert first == [index for _, index in order]
    order.set_epoch(1)
    assert first != [index for _, index in order]
    assert first != [index for _, index in EpochSampler(50, 10, seed=2)]
    starts = Tally(next(iter(EpochSampler(4, 4, seed=s)))[1] for s in range(400))
    assert min(starts.values()) > 60  # each of the four begins about 100 times


def test_resume_in_the_midst_of_an_epoch() -> None:
    whole = list(EpochSampler(45, 10, seed=1, epoch=3))
    rest = EpochSampler(45, 10, seed=1, epoch=3, start_batch=2)
    assert list(rest) == whole[20:] and len(rest) == 30
    rest.set_epoch(3)  # what a training engine says before it starts
    assert list(rest) == whole[20:]
    rest.set_epoch(4)
    assert list(rest) == list(EpochSampler(45, 10, seed=1, epoch=4)) and len(rest) == 50
    assert list(EpochSampler(45, 10, start_batch=5)) == []


def test_processes_share_each_batch() -> None:
    whole = torch.tensor(list(EpochSampler(50, 12, seed=1)))[:, 1].reshape(-1, 12)
    shares = [
        torch.tensor(list(EpochSampler(50, 12, seed=1, rank=r, world_size=3)))[:, 1].reshape(-1, 4) for r in range(3)
    ]
    assert torch.equal(torch.cat(shares, 1), whole)


def test_crops_of_a_picture_share_its_decoding() -> None:
    source = Flat(10)
    dataset = PretrainImages(source, shown, crops_per_image=4)
    keys = list(EpochSampler(len(dataset), 8, seed=1, crops_per_image=4))
    images: list[int] = []
    for start in range(0, 40, 8):
        images += [int(v) for v in dataset.__getitems__(keys[start : start + 8])]
    assert source.reads == 10
    assert images == [image for image in images[::4] for _ in range(4)] and set(images) == set(range(10))
    assert len(set(keys)) == 40


def test_bad_pictures_are_replaced_recorded_and_counted(photos: list[str]) -> None:
    transform = PretrainTransform(size=16)
    Path(photos[7]).write_bytes(b"")
    for workers in (0, 2):
        dataset = PretrainImages(photos, transform, seed=1)
        batch = epoch_of(dataset, workers, epoch=1)
        assert dataset.bad_files() == [(photos[7], "empty (0 bytes)")]
        assert torch.equal(batch, epoch_of(PretrainImages(photos, transform, seed=1), 0, epoch=1))
    # The replacement changes from epoch to epoch, and is one of the others.
    source = PretrainImages(photos, lambda picture, _: torch.tensor(picture.getpixel((3, 3))))  # type: ignore[union-attr]
    others = {tuple(source[i].tolist()) for i in range(20) if i != 7}
    stand_ins = {tuple(source[(epoch, 7)].tolist()) for epoch in range(20)}
    assert stand_ins <= others and len(stand_ins) > 5


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_pictures_stop_the_epoch(photos: list[str], workers: int) -> None:
    for path in photos[:2]:
        Path(path).write_text("no picture")
    with pytest.raises(TooManyBadPicturesError, match=r"^images: 2 of 20 pictures cannot be read") as caught:
        epoch_of(PretrainImages(photos, PretrainTransform(size=16)), workers)
    assert "Traceback" not in str(caught.value) and photos[0] in str(caught.value)
    for path in photos:
        Path(path).unlink()
    with pytest.raises(TooManyBadPicturesError):
        epoch_of(PretrainImages(photos, PretrainTransform(size=16), most_bad=1.0), workers)


def test_mistakes_are_not_taken_for_bad_pictures() -> None:
    class Broken(Flat):
        def read(self, index: int, shrink: object = None) -> Tensor:
            raise KeyError("a mistake in the code")

    with pytest.raises(KeyError):
        PretrainImages(Broken(5), shown)[0]


def test_large_photographs_are_decoded_small(tmp_path: Path) -> None:
    Image.new("RGB", (1600, 1200), "red").save(tmp_path / "a.jpg")
    decoded: list[Picture] = []

    class Transform(PretrainTransform):
        def __call__(self, picture: Picture, counter: Counter) -> Tensor:
            decoded.append(picture)
            return super().__call__(picture, counter)

    PretrainImages([str(tmp_path / "a.jpg")], Transform(size=64))[0]
    (picture,) = decoded
    assert isinstance(picture, Shrunk) and picture.picture.size == (200, 150) and picture.full_size == (1200, 1600)


def test_crops_of_a_picture_do_not_depend_on_which_others_share_its_decoding(tmp_path: Path) -> None:
    """Of 520 x 480 pixels a large crop could come from a copy of half the size, a small one only from the whole."""
    coarse = np.random.default_rng(0).integers(0, 256, (60, 65, 3), np.uint8)
    Image.fromarray(coarse).resize((520, 480), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg")
    decoded: list[Picture] = []

    class Transform(PretrainTransform):
        def __call__(self, picture: Picture, counter: Counter) -> Tensor:
            decoded.append(picture)
            return super().__call__(picture, counter)

    transform = Transform(size=160, scale=(0.2, 1.0))
    dataset = PretrainImages([str(tmp_path / "a.jpg")], transform, crops_per_image=4)
    factors = [[transform.shrink(480, 520, (0, 1, epoch, i)) >= 2 for i in range(4)] for epoch in range(20)]
    assert any(any(row) and not all(row) for row in factors) and any(all(row) for row in factors)
    for epoch in range(20):
        decoded.clear()
        together = dataset.__getitems__([(epoch, i) for i in range(8)])  # 4 to 7: the picture's second visit
        assert [isinstance(picture, Shrunk) for picture in decoded[:4]] == [all(factors[epoch])] * 4
        for i, crop in enumerate(together):
            assert torch.equal(crop, dataset[(epoch, i)])


def test_bad_settings() -> None:
    with pytest.raises(UsageError, match="crops_per_image"):
        PretrainImages(Flat(3), shown, crops_per_image=0)
    for options in (
        {"batch_size": 0},
        {"batch_size": 10, "world_size": 3},
        {"batch_size": 5, "start_batch": 3},
        {"batch_size": 5, "crops_per_image": 4},
    ):
        with pytest.raises(UsageError, match="expected"):
            EpochSampler(10, **options)


@pytest.mark.parametrize("batch_size", [12, 16])
def test_repeats_of_a_picture_are_in_one_batch_but_no_neighbours(batch_size: int) -> None:
    repeats, pictures = 3, 48
    order = EpochSampler(
        pictures * repeats, batch_size, 1, crops_per_image=repeats, batches=48 // batch_size, apart=True
    )
    keys = np.array([index for _, index in order])
    assert len(keys) == len(order) == pictures and len(set(keys)) == pictures  # an epoch keeps its length
    batches = keys.reshape(-1, batch_size) // repeats
    assert (batches[:, 0::2] != batches[:, 1::2]).all()  # which are mixed with each other
    for batch in batches:
        assert sum(count == repeats for count in Tally(batch.tolist()).values()) >= batch_size // repeats - 1
    assert len(set(batches.reshape(-1))) == pictures // repeats
    order.set_epoch(1)
    assert set(index // repeats for _, index in order) != set(batches.reshape(-1).tolist())


def test_an_epoch_of_more_or_fewer_batches() -> None:
    whole = [index for _, index in EpochSampler(20, 4, seed=1)]
    assert [index for _, index in EpochSampler(20, 4, seed=1, batches=3)] == whole[:12]
    longer = [index for _, index in EpochSampler(20, 4, seed=1, batches=7)]
    assert longer[:20] == whole and [index - 20 for index in longer[20:]] == whole[:8]  # other crops
