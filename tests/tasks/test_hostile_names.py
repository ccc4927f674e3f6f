"""Classes and files of any name: what was trained is kept, and said in letters that any terminal shows."""

import json
import os

import numpy as np
import pytest
from labelled_pictures import write_pictures
from PIL import Image

from convspark.cli.main import main
from convspark.errors import DataError
from convspark.tasks.classification import train as classifying
from convspark.tasks.classification.command import finetune
from convspark.tasks.classification.data import read_labelled
from convspark.tasks.classification.settings import read_result
from convspark.tasks.comparison.command import compare
from convspark.tasks.segmentation.data import read_label_maps

pytestmark = pytest.mark.robust("hostile input")

NAMES = ["a$$b", "$x_1$", "<b>m", "\x1b[31mred", "new\nline", "_under", "中\u2028", os.fsdecode(b"\xff\xfe")]
QUICK = "--size 32 --batch-size 4 --epochs 1 --workers 0 --device cpu --precision fp32".split()
COMMON = {"size": 32, "batch_size": 4, "epochs": 1, "workers": 0, "device": "cpu", "precision": "fp32"}


def said_nothing_hostile(capsys):
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        text.encode()
        assert "\x1b" not in text and "\u2028" not in text and "Traceback" not in text
    return captured.out + captured.err


def test_finetune(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in NAMES:
        for part, count in (("train", 2), ("val", 1)):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{i}\n.png")
    out = tmp_path / "run"
    assert main(["finetune", "random:test_resnet", str(tmp_path / "data"), "--out", str(out), *QUICK]) == 0
    assert r"\x1b[31mred" in said_nothing_hostile(capsys)
    result = read_result(out)
    assert result is not None and list(result.recall) == sorted(NAMES)
    assert json.loads((out / "export" / "config.json").read_text())["label_names"] == sorted(NAMES)
    assert (out / "confusion.png").is_file() and "\x1b" not in (out / "export" / "README.md").read_text()
    assert main(["finetune", "--resume", str(out)]) == 0  # its lists and classes come back
    assert read_result(out) is not None and "no longer there" not in said_nothing_hostile(capsys)
    names = [f"random:test_resnet {tmp_path}/data --out {tmp_path}/compared".split()]
    assert main(["compare", *names[0], "--seeds", "1", "--epochs", "1", "--device", "cpu"]) == 3
    assert r"\udcff\udcfe' have names that are no UTF-8" in said_nothing_hostile(capsys)
    assert not (tmp_path / "compared").exists()


@pytest.mark.usefixtures("small_heads")
@pytest.mark.parametrize("command", ["detect", "segment"])
def test_annotated_pictures(tmp_path, capsys, command):
    names = [*NAMES[:-1], "lone\ud800", "n" * 5000]
    rng = np.random.default_rng(0)
    images, things = [], []
    for i, _ in enumerate(names):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"$a$$\n{i}.png")
        images.append({"id": i, "file_name": f"$a$$\n{i}.png"})
        polygon = [5, 5, 30, 5, 30, 30, 5, 30]
        box = {"bbox": [5, 5, 25, 25], "segmentation": [polygon]}
        things.append({"id": i, "image_id": i, "category_id": i + 1, **box})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    content = {"images": images, "annotations": things, "categories": categories}
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(content))
    out = tmp_path / "run"
    places = (
        ["--train", str(file), "--val", str(file), "--images", str(tmp_path)]
        if command == "detect"
        else ["--images", str(tmp_path), "--masks", str(file), "--val-images", str(tmp_path), "--val-masks", str(file)]
    )
    assert main([command, "random:test_resnet", *places, "--out", str(out), *QUICK]) == 0
    assert "\\x1b[31mred" in said_nothing_hostile(capsys)
    result = json.loads((out / "results.json").read_text())
    assert list(result["by_class" if command == "detect" else "iou_by_class"])[-len(names) :] == names
    assert (out / "pictures" / "predictions.png").is_file()


def test_a_picture_that_cannot_be_drawn_costs_nothing_of_what_was_trained(tmp_path, monkeypatch, caplog):
    def fail(*_args):
        raise ValueError("no such formula")

    monkeypatch.setattr(classifying, "confusion_matrix", fail)
    out = tmp_path / "run"
    data = str(write_pictures(tmp_path / "data", 4))
    result = finetune("random:test_resnet", data, out=str(out), val_share=0.5, **COMMON)
    assert read_result(out) == result and (out / "export" / "model.safetensors").is_file()
    assert "could not be drawn (ValueError: no such formula)" in caplog.text


def test_blanks_around_a_path_in_a_csv_are_its_own_where_there_is_such_a_file(tmp_path):
    data = write_pictures(tmp_path / "data", 4)
    for name in (" blank .png", "line\r.png", "feed\x0c.png", "nel\x85.png", "end.png\u2028", "a,b.png"):
        (data / "red" / "0.png").rename(data / "red" / name)
        (data / "red" / "0.png").write_bytes((data / "red" / "1.png").read_bytes())
    labelled = read_labelled(str(data), 0.5)
    (tmp_path / "all.csv").write_bytes(os.fsencode(labelled.as_csv()))
    again = read_labelled(str(tmp_path / "all.csv"))
    assert (again.classes, again.train, again.val) == (labelled.classes, labelled.train, labelled.val)
    (tmp_path / "data.csv").write_text("path , label\n data/red/1.png , red\n data/blue/1.png,blue\n")
    with pytest.raises(DataError, match="a single picture"):
        read_labelled(str(tmp_path / "data.csv"))


def test_classes_that_a_csv_cannot_hold_are_refused_by_a_comparison(tmp_path):
    data = write_pictures(tmp_path / "data", 4)
    (data / "red").rename(data / " red")
    with pytest.raises(DataError, match="the classes ' red' have names"):
        compare("random:test_resnet", str(data), out=str(tmp_path / "out"), seeds=1, epochs=1)
    assert not (tmp_path / "out").exists()


def test_a_pipe_among_the_masks_is_not_waited_for(tmp_path):
    for folder in ("p", "m"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "p" / "a.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "m" / "a.png").symlink_to(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"a.png cannot be read .a pipe"):
        read_label_maps(str(tmp_path / "p"), str(tmp_path / "m"))
