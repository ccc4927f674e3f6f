"""Mask files: which belongs to which picture, what their values are, and which classes count."""

import json
import unicodedata

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


def test_jpegs_are_no_masks(tmp_path):
    """They would have classes of their own at the edges of others."""
    pictures = write(tmp_path / "p", a=np.zeros((16, 16, 3)))
    (tmp_path / "m").mkdir()
    Image.fromarray(np.kron([[0, 3], [2, 1]], np.ones((8, 8))).astype(np.uint8)).save(tmp_path / "m" / "a.jpg")
    with pytest.raises(DataError, match=r"m/a\.jpg is a JPEG, which changes values .* such as PNG"):
        read_label_maps(pictures, str(tmp_path / "m"))


def test_what_is_no_mask_is_said_in_words(tmp_path):
    pictures = write(tmp_path / "p", a=np.zeros((2, 2, 3)))
    write(tmp_path / "m", a=[[0, 1]] * 2)
    (tmp_path / "m" / "a.png").write_bytes(b"none")
    with pytest.raises(DataError, match=r"m/a\.png is not a picture that Pillow can read$"):
        read_label_maps(pictures, str(tmp_path / "m"))


@pytest.mark.parametrize("same", [True, False])
def test_palettes_that_do_not_agree_are_told(tmp_path, caplog, same):
    """A palette for each file numbers its colours anew."""
    red, green = [0, 0, 0, 255, 0, 0], [0, 0, 0, 0, 255, 0]
    pictures = write(tmp_path / "p", a=np.zeros((2, 2, 3)), b=np.zeros((2, 2, 3)))
    (tmp_path / "m").mkdir()
    for name, palette in (("a", red), ("b", red if same else green)):
        mask = Image.fromarray(np.array([[0, 1]] * 2, dtype=np.uint8), "P")
        mask.putpalette([*palette, 0, 0, ord(name)])  # what no pixel has does not matter
        mask.save(tmp_path / "m" / f"{name}.png")
    assert read_label_maps(pictures, str(tmp_path / "m")).classes == ["background", "class 1"]
    warned = r"value 1 is (255, 0, 0) in " in caplog.text and "m/a.png and (0, 255, 0) in " in caplog.text
    assert warned != same and "value 0" not in caplog.text


def test_a_class_that_is_written_in_two_ways_is_told(tmp_path, caplog):
    pictures = write(tmp_path / "p", a=np.zeros((2, 2, 3)), b=np.zeros((2, 2, 3)))
    ones = read_label_maps(pictures, write(tmp_path / "m", a=[[0, 1]] * 2, b=[[0, 1], [255, 0]]))
    assert not caplog.text  # here 255 is what does not count
    read_label_maps(pictures, write(tmp_path / "n", a=[[0, 1]] * 2, b=[[0, 255]] * 2))
    assert "1 masks hold 1 and no 255, 1 others 255 and no 1" in caplog.text
    caplog.clear()
    plain = read_label_maps(pictures, write(tmp_path / "m", a=[[0, 1]] * 2, b=[[0, 1]] * 2))
    val = read_label_maps(pictures, write(tmp_path / "v", a=[[0, 255]] * 2, b=[[0, 0]] * 2), plain)
    assert "2 masks hold 1 and no 255, 1 others 255 and no 1" in caplog.text
    val.check_measured()
    assert "to validate with show nothing but background" in caplog.text
    ignored = read_label_maps(pictures, write(tmp_path / "i", a=[[255, 255]] * 2, b=[[255, 255]] * 2), ones)
    with pytest.raises(DataError, match="no pixel of the masks to validate with counts"):
        ignored.check_measured()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_masks_are_turned_as_their_pictures_are(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = np.random.default_rng(0).integers(0, 2, (3, 3), dtype=np.uint8)
    for folder, content in (("p", np.stack([255 * values] * 3, 2)), ("m", values)):
        (tmp_path / folder).mkdir()
        Image.fromarray(content).save(tmp_path / folder / f"a.{suffix}", exif=exif)
    maps = read_label_maps(str(tmp_path / "p"), str(tmp_path / "m"))
    np.testing.assert_array_equal(maps.label_map(0), np.asarray(maps.source.read(0))[..., 0] // 255)


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [9, 9, 39, 29], [0.1, 0.1, 0.5, 0.5], None])
def test_boxes_of_a_coco_file_do_not_matter_where_masks_are_painted(tmp_path, box):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    square = {"segmentation": [[5, 6, 15, 6, 15, 14, 5, 14]], "bbox": box}
    content = {
        "images": [{"id": 0, "file_name": "a.png"}],
        "annotations": [{"id": i, "image_id": 0, "category_id": 0, **square} for i in range(2)],
        "categories": [{"id": 0, "name": "cat"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    expected = np.zeros((30, 40), dtype=np.uint8)
    expected[6:14, 5:15] = 1
    np.testing.assert_array_equal(read_label_maps(str(tmp_path), str(tmp_path / "c.json")).label_map(0), expected)


def test_masks_of_pictures_whose_names_have_accents(tmp_path):
    pictures = write(tmp_path / "p", **{unicodedata.normalize("NFC", "h\u00fctte"): np.zeros((2, 2, 3))})
    masks = write(tmp_path / "m", **{unicodedata.normalize("NFD", "h\u00fctte"): [[0, 1]] * 2})
    assert len(read_label_maps(pictures, masks)) == 1
