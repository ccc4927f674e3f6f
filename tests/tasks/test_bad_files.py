"""What cannot be read stands in `bad_files.txt` of every task, found by the scan or later."""

import json

import numpy as np
import pytest
from labelled_pictures import write_pictures
from PIL import Image

from convspark.data import list_pictures
from convspark.errors import DataError
from convspark.tasks.classification.command import finetune
from convspark.tasks.classification.data import read_labelled
from convspark.tasks.detection.data import read_scenes
from convspark.tasks.segmentation.command import segment

COMMON = {"size": 32, "batch_size": 4, "epochs": 1, "workers": 0, "device": "cpu", "precision": "fp32"}


def listed(run):
    return dict(line.split("\t") for line in (run / "bad_files.txt").read_text().splitlines())


def test_of_a_classifier(tmp_path):
    data = write_pictures(tmp_path / "data", 10)
    (data / "red" / "3\n.png").write_bytes(b"")
    finetune("random:test_resnet", str(data), out=str(tmp_path / "run"), **COMMON)
    (bad,) = listed(tmp_path / "run").items()
    assert bad == (json.dumps(str(data / "red" / "3\n.png")), "empty (0 bytes)")
    finetune(resume=str(tmp_path / "run"))
    assert len(listed(tmp_path / "run")) == 1


def damage(file):
    """In its midst, which only decoding it shows."""
    content = bytearray(file.read_bytes())
    content[content.index(b"IDAT") + 30] ^= 255
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("part", "in_header", "words"),
    [
        ("train", False, "no readable picture to train on is left in 'red'"),
        ("val", True, "no picture to validate with is left"),  # and none is taken from those to train on
        (
            "test",
            True,
            "no picture to test with is left",
        ),  # and nothing is measured on those that weights are chosen by
        ("test", False, "no picture to test with is left"),
    ],
)
def test_a_part_of_which_nothing_is_left_is_told(tmp_path, part, in_header, words):
    for name in ("train", "val", "test"):
        write_pictures(tmp_path / name, 14 if name == "train" else 2)
    left = [tmp_path / part / "red" / f"{i}.png" for i in range(2)]
    for file in (tmp_path / part).rglob("*.png"):
        if file in left:
            file.write_bytes(b"") if in_header else damage(file)
        elif file.parent.name == "red" or part != "train":
            file.unlink()
    for folder in ("blue", "green") if part != "train" else ():
        (tmp_path / part / folder).rmdir()
    with pytest.raises(DataError, match=words):
        read_labelled(str(tmp_path), whole=part == "train")


@pytest.fixture
def annotated(tmp_path):
    """24 pictures with masks and boxes; one is no picture, and one damaged in its midst."""
    rng = np.random.default_rng(0)
    for folder in ("p", "m"):
        (tmp_path / folder).mkdir()
    for i in range(24):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "p" / f"{i:02}.png")
        Image.fromarray(pixels[..., 0] // 128 * 255).save(tmp_path / "m" / f"{i:02}.png")
    (tmp_path / "p" / "03.png").write_text("no picture")
    damage(tmp_path / "p" / "05.png")
    return tmp_path


def test_of_a_segmenter(annotated):
    places = {"images": str(annotated / "p"), "masks": str(annotated / "m")}
    segment("random:test_resnet", **places, val_share=0.75, out=str(annotated / "run"), **COMMON)
    assert {path.rpartition("/")[2] for path in listed(annotated / "run")} == {"03.png", "05.png"}


def test_of_a_detector(annotated):
    names = [path.rpartition("/")[2] for path in list_pictures(annotated / "p")]
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 9, 9]} for i, _ in enumerate(names)],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (annotated / "coco.json").write_text(json.dumps(content))
    scenes = read_scenes(str(annotated / "coco.json"), str(annotated / "p")).whole()
    assert [path.rpartition("/")[2] for path, _ in scenes.bad] == ["03.png", "05.png"] and len(scenes.scenes) == 22
    for i in range(4):
        (annotated / "p" / f"{i:02}.png").write_text("no picture")
    with pytest.raises(DataError, match=r"02.png: not a picture"):
        read_scenes(str(annotated / "coco.json"), str(annotated / "p"))
