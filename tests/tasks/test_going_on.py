"""A run that goes on after a picture was deleted, and measured pictures that are damaged."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from labelled_pictures import write_pictures
from PIL import Image
from safetensors.torch import load_file

from convspark.data import Split
from convspark.errors import DataError
from convspark.runs import callbacks
from convspark.tasks import defaults
from convspark.tasks.classification.augment import FinetuneTransform, LabelledImages
from convspark.tasks.classification.command import finetune
from convspark.tasks.classification.data import GONE, read_again, read_labelled
from convspark.tasks.comparison import command as compare
from convspark.tasks.detection import train as detecting
from convspark.tasks.detection.command import detect
from convspark.tasks.detection.network import DetectModule
from convspark.tasks.segmentation.command import segment
from convspark.tasks.segmentation.data import IGNORED, read_maps_again

COMMON = {"device": "cpu", "precision": "fp32", "workers": 0, "epochs": 1}
SHARE = {"val_share": 0.4}


def damage(path: str | Path) -> None:
    """In the midst of a PNG file, where its end tells nothing."""
    content = bytearray(Path(path).read_bytes())
    content[content.index(b"IDAT") + 30] ^= 255
    Path(path).write_bytes(content)


def test_a_classifier_goes_on_with_the_pictures_that_it_had(tmp_path, caplog):
    data = write_pictures(tmp_path / "data", 8)
    run = str(tmp_path / "run")
    first = finetune("random:test_resnet", str(data), size=32, batch_size=4, out=run, **COMMON, **SHARE)
    with (tmp_path / "run" / "predictions.csv").open() as file:
        measured = [row["path"] for row in csv.DictReader(file)]
    trained = next(path for path in map(str, sorted((data / "blue").iterdir())) if path not in measured)
    Path(trained).unlink()
    assert {path for path, _ in read_labelled(str(data), 0.4).val} - set(measured)  # a new draw would be another
    again = finetune(resume=run)
    with (tmp_path / "run" / "predictions.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == measured
    assert (again.loss, again.steps) == (
        first.loss,
        first.steps,
    ) and "1 of the 15 pictures that the run trains on are no longer there" in caplog.text


def test_a_segmenter_goes_on_with_the_pictures_that_it_had(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("p", "m"):
        (tmp_path / folder).mkdir()
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "p" / f"{i}.png")
        Image.fromarray(rng.integers(0, 2, (32, 32), dtype=np.uint8) * 255).save(tmp_path / "m" / f"{i}.png")
    places = {"images": str(tmp_path / "p"), "masks": str(tmp_path / "m")}
    run = str(tmp_path / "run")
    first = segment("random:test_resnet", **places, size=32, batch_size=2, out=run, **COMMON, **SHARE)
    assert first.pictures == 4
    text = (tmp_path / "run" / "split.json").read_text()
    trained = next(i for i in range(10) if f"{i}.png" in text[: text.index('"val"')])
    for folder in ("p", "m"):
        (tmp_path / folder / f"{trained}.png").unlink()
    again = segment(resume=run)
    assert (again.pictures, again.iou, again.steps) == (4, first.iou, first.steps)


def stopped(monkeypatch, step, command, *args, **kwargs):
    """Carry a command out until after its checkpoint of that step, as if it were killed there."""
    save = callbacks.Checkpoints._save

    def save_and_stop(self, trainer, module, name=None):
        save(self, trainer, module, name)
        if trainer.global_step == step:
            raise ConnectionAbortedError

    with monkeypatch.context() as patched:
        patched.setattr(callbacks.Checkpoints, "_save", save_and_stop)
        with pytest.raises(ConnectionAbortedError):
            command(*args, **(COMMON | {"epochs": 3, "checkpoint_minutes": 1e-9} | kwargs))


def test_statistics_that_are_kept_are_kept_in_an_epoch_that_goes_on(tmp_path, monkeypatch):
    data, weights, run = write_pictures(tmp_path / "data", 4), tmp_path / "weights.pth", tmp_path / "run"
    before = timm.create_model("test_resnet", num_classes=0).state_dict()
    torch.save(before, weights)
    options = {"model": "test_resnet", "size": 32, "batch_size": 2, "epochs": 1, "out": str(run)}
    stopped(monkeypatch, 2, finetune, str(weights), str(data), **options, **SHARE)  # of 3 steps
    finetune(resume=str(run))
    after = load_file(run / "export" / "model.safetensors")
    statistics = [name for name in before if "running" in name]
    assert statistics and all(torch.equal(after[name], before[name]) for name in statistics)


def labels_by_folder(rows):
    return all(Path(row["path"]).parent.name == row["label"] for row in rows)


@pytest.mark.parametrize("folders", ["kept", pytest.param("removed", marks=pytest.mark.slow)])
def test_a_classifier_keeps_its_classes_and_takes_no_others(tmp_path, monkeypatch, caplog, folders):
    data = write_pictures(tmp_path / "data", 8)
    for i in range(2, 8):
        (data / "green" / f"{i}.png").unlink()  # one to train on, one to validate with
    run = tmp_path / "run"
    stopped(monkeypatch, 3, finetune, "random:resnet10t", str(data), size=32, batch_size=4, out=str(run), **SHARE)
    kept = json.loads((run / "split.json").read_text())
    assert kept["classes"] == ["blue", "green", "red"] and len(kept["val"]) == 7
    red = next(path for path in kept["val"] if "red" in path)
    for path in [*map(str, (data / "green").iterdir()), red]:
        Path(path).unlink()
    if folders == "removed":
        (data / "green").rmdir()
    (data / "amber").mkdir()
    Image.new("RGB", (40, 40)).save(data / "amber" / "0.png")
    result = finetune(resume=str(run))
    messages = (
        "no class 'amber'",
        "1 of the 11 pictures that the run trains",
        "2 of the 7 pictures that the run validates",
    )
    assert all(message in caplog.text for message in messages)
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert result.steps == 9 and [row["path"] for row in rows] == [
        path for path in kept["val"] if "green" not in path and path != red
    ]
    assert labels_by_folder(rows) and {row["label"] for row in rows} == {"blue", "red"}
    assert json.loads((run / "export" / "config.json").read_text())["label_names"] == kept["classes"]
    again = read_again(str(data), Split.kept_in(str(run)))
    folder = {path: Path(path).parent.name for path, _ in again.train}
    assert {(folder[path], label) for path, label in again.train} == {("blue", 0), ("green", GONE), ("red", 2)}
    examples = LabelledImages(again.train, FinetuneTransform(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3))
    gone = [place for place, (_, label) in enumerate(again.train) if label == GONE]
    assert {examples[(epoch, gone[0])][1] for epoch in range(20)} == {0, 2} and not examples.bad_files()


def labelled_maps(root, masks):
    """Grey pictures and their masks, each a corner of 0 and else one value."""
    for folder in ("p", "m"):
        (root / folder).mkdir(parents=True)
    for name, value in masks.items():
        for folder, pixel in (("p", 40 * value % 256), ("m", value)):
            pixels = np.full((32, 32), pixel, dtype=np.uint8)
            pixels[:8] = 0
            Image.fromarray(pixels).save(root / folder / f"{name}.png")
    return str(root / "p"), str(root / "m")


def remove(root, name):
    for folder in ("p", "m"):
        (root / folder / f"{name}.png").unlink()


@pytest.mark.parametrize("explicit", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_segmenter_keeps_its_classes(tmp_path, monkeypatch, caplog, explicit):
    images, masks = labelled_maps(tmp_path / "t", {str(i): 1 + i % 3 for i in range(12)})
    options = {"size": 32, "batch_size": 2, "val_share": 0.25, "out": str(tmp_path / "run")}
    if explicit:
        val = labelled_maps(tmp_path / "v", {"0": 1, "1": 2, "2": 3})
        options |= dict(zip(("val_images", "val_masks"), val, strict=True))
    stopped(monkeypatch, 5, segment, "random:resnet10t", images=images, masks=masks, **options)
    kept = json.loads((tmp_path / "run" / "split.json").read_text())
    assert (kept["classes"], kept["values"]) == (["background", "class 1", "class 2", "class 3"], [0, 1, 2, 3])
    value = {path: np.asarray(Image.open(path.replace("/p/", "/m/"))).max() for path in [*kept["train"], *kept["val"]]}
    first = next(path for path in kept["train"] if value[path] == 1)
    for path in kept["train"]:
        if value[path] == 1 and path != first:  # all others show another class: with its only picture the class is gone
            Image.fromarray(np.full((32, 32), 2, dtype=np.uint8)).save(path.replace("/p/", "/m/"))
    remove(tmp_path / "t", Path(first).stem)
    remove(tmp_path / ("v" if explicit else "t"), Path(kept["val"][0]).stem)
    labelled_maps(tmp_path / "new", {"0": 7})
    for folder in ("p", "m"):
        (tmp_path / "new" / folder / "0.png").rename(tmp_path / "t" / folder / "new.png")
    result = segment(resume=str(tmp_path / "run"))
    assert list(result.iou_by_class) == kept["classes"] and result.pictures == 2
    assert result.steps == (18 if explicit else 15)
    assert torch.load(tmp_path / "run" / "segmenter.pth")["model"]["head.3.weight"].shape[0] == 4
    assert "1 of the 3 pictures that the run validates with" in caplog.text
    assert f"are not of the run, and left out: {images}/new.png" in caplog.text


def test_masks_of_a_run_mean_what_they_meant(tmp_path, caplog):
    images, masks = labelled_maps(tmp_path, {"a": 1, "b": 255, "c": 255, "d": 4})
    a, b, c, d = (f"{images}/{name}.png" for name in "abcd")
    two = Split([a, b], [c], classes=["background", "class 1"], values=[0, 1])  # where 255 does not count
    maps = read_maps_again(images, masks, two, [b, c])
    assert maps.label_map(0)[0, 0] == 0 and maps.label_map(0)[31, 31] == IGNORED and "no classes" not in caplog.text
    binary = replace(two, values=[0, 255])
    assert read_maps_again(images, masks, binary, [b, c]).label_map(1)[31, 31] == 1 and "no classes" not in caplog.text
    assert read_maps_again(images, masks, binary, [b, d]).label_map(1)[31, 31] == IGNORED
    assert "has value 4, no classes of the run" in caplog.text
    remove(tmp_path, "b")
    partly = read_maps_again(images, masks, two, [a, b]).part([a, b])
    assert partly.gone == [1] and partly.pictures == [a, b]
    with pytest.raises(DataError, match="none of the run's pictures is left"):
        read_maps_again(images, masks, two, [b])


def boxes(root, names, kinds=("cat",), new=()):
    """COCO file of pictures with a box each, of classes in turn."""
    root.mkdir(exist_ok=True)
    for name in names:
        Image.fromarray(np.full((48, 48, 3), 90, dtype=np.uint8)).save(root / f"{name}.png")
    content = {
        "images": [{"id": name, "file_name": f"{name}.png"} for name in names],
        "annotations": [
            {"image_id": name, "category_id": kinds[i % len(kinds)], "bbox": [4, 4, 20 + i, 20]}
            for i, name in enumerate(names)
        ],
        "categories": [{"id": kind, "name": kind} for kind in sorted({*new, *kinds})],
    }
    (root / "boxes.json").write_text(json.dumps(content))
    return str(root / "boxes.json")


@pytest.mark.usefixtures("small_heads")
def test_a_detector_keeps_its_pictures_classes_and_anchors(tmp_path, monkeypatch, caplog):
    names = [f"t{i}" for i in range(8)]
    train, val = boxes(tmp_path / "t", names, ("cat", "emu")), boxes(tmp_path / "v", ["a", "b", "c"])
    places = {"train": train, "val": val, "images": str(tmp_path / "t"), "val_images": str(tmp_path / "v")}
    options = {"size": 32, "batch_size": 4, "epochs": 2, "out": str(tmp_path / "run")}
    anchors = []

    class Watched(DetectModule):
        def on_train_start(self):
            anchors.append((self.network.rpn.anchor_generator.sizes, self.network.roi_heads.detections_per_img))

    monkeypatch.setattr(detecting, "DetectModule", Watched)
    stopped(monkeypatch, 1, detect, "random:resnet10t", **places, **options)
    kept = json.loads((tmp_path / "run" / "split.json").read_text())
    assert kept["classes"] == ["cat", "emu"] and len(kept["train"]) == 8 and len(kept["val"]) == 3
    (tmp_path / "v" / "a.png").unlink()
    damage(tmp_path / "v" / "b.png")
    # Another one is no longer annotated; there are classes that sort first, one of them without an object.
    boxes(tmp_path / "t", [*names[1:], "t9"], ("ant", "cat"), new=("bat",))
    (tmp_path / "t" / "t1.png").unlink()
    result = detect(resume=str(tmp_path / "run"))
    assert list(result.by_class) == ["cat", "emu"] and result.pictures == 1
    messages = (
        "2 of the 8 pictures that the run trains on",
        "1 of the 3 pictures that the run validates with",
        "b.png: dam",
    )
    assert all(message in caplog.text for message in messages)
    assert "has ant, no classes of the run" in caplog.text and "t/t9.png" in caplog.text
    assert len(anchors) == 2 and anchors[0] == anchors[1]


def test_a_picture_that_a_csv_no_longer_names_is_not_trained_on(tmp_path, caplog):
    data = write_pictures(tmp_path, 4)
    rows = [f"{name}/{i}.png,{name}" for name in ("blue", "green", "red") for i in range(4)]
    table = data / "labels.csv"
    table.write_text("path,label\n" + "\n".join(rows))
    split = read_labelled(str(table), 0.25).split
    table.write_text("path,label\n" + "\n".join(row for row in rows if split.train[-1] != str(data / row[:-4])))
    again = read_again(str(table), split)  # the picture of red is there, but what it shows is no longer told
    assert again.train == [(path, again.classes.index(Path(path).parent.name)) for path in split.train[:-1]] + [
        (split.train[-1], GONE)
    ]
    assert "1 of the 9 pictures that the run trains on" in caplog.text
    table.write_text("path,label\n" + "\n".join(rows[:6]))
    with pytest.raises(DataError, match=r"of the 9 pictures that the run trains on .* Put them back"):
        read_again(str(table), split)


def test_runs_that_did_not_keep_their_classes_go_on(tmp_path):
    data = write_pictures(tmp_path, 4)
    first = read_labelled(str(data), 0.25)
    again = read_again(str(data), replace(first.split, classes=[]))
    assert again == first


def test_damaged_pictures_are_left_out_before_they_are_measured_with(tmp_path, caplog):
    for part, count in (("train", 4), ("val", 3), ("test", 3)):
        write_pictures(tmp_path / part, count)
    for part in ("train", "val", "test"):
        damage(tmp_path / part / "red" / "1.png")
    data = read_labelled(str(tmp_path))
    assert [len(part) for part in (data.train, data.val, data.test)] == [12, 8, 8]
    assert not any("red/1.png" in path for path, _ in data.val + data.test)
    assert {path[-13:] for path, _ in data.bad} == {"val/red/1.png", "est/red/1.png"}
    assert "2 of 18 pictures cannot be read" in caplog.text
    probed = read_labelled(str(tmp_path), whole=True)  # whose features have a label each
    assert len(probed.train) == 11 and len(probed.bad) == 3


def test_all_jobs_of_a_comparison_have_the_split_of_the_first(tmp_path):
    data = write_pictures(tmp_path / "data", 8)
    job = compare._Job("random", "random:test_resnet", None, 1.0, 3, 1, tmp_path / "out" / "random-1-seed3")
    job.folder.parent.mkdir()
    asked = compare.CompareSettings("random:test_resnet", str(data), settings={"val_share": 0.4})
    drawn = read_labelled(str(data), 0.4, seed=3)
    first = read_labelled(compare._data_of(job, asked))
    assert (first.train, first.val) == (drawn.train, drawn.val)
    Image.new("RGB", (40, 40)).save(data / "blue" / "new.png")
    assert read_labelled(compare._data_of(job, asked)) == first
    Path(first.train[0][0]).unlink()
    with pytest.raises(DataError, match=r"1 of the 24 pictures .*data-seed3.csv.* do not exist"):
        read_labelled(compare._data_of(job, asked))


@pytest.mark.slow
def test_a_comparison_goes_on_with_the_pictures_classes_and_epochs_that_it_had(tmp_path):
    data, out = tmp_path / "data", str(tmp_path / "out")
    for part in ("train", "val"):
        write_pictures(data / part, 4)
    options = {"seeds": 1, "fractions": [0.5, 1.0], "size": 32, "batch_size": 4, "workers": 0, "device": "cpu"}
    asked = {"mixup": 0, "precision": "fp32"}
    done, finetune_ = [], compare.finetune

    def once(*args, **kwargs):
        if done:
            raise ConnectionAbortedError
        done.append(kwargs["epochs"])
        return finetune_(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compare, "finetune", once)
        patched.setattr(defaults, "default_epochs", lambda images: images // 6)
        with pytest.raises(ConnectionAbortedError):
            compare.compare("random:resnet10t", str(data), out=out, settings=asked, **options)
    for part in ("train", "val"):
        write_pictures(data / part / "more", 1)
        for picture in (data / part / "more").glob("*/*"):
            picture.rename(data / part / "blue" / f"{picture.parent.name}.png")
        shutil.rmtree(data / part / "more")
        (data / part / "amber").mkdir()
        Image.new("RGB", (40, 40)).save(data / part / "amber" / "0.png")
    report = compare.compare(resume=out)
    assert done == [3] and {score.labels for score in report.scores} == {6, 12} and report.pictures == 12
    runs = list(Path(out).glob("*-seed0"))
    classes = [json.loads((run / "split.json").read_text())["classes"] for run in runs]
    epochs = [json.loads((run / "results.json").read_text())["epochs"] for run in runs]
    assert classes == [["blue", "green", "red"]] * 4 and sorted(epochs) == [2, 2, 3, 3]


def test_labelled_data_comes_back_from_a_csv_in_its_parts(tmp_path):
    data = read_labelled(str(write_pictures(tmp_path / "data", 5)), 0.4, seed=3)
    (tmp_path / "data.csv").write_text(data.as_csv())
    again = read_labelled(str(tmp_path / "data.csv"))
    assert (again.classes, again.train, again.val, again.test) == (data.classes, data.train, data.val, data.test)
    assert again.with_fraction(0.5, 1).train == data.with_fraction(0.5, 1).train


@pytest.mark.parametrize("kind", ["nowhere", "itself"])
def test_a_class_that_is_a_broken_link_is_not_passed_over(tmp_path, kind):
    write_pictures(tmp_path, 2)
    (tmp_path / "yellow").symlink_to("yellow" if kind == "itself" else "nowhere")
    with pytest.raises(DataError, match=r"links that lead nowhere: .*yellow"):
        read_labelled(str(tmp_path))
