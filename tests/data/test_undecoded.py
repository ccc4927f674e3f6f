"""JPEGs that are decoded where they are trained on, by the CPU in a GPU's place."""

import io

import numpy as np
import pytest
import torch
import torchvision.io
from data.shards import write_tar
from PIL import Image
from torch.utils.data import DataLoader

from convspark.data import Decoder, EpochSampler, PretrainImages, PretrainTransform, collate, list_pictures
from convspark.data.undecoded import CodedBatch, undecoded
from convspark.errors import UsageError
from convspark.runs.loading import TrainLoader

CPU = torch.device("cpu")
# Of torchvision's: torchcodec, which is to follow it, needs FFmpeg.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


def content(seed, size=(60, 50), mode="RGB", kind="JPEG", **options):
    """A smooth picture: decoders differ by little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def rotated(seed):
    exif = Image.Exif()
    exif[0x0112] = 6
    return content(seed, exif=exif)


FILES = {
    "plain.jpg": content(0),
    "grey.jpg": content(1, mode="L"),
    "progressive.jpg": content(2, progressive=True),
    "rotated.jpg": rotated(3),
    "cmyk.jpg": content(4, mode="CMYK"),
    "large.jpg": content(5, (300, 200)),
    "cut.jpg": content(6)[:-60],
    "picture.png": content(7, kind="PNG"),
    "text.jpg": b"no picture",
    "other.jpg": content(8, (41, 67)),
}
CODED = ["plain.jpg", "grey.jpg", "progressive.jpg", "other.jpg"]


@pytest.fixture(params=["files", "tar"])
def paths(request, tmp_path):
    if request.param == "tar":
        return list_pictures(str(write_tar(tmp_path / "all.tar", FILES)))
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    return [str(tmp_path / name) for name in FILES]


def datasets(paths, **options):
    transform = PretrainTransform(size=32, in_bytes=True)
    for leaves_coded in (True, False):
        yield PretrainImages(paths, transform, 3, most_bad=0.5, leaves_coded=leaves_coded, **options)


def alike(ours, theirs):
    difference = (ours.int() - theirs.int()).abs()
    assert ours.dtype == theirs.dtype == torch.uint8 and ours.shape == theirs.shape
    assert int(difference.max()) <= 4 and float(difference.float().mean()) < 0.5


def test_crops_are_those_of_pictures_that_workers_decode(paths):
    coded, plain = datasets(paths)
    whole = coded.transform.collate
    keys = [(1, index) for index in range(len(paths))]
    batch = collate(coded.__getitems__(keys), whole)
    assert isinstance(batch, CodedBatch) and len(batch) == len(keys)
    assert {keys[place][1] for place, *_ in batch.coded} == {list(FILES).index(name) for name in CODED}
    expected = whole(plain.__getitems__(keys))
    images = Decoder(CPU, (32, 32), 3, coded.__getitem__)(batch)
    alike(images, expected)
    assert all(torch.equal(images[place], expected[place]) for place in batch.others)
    assert torch.equal(coded[1, 0], plain[1, 0]) and coded.bad_files() == plain.bad_files()


def test_all_crops_of_a_picture_share_its_file(paths):
    coded, plain = datasets(paths[:1], crops_per_image=3)
    examples = coded.__getitems__([(0, 0), (0, 1), (0, 2)])
    assert len({id(one.content) for one in examples}) == 1
    images = Decoder(CPU, (32, 32), 3, coded.__getitem__)(collate(examples, coded.transform.collate))
    alike(images, torch.stack(plain.__getitems__([(0, 0), (0, 1), (0, 2)])))


def test_what_the_device_cannot_decode_the_cpu_does_or_others_stand_in(paths, monkeypatch):
    coded, plain = datasets(paths)
    decode, refused = torchvision.io.decode_jpeg, [FILES["plain.jpg"], FILES["grey.jpg"]]

    def decode_jpeg(contents, *arguments, **options):
        if any(bytes(one.numpy()) in refused for one in contents):
            raise RuntimeError("nvjpegDecodeBatched failed: 5")
        return decode(contents, *arguments, **options)

    monkeypatch.setattr(torchvision.io, "decode_jpeg", decode_jpeg)
    keys = [(0, index) for index in range(len(paths))]
    batch = collate(coded.__getitems__(keys), coded.transform.collate)
    images, expected = Decoder(CPU, (32, 32), 3, coded.__getitem__)(batch), torch.stack(plain.__getitems__(keys))
    alike(images, expected)
    for name in ("plain.jpg", "grey.jpg"):
        place = list(FILES).index(name)
        assert torch.equal(images[place], expected[place])


def test_grey_crops(paths):
    transform = PretrainTransform(size=32, mean=[0.5], std=[0.2], in_bytes=True)
    coded, plain = (PretrainImages(paths[:3], transform, leaves_coded=leaves) for leaves in (True, False))
    batch = collate(coded.__getitems__([0, 1, 2]), transform.collate)
    alike(Decoder(CPU, (32, 32), 1, coded.__getitem__)(batch), torch.stack(plain.__getitems__([0, 1, 2])))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_hands_out_the_same_batches_also_from_the_middle(paths, workers):
    coded, plain = datasets(paths)

    def batches(dataset, decoder, start):
        whole = dataset.transform.collate
        together = whole if decoder is None else lambda examples: collate(examples, whole)
        loader = TrainLoader(dataset, 4, 1, 3, workers, False, together, decoder=decoder)
        loader.load_state_dict({"epoch": 0, "batches": start, "images": len(dataset)})
        return list(loader)

    decoder = Decoder(CPU, (32, 32), 3, coded.__getitem__)
    ours, theirs = batches(coded, decoder, 0), batches(plain, None, 0)
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        alike(one, other)
    assert all(torch.equal(one, other) for one, other in zip(batches(coded, decoder, 1), ours[1:], strict=True))


def test_errors_of_the_thread_that_decodes_reach_the_loop(paths):
    coded, _ = datasets(paths)
    decoder = Decoder(CPU, (32, 32), 3, coded.__getitem__)
    decoder._cut = None  # type: ignore[assignment,method-assign]
    examples = DataLoader(
        coded, 4, sampler=EpochSampler(len(coded), 4), collate_fn=lambda e: collate(e, coded.transform.collate)
    )
    with pytest.raises(TypeError):
        list(decoder.ahead(examples))


def test_a_torchvision_that_cannot_decode_there_is_refused(monkeypatch):
    def decode_jpeg(*arguments, **options):
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", decode_jpeg)
    with pytest.raises(UsageError, match=r"decodes no JPEGs on cpu: .* not compiled with nvJPEG .* to the workers"):
        Decoder(CPU, (32, 32), 3, lambda key: torch.zeros(3, 32, 32))


def test_only_what_is_left_coded_is_read(paths):
    coded, _ = datasets(paths)
    shown = {name: undecoded(coded.source, index, None) for index, name in enumerate(FILES)}
    assert {name for name, one in shown.items() if one is not None} == {*CODED, "large.jpg"}
    assert shown["other.jpg"].full_size == (67, 41)
    assert undecoded(torch.utils.data.TensorDataset(torch.ones(3)), 0, None) is None  # type: ignore[arg-type]
