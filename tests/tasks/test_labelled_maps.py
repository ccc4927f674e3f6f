"""Mask files: which belongs to which picture, what their values are, and which classes count."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

from convspark.data import Split
from convspark.errors import DataError
from convspark.tasks.segmentation.data import IGNORED, read_label_maps, read_maps_again
from convspark.tasks.segmentation.network import overlap, pixel_counts


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, values in files.items():
        Image.fromarray(np.asarray(values, dtype=np.uint8)).save(folder / f"{name}.png")
    return str(folder)


def test_masks_are_read_by_their_values(tmp_path):
    pictures = write(tmp_path / "p", a=np.zeros((4, 4, 3)), b=np.zeros((4, 4, 3)))
    many = write(tmp_path / "m", a=[[0, 1, 2, 255]] * 4, b=[[0] * 4] * 4)
    maps = read_label_maps(pictures, many)
    assert maps.classes == ["background", "class 1", "class 2"]
    assert maps.label_map(0)[0].tolist() == [0, 1, 2, IGNORED]
    binary = read_label_maps(pictures, write(tmp_path / "n", a=[[0, 255, 0, 255]] * 4, b=[[0] * 4] * 4))
    assert binary.classes == ["background", "class 1"] and binary.label_map(0)[0].tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match=r"has value 1, value 2, which the masks trained on do not have"):
        read_label_maps(pictures, many, binary)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"a": [[0, 1]] * 2}, "1 of the 2 pictures .* have no mask"),
        ({"a": [[0, 1]] * 2, "b": [[0, 1, 1]] * 2}, "has 3x2 pixels, its picture 2x2"),
        ({"a": [[0, 0]] * 2, "b": [[0, 0]] * 2}, "are empty"),
        ({"a": [[1, 1]] * 2, "b": [[1, 1]] * 2}, "single class"),
        ({"a": [[0, 217]] * 2, "b": [[3, 4]] * 2}, "have 4 values up to 217"),
        ({"a": [[0, 50]] * 2, "b": [[100, 150]] * 2}, "have 4 values up to 150: expected .* 0, 1, 2"),
        ({"a": np.zeros((2, 2, 3)), "b": [[0, 1]] * 2}, "mode RGB: expected 8-bit grey or a palette"),
    ],
)
def test_bad_masks_are_told_apart(tmp_path, masks, message):
    pictures = write(tmp_path / "p", a=np.zeros((2, 2, 3)), b=np.zeros((2, 2, 3)))
    with pytest.raises(DataError, match=message):
        read_label_maps(pictures, write(tmp_path / "m", **masks))


def paint(root, **values):
    """Grey pictures `a__0=5` as a/0.png, all pixels of that value but a corner of 0."""
    for name, value in values.items():
        file = root / f"{name.replace('__', '/')}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((4, 4), value, dtype=np.uint8)
        pixels[0, 0] = 0
        Image.fromarray(pixels).save(file)
    return str(root)


def test_masks_lie_where_their_pictures_lie(tmp_path):
    pictures = paint(tmp_path / "p", a__0=9, b__0=9, c__0=9)
    masks = paint(tmp_path / "m", a__0=1, b__0=2, c__0=3)
    maps = read_label_maps(pictures, masks)
    assert [path[-7:] for path in maps.pictures] == ["a/0.png", "b/0.png", "c/0.png"]
    assert [int(maps.label_map(i)[1, 1]) for i in range(3)] == [1, 2, 3]
    (tmp_path / "m" / "a" / "0.png").rename(tmp_path / "m" / "a" / "1.png")
    with pytest.raises(DataError, match=r"1 of the 3 pictures .*p/a/0.png; .*m/a/0.png, and not .*m/[bc]/0.png"):
        read_label_maps(pictures, masks)


@pytest.mark.parametrize("twin", ["p", "m"])
def test_pictures_that_differ_by_their_suffix_are_refused(tmp_path, twin):
    pictures, masks = paint(tmp_path / "p", a=9, b=9), paint(tmp_path / "m", a=1, b=2)
    Image.new("L", (4, 4)).save(tmp_path / twin / "a.tif")
    with pytest.raises(DataError, match=r"a\.(png|tif) and .*a\.(tif|png) differ by nothing but their suffix"):
        read_label_maps(pictures, masks)


def test_classes_that_no_mask_holds_are_neither_named_nor_counted(tmp_path):
    pictures = paint(tmp_path / "p", a=9, b=9, c=9, d=9)
    masks = paint(tmp_path / "m", a=1, b=3, c=4, d=4)
    every = read_label_maps(pictures, masks)
    assert every.classes == ["background", "class 1", "class 3", "class 4"]
    a, _, c, d = every.pictures
    trained, measured = every.split([a, c], [d])
    assert trained.classes == measured.classes == ["background", "class 1", "class 4"]
    assert trained.label_map(1)[1, 1] == 2 and measured.label_map(0)[1, 1] == 2
    predicted = np.where(measured.label_map(0) == 2, 2, 0)
    predicted[3, 3] = 0
    scores = overlap(pixel_counts(measured.label_map(0), predicted, 3))
    truth = np.asarray(Image.open(tmp_path / "m" / "d.png"))
    values = np.array([0, 1, 4])[predicted]
    assert scores["iou"] == pytest.approx(jaccard_score(truth.ravel(), values.ravel(), average="macro"))


def test_pixels_of_a_class_that_is_not_trained_on_do_not_count(tmp_path, caplog):
    pictures, masks = paint(tmp_path / "p", a=9, b=9, c=9), paint(tmp_path / "m", a=1, b=2, c=3)
    every = read_label_maps(pictures, masks)
    a, b, c = every.pictures
    trained, measured = every.split([a, b], [c])
    assert measured.classes == trained.classes == ["background", "class 1", "class 2"]
    assert (measured.label_map(0)[1:, 1:] == IGNORED).all() and measured.label_map(0)[0, 0] == 0
    assert "No picture to train on shows class 3" in caplog.text
    Image.new("L", (4, 4)).save(tmp_path / "m" / "a.png")
    with pytest.raises(DataError, match="a single class, background"):
        read_label_maps(pictures, masks).split([a], [c])


def test_categories_without_objects_are_no_classes(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]

    def coco(name, *categories):
        things = [
            {"id": i, "image_id": 1, "category_id": category, "bbox": [1, 1, 4, 4], "segmentation": square}
            for i, category in enumerate(categories)
        ]
        names = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "emu"}]
        content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": things, "categories": names}
        (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path / name)

    trained = read_label_maps(str(tmp_path), coco("train.json", 1, 3))
    assert trained.classes == ["background", "dog", "emu"] and trained.label_map(0)[2, 2] == 2
    val = read_label_maps(str(tmp_path), coco("val.json", 1), trained)
    assert val.classes == trained.classes and val.label_map(0)[2, 2] == 1
    with pytest.raises(DataError, match=r"val.json has cat, which the masks trained on do not have"):
        read_label_maps(str(tmp_path), coco("val.json", 2), trained)


def test_a_damaged_picture_is_left_out_of_what_is_measured(tmp_path, caplog):
    pictures, masks = paint(tmp_path / "p", a=9, b=9, c=9), paint(tmp_path / "m", a=1, b=2, c=3)
    content = bytearray((tmp_path / "p" / "b.png").read_bytes())
    content[content.index(b"IDAT") + 8] ^= 255  # in its midst, where its end tells nothing
    (tmp_path / "p" / "b.png").write_bytes(content)
    maps = read_label_maps(pictures, masks)
    assert len(maps) == 3
    assert [path[-5] for path in maps.whole().pictures] == ["a", "c"] and "b.png: damaged" in caplog.text


def test_a_class_that_is_called_background_is_the_background(tmp_path):
    pictures = [paint(tmp_path / "p", **{f"{name}": 9}) + f"/{name}.png" for name in "abcd"]
    corners = {"background": [0, 0, 2, 0, 2, 4, 0, 4], "cell": [2, 0, 4, 0, 4, 2, 2, 2]}
    content = {
        "images": [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate("abcd")],
        "categories": [{"id": i, "name": name} for i, name in enumerate(corners)],
        "annotations": [
            {"image_id": i, "category_id": k, "segmentation": [polygon]}
            for i in range(4)
            for k, polygon in enumerate(corners.values())
            if i < 3 or k  # no object of it in the last picture
        ],
    }
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(content))
    truth = np.zeros((4, 4), dtype=np.uint8)
    truth[:2, 2:] = 1  # the cell's square
    every = read_label_maps(str(tmp_path / "p"), str(file))
    trained, measured = every.split(pictures[3:], pictures[:3])
    again = read_maps_again(
        str(tmp_path / "p"), str(file), Split(pictures[3:], pictures[:3], classes=trained.classes), pictures
    )
    for maps in (every, trained, measured, again, read_label_maps(str(tmp_path / "p"), str(file), trained)):
        assert maps.classes == ["background", "cell"]
        assert all(np.array_equal(maps.label_map(i), truth) for i in range(len(maps)))
