"""Runs of the tasks whose pictures lie elsewhere when they go on."""

import json
import shutil

import numpy as np
import pytest
from labelled_pictures import write_pictures
from PIL import Image

from convspark.cli.main import main
from convspark.errors import DataError
from convspark.tasks.classification.command import finetune
from convspark.tasks.classification.network import ClassifyModule
from convspark.tasks.comparison import command as compare
from convspark.tasks.comparison.moved import move
from convspark.tasks.detection.command import detect
from convspark.tasks.segmentation.command import segment

COMMON = {"size": 32, "batch_size": 4, "epochs": 1, "workers": 0, "device": "cpu", "precision": "fp32"}


def split(run):
    return json.loads((run / "split.json").read_text())


def moved(text, old, new):
    return json.loads(json.dumps(text).replace(f"{old}/", f"{new}/"))


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_classifier(tmp_path, kind):
    old, new, run = tmp_path / "old", tmp_path / "new", tmp_path / "run"
    write_pictures(old, 6)
    if kind == "csv":
        rows = [f"{path.relative_to(old)},{path.parent.name}" for path in sorted(old.rglob("*.png"))]
        (old / "labels.csv").write_text("\n".join(["path,label", *rows]))
    place = "labels.csv" if kind == "csv" else ""
    first = finetune("random:test_resnet", str(old / place), out=str(run), **COMMON)
    before = split(run)
    old.rename(new)
    assert main(["finetune", "--resume", str(run), "--data", str(new / place)]) == 0
    again = finetune(resume=str(run))
    assert (again.loss, again.recall) == (first.loss, first.recall)
    assert split(run) == moved(before, old, new) and f"data: {new / place}\n" in (run / "config.yaml").read_text()
    path = new / "red" / "3.png"
    Image.new("RGB", (40, 40)).save(path)
    new.rename(old)
    with pytest.raises(DataError, match="1 of the 18 pictures of the run are others"):
        finetune(resume=str(run), data=str(old / place))


@pytest.fixture
def annotated(tmp_path):
    rng = np.random.default_rng(0)
    images, things = [], []
    for i in range(8):
        for folder in ("old/p/a", "old/m/a"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "old" / "p" / "a" / f"{i}.png")
        Image.fromarray(pixels[..., 0] // 128 * 255).save(tmp_path / "old" / "m" / "a" / f"{i}.png")
        images.append({"id": i, "file_name": f"a/{i}.png"})
        things.append({"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 20, 20]})
    content = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "old" / "coco.json").write_text(json.dumps(content))
    return tmp_path


def test_a_segmenter(annotated):
    old, new, run = annotated / "old", annotated / "new", annotated / "run"
    places = {"images": str(old / "p"), "masks": str(old / "m")}
    first = segment("random:test_resnet", **places, val_share=0.4, out=str(run), **COMMON)
    before = split(run)
    shutil.move(old, new)
    assert main(["segment", "--resume", str(run), "--images", str(new / "p"), "--masks", str(new / "m")]) == 0
    assert json.loads((run / "results.json").read_text())["iou"] == first.iou
    assert split(run) == moved(before, old, new) and segment(resume=str(run)).iou == first.iou


@pytest.mark.usefixtures("small_heads")
def test_a_detector(annotated, monkeypatch):
    old, new, run = annotated / "old", annotated / "new", annotated / "run"
    monkeypatch.chdir(annotated)  # its pictures are kept as they were named
    options = {"train": "old/coco.json", "val": "old/coco.json", "images": "old/p"}
    first = detect("random:test_resnet", **options, out=str(run), **COMMON)
    before = split(run)
    assert all(path.startswith("old/p/a/") for path in before["train"])
    shutil.move(old, new)
    moves = {"train": str(new / "coco.json"), "val": "new/coco.json", "images": f"{new}/p/"}
    again = detect(resume=str(run), **moves)
    assert again.ap == first.ap and split(run) == moved(before, "old", new)
    config = (run / "config.yaml").read_text()
    assert f"train: {new}/coco.json\nval: new/coco.json\nimages: {new}/p/\n" in config


def test_a_comparison(tmp_path, monkeypatch):
    """Stopped in the second run of a pair and moved twice, its figures are those of one left alone."""
    old, new, out = tmp_path / "old", tmp_path / "new", tmp_path / "out"
    write_pictures(old, 4)
    options = {"seeds": 1, "fractions": [1.0], "size": 32, "batch_size": 4, "epochs": 1, "workers": 0}
    options |= {"settings": {"precision": "fp32", "mixup": 0}, "device": "cpu"}
    pairs, difference = [], compare.difference

    def noting(ours, theirs, gains):
        pairs.append([sorted(by_picture.values()) for by_picture in gains])
        return difference(ours, theirs, gains)

    monkeypatch.setattr(compare, "difference", noting)
    alone = compare.compare("random:test_resnet", str(old), out=str(tmp_path / "alone"), **options)

    begun, start = [], ClassifyModule.on_train_epoch_start

    def stop_the_second(module):
        begun.append(module)
        if len(begun) == 2:
            raise ConnectionAbortedError
        start(module)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ClassifyModule, "on_train_epoch_start", stop_the_second)
        with pytest.raises(ConnectionAbortedError):
            compare.compare("random:test_resnet", str(old), out=str(out), **options)
    old.rename(tmp_path / "between")
    move(out, str(tmp_path / "between"))
    (tmp_path / "between").rename(new)
    assert main(["compare", "--resume", str(out), "--data", str(new)]) == 0
    again = compare.compare(resume=str(out))
    assert str(again) == str(alone).replace(str(tmp_path / "alone"), str(out))
    assert len(pairs[0][0]) == alone.pictures and pairs == pairs[:1] * 3
    assert f"data: {new}\n" in (out / "compare.yaml").read_text()
