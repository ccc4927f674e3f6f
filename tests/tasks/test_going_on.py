"""A run that goes on after a picture was deleted, and measured pictures that are damaged."""

import csv
from pathlib import Path

import numpy as np
import pytest
from labelled_pictures import write_pictures
from PIL import Image

from convspark.errors import DataError
from convspark.tasks.classification.command import finetune
from convspark.tasks.classification.data import read_labelled
from convspark.tasks.comparison import command as compare
from convspark.tasks.segmentation.command import segment

COMMON = {"device": "cpu", "precision": "fp32", "workers": 0, "epochs": 1, "val_share": 0.4}


def damage(path: str | Path) -> None:
    """In the midst of a PNG file, where its end tells nothing."""
    content = bytearray(Path(path).read_bytes())
    content[content.index(b"IDAT") + 30] ^= 255
    Path(path).write_bytes(content)


def test_a_classifier_goes_on_with_the_pictures_that_it_had(tmp_path, caplog):
    data = write_pictures(tmp_path / "data", 8)
    run = str(tmp_path / "run")
    first = finetune("random:test_resnet", str(data), size=32, batch_size=4, out=run, **COMMON)
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
    ) and "1 pictures of the run are no longer" in caplog.text


def test_a_segmenter_goes_on_with_the_pictures_that_it_had(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("p", "m"):
        (tmp_path / folder).mkdir()
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "p" / f"{i}.png")
        Image.fromarray(rng.integers(0, 2, (32, 32), dtype=np.uint8) * 255).save(tmp_path / "m" / f"{i}.png")
    places = {"images": str(tmp_path / "p"), "masks": str(tmp_path / "m")}
    run = str(tmp_path / "run")
    first = segment("random:test_resnet", **places, size=32, batch_size=2, out=run, **COMMON)
    assert first.pictures == 4
    text = (tmp_path / "run" / "split.json").read_text()
    trained = next(i for i in range(10) if f"{i}.png" in text[: text.index('"val"')])
    for folder in ("p", "m"):
        (tmp_path / folder / f"{trained}.png").unlink()
    again = segment(resume=run)
    assert (again.pictures, again.iou, again.steps) == (4, first.iou, first.steps)


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
    job = compare._Job("random", "random:test_resnet", None, 1.0, 3, 1, 24, tmp_path / "out" / "random-1-seed3")
    job.folder.parent.mkdir()
    asked = compare.CompareSettings(data=str(data), settings={"val_share": 0.4})
    drawn = read_labelled(str(data), 0.4, seed=3)
    first = read_labelled(compare._data_of(job, asked))
    assert (first.train, first.val) == (drawn.train, drawn.val)
    Image.new("RGB", (40, 40)).save(data / "blue" / "new.png")
    assert read_labelled(compare._data_of(job, asked)) == first
    Path(first.train[0][0]).unlink()
    with pytest.raises(DataError, match=r"1 of the 24 pictures .*data-seed3.csv.* do not exist"):
        read_labelled(compare._data_of(job, asked))


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
