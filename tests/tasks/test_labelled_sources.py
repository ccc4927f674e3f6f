"""The tasks on tars, tables and URLs: the same results as on the same pictures in folders."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data.shards import write_tar
from labelled_pictures import write_pictures
from PIL import Image

from convspark.data import index, list_pictures, measure
from convspark.data.pixels import Pixels
from convspark.data.statistics import fitting
from convspark.errors import DataError, UsageError
from convspark.pretraining.command import pretrain
from convspark.pretraining.reconstruct import reconstruct
from convspark.runs.run import Run
from convspark.tasks.classification.command import finetune
from convspark.tasks.features.embed import embed
from convspark.tasks.features.probe import probe
from convspark.tasks.segmentation.command import segment
from convspark.tasks.segmentation.data import read_label_maps
from convspark.tasks.segmentation.settings import SegmentSettings
from convspark.tasks.segmentation.train import Segmentation

COMMON = {"size": 32, "batch_size": 4, "epochs": 2, "workers": 0, "device": "cpu", "precision": "fp32"}


@pytest.fixture(autouse=True)
def own_index(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("index")
    monkeypatch.setattr(index, "cache_folder", lambda: folder)


@pytest.fixture
def both(tmp_path):
    """The same labelled pictures in class folders and in tars, in one order."""
    write_pictures(tmp_path / "folder", 6)
    files = sorted((tmp_path / "folder").rglob("*.png"))
    for number, some in enumerate((files[:7], files[7:])):
        members = {}
        for i, file in enumerate(some):
            members |= {f"{i:03}.png": file.read_bytes(), f"{i:03}.cls": file.parent.name.encode()}
        write_tar(tmp_path / "tars" / f"{number}.tar", members)
    return tmp_path


def test_a_classifier_from_tars_is_that_from_folders_and_goes_on_elsewhere(both):
    first = finetune("random:test_resnet", str(both / "folder"), out=str(both / "a"), **COMMON)
    second = finetune("random:test_resnet", str(both / "tars"), out=str(both / "b"), **COMMON)
    assert (first.loss, first.last, first.recall) == (second.loss, second.last, second.recall)
    before = (both / "b" / "split.json").read_text()
    assert f"::{both}/tars/1.tar" in before
    (both / "tars").rename(both / "moved")
    again = finetune(resume=str(both / "b"), data=str(both / "moved"))
    assert again.loss == first.loss
    assert json.loads((both / "b" / "split.json").read_text()) == json.loads(before.replace("/tars/", "/moved/"))


def test_frozen_features_are_the_same(both):
    scores = [
        probe("random:test_resnet", str(both / place), size=32, seeds=1, device="cpu", workers=0).scores
        for place in ("folder", "tars")
    ]
    assert scores[0] == scores[1]
    features = {}
    for place in ("folder", "tars"):
        result = embed(
            "random:test_resnet", str(both / place), out=str(both / "f.npz"), size=32, device="cpu", workers=0
        )
        assert result.pictures == 18
        with np.load(both / "f.npz") as content:
            features[place] = content["features"]
            assert content["paths"].tolist() == list_pictures(both / place)
    np.testing.assert_array_equal(features["folder"], features["tars"])


def _deep(folder: Path) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(100, 4000, (40, 50)).astype(np.uint16)).save(folder / f"{i}.png")
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_values_are_measured_in_tars_too(tmp_path):
    write_tar(tmp_path / "a.tar", _deep(tmp_path / "deep"))
    measured = []
    for place in ("deep", "a.tar"):
        paths = list_pictures(tmp_path / place)
        pixels = fitting(paths, Pixels(1))
        assert pixels.stored
        measured.append(measure(paths, pixels))
    assert measured[0] == measured[1] and measured[0].kinds == {"uint16": 5}
    run = pretrain(
        str(tmp_path / "a.tar"), model="test_resnet", channels=1, stats="auto", decoder_width=32, epochs=1, size=64,
        batch_size=4, workers=0, device="cpu", precision="fp32", held_out=0.2, out=str(tmp_path / "run"),
    )  # fmt: skip
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "low:" in config and run is not None
    page = reconstruct(str(tmp_path / "run"), [str(tmp_path / "a.tar")], output=str(tmp_path / "r.png"))
    files = reconstruct(str(tmp_path / "run"), [str(tmp_path / "deep")], output=str(tmp_path / "s.png"))
    np.testing.assert_array_equal(*(np.asarray(Image.open(file)) for file in (page, files)))


@pytest.fixture
def masked(tmp_path):
    """Pictures and masks, train and val: in folders, in tars, in a saved dataset and far away."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        members = {}
        for i in range(count):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            for kind, name, values in (("p", "png", pixels), ("m", "mask.png", pixels[..., 0] // 128 * 255)):
                file = io.BytesIO()
                Image.fromarray(values).save(file, "PNG")
                members[f"{i}.{name}"] = file.getvalue()
                (tmp_path / part / kind).mkdir(parents=True, exist_ok=True)
                (tmp_path / part / kind / f"{i}.png").write_bytes(file.getvalue())
        write_tar(tmp_path / "tars" / part / "0.tar", members)
    return tmp_path


def test_a_segmenter_from_tars_is_that_from_folders_and_goes_on_elsewhere(masked):
    train, val = masked / "train", masked / "val"
    places = {"images": train / "p", "masks": train / "m", "val_images": val / "p", "val_masks": val / "m"}
    places = {name: str(place) for name, place in places.items()}
    first = segment("random:test_resnet", **places, out=str(masked / "a"), **COMMON)
    second = segment("random:test_resnet", images=str(masked / "tars"), out=str(masked / "b"), **COMMON)
    assert (first.iou, first.dice_by_class, first.pictures) == (second.iou, second.dice_by_class, second.pictures)
    shutil.move(masked / "tars", masked / "moved")
    again = segment(resume=str(masked / "b"), images=str(masked / "moved"))
    assert again.iou == first.iou and "/moved/train/0.tar" in (masked / "b" / "split.json").read_text()


@pytest.mark.parametrize("kind", ["train and validation", "train and test", "no masks of val"])
def test_folders_of_parts_in_both_folders(masked, kind):
    """The layout of many data sets: p/train beside m/train, p/validation beside m/validation."""
    other = {"train and test": "test"}.get(kind, "validation")
    for folder in "pm":
        for part, new in (("train", "train"), ("val", other)):
            (masked / folder).mkdir(exist_ok=True)
            (masked / part / folder).rename(masked / folder / new)
    settings = SegmentSettings("random:test_resnet", images=str(masked / "p"), masks=str(masked / "m"), **COMMON)
    if kind == "no masks of val":
        shutil.rmtree(masked / "m" / other)
        with pytest.raises(DataError, match=r"^masks: .*/m' has no folder for the pictures in .*/p/validation"):
            Segmentation(Run(settings))
        return
    split = Segmentation(Run(settings)).split
    of_train = {str(masked / "p" / "train" / f"{i}.png") for i in range(8)}
    if kind == "train and test":
        assert set(split.train) | set(split.val) == of_train and split.val
    else:
        assert split.val == [str(masked / "p" / other / f"{i}.png") for i in range(3)] and {*split.train} == of_train


@pytest.mark.slow
def test_folders_of_parts_at_another_place(masked, caplog):
    for folder in "pm":
        for part in ("train", "val"):
            (masked / folder).mkdir(exist_ok=True)
            (masked / part / folder).rename(masked / folder / part)
    places = {"images": str(masked / "p"), "masks": str(masked / "m"), "out": str(masked / "a")}
    segment("random:test_resnet", **places, **COMMON | {"epochs": 1})
    (masked / "p").rename(masked / "q")
    segment(resume=places["out"], images=str(masked / "q"))
    split = json.loads((masked / "a" / "split.json").read_text())
    assert split["val"] == [str(masked / "q" / "val" / f"{i}.png") for i in range(3)]
    assert "no longer there" not in caplog.text


def test_masks_in_tables_and_far_away(masked):
    fsspec, hub = pytest.importorskip("fsspec"), pytest.importorskip("datasets")
    expected = read_label_maps(str(masked / "val" / "p"), str(masked / "val" / "m"))
    rows = [
        {"image": {"bytes": (masked / "val" / "p" / f"{i}.png").read_bytes(), "path": None},
         "annotation": {"bytes": (masked / "val" / "m" / f"{i}.png").read_bytes(), "path": None}}
        for i in range(3)
    ]  # fmt: skip
    features = hub.Features({"image": hub.Image(), "annotation": hub.Image()})
    dataset = hub.Dataset.from_list(rows, features=features)
    dataset.save_to_disk(masked / "saved")
    dataset.to_parquet(masked / "a.parquet")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    memory.put(str(masked / "val"), "/masked", recursive=True)
    far = read_label_maps("memory://masked/p", "memory://masked/m")
    for maps in (
        far,
        *(read_label_maps(str(masked / name), None) for name in ("saved", "a.parquet", "tars/val/0.tar")),
    ):
        assert len(maps) == 3 and maps.classes == expected.classes
        for i in range(3):
            np.testing.assert_array_equal(maps.label_map(i), expected.label_map(i))
            np.testing.assert_array_equal(np.asarray(maps.source.read(i)), np.asarray(expected.source.read(i)))


def test_what_does_not_belong_together_is_told(masked):
    pictures, archive = str(masked / "val" / "p"), str(masked / "tars" / "val" / "0.tar")
    with pytest.raises(DataError, match=r"3 of the 3 pictures .* no mask beside them: .* --masks"):
        read_label_maps(pictures, None)
    with pytest.raises(UsageError, match=r"expected a folder of pictures for the masks"):
        read_label_maps(archive, str(masked / "val" / "m"))
    with pytest.raises(DataError, match=r"whose masks lie in the same files: leave --masks out"):
        read_label_maps(pictures, str(masked / "tars" / "val"))
    (masked / "coco.json").write_text("{}")
    with pytest.raises(UsageError, match="expected a folder of pictures on this machine"):
        read_label_maps("memory://p", str(masked / "coco.json"))
    (masked / "tars" / "val" / "0.tar").rename(masked / "tars" / "val-0.tar")
    shutil.copy(masked / "tars" / "val-0.tar", masked / "tars" / "val-1.tar")
    with pytest.raises(DataError, match=r"images: '.*/val-\*\.tar' holds no pictures to train on"):
        segment("random:test_resnet", images=str(masked / "tars" / "val-*.tar"), out=str(masked / "a"), **COMMON)


def test_a_single_picture_is_enough_to_train_a_segmenter(masked):
    for folder in "pm":
        for i in range(2, 8):
            (masked / "train" / folder / f"{i}.png").unlink()
    settings = {name: value for name, value in COMMON.items() if name != "batch_size"} | {"size": 64}
    places = {"images": str(masked / "train" / "p"), "masks": str(masked / "train" / "m")}
    result = segment("random:test_resnet", **places, out=str(masked / "a"), **settings)
    with pytest.raises(UsageError, match=r"size is 32 and batch_size 1: .* take crops of more than 32"):
        segment("random:test_resnet", **places, out=str(masked / "b"), **settings | {"size": 32})
    assert result.pictures == 1 and "batch_size: 1\n" in (masked / "a" / "config.yaml").read_text()


def test_pictures_that_are_trained_on_and_measured_with_are_told(masked, caplog):
    places = {"images": str(masked / "train" / "p"), "masks": str(masked / "train" / "m")}
    again = {"val_images": f"{masked}/val/../train/p", "val_masks": places["masks"]}
    options = COMMON | {"epochs": 1}
    segment("random:test_resnet", **places, **again, out=str(masked / "a"), **options)
    assert "8 of the 8 pictures to measure with are trained on, too" in caplog.text
    caplog.clear()
    segment("random:test_resnet", **places, out=str(masked / "b"), **options)
    assert "are trained on, too" not in caplog.text
