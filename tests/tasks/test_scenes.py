"""COCO and VOC annotations, good and bad; what evaluation says, beside pycocotools."""

import contextlib
import io
import json
import os
import unicodedata
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from convspark.errors import DataError, UsageError
from convspark.tasks.detection.data import read_scenes
from convspark.tasks.detection.masks import decode_mask
from convspark.tasks.detection.network import average_precision
from convspark.tasks.detection.train import Detection


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
    return tmp_path


BOX = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [5, 6, 10, 8]}
SQUARE = BOX | {"segmentation": [[5, 6, 15, 6, 15, 14, 5, 14]]}


def coco(folder, annotations=None, **changed):
    things = [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 3,
            "bbox": [5, 6, 10, 8],
            "segmentation": [[5, 6, 15, 6, 15, 14, 5, 14]],
        },
        {"id": 2, "image_id": 8, "category_id": 1, "bbox": [30, 20, 10.5, 5], "iscrowd": 1},
    ]
    content = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
        "annotations": things if annotations is None else annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "bat"}],
        **changed,
    }
    file = folder / "coco.json"
    file.write_text(json.dumps(content))
    return str(file)


def test_coco_boxes_masks_and_crowds(folder):
    scenes = read_scenes(coco(folder), str(folder))
    assert scenes.classes == ["bat", "cat"]
    (first,), (second,) = (scene.things for scene in scenes.scenes)
    assert first.box == (5, 6, 15, 14) and first.label == 2 and not first.crowd
    assert first.mask is None  # polygons are of no use to boxes
    assert second.box == (30, 20, 40, 25) and second.crowd  # cut at the picture's edge
    with pytest.raises(DataError, match=r"annotation 2 of b.png has no mask"):
        read_scenes(coco(folder), str(folder), masks=True)
    (first,) = read_scenes(coco(folder, [SQUARE]), str(folder), masks=True).scenes[0].things
    assert decode_mask(first.mask).sum() == 80 and decode_mask(first.mask)[6:14, 5:15].all()


def test_run_length_codes_of_both_kinds_are_the_same_mask(folder):
    from pycocotools import mask as coding

    mask = np.zeros((30, 40), dtype=np.uint8, order="F")
    mask[3:9, 10:20] = 1
    compressed = coding.encode(mask)
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    for code in ({"size": [30, 40], "counts": compressed["counts"].decode()}, {"size": [30, 40], "counts": counts}):
        entry = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 3, 10, 6], "segmentation": code}
        scenes = read_scenes(coco(folder, [entry]), str(folder), masks=True)
        assert np.array_equal(decode_mask(scenes.scenes[0].things[0].mask), mask)


def test_voc_xml(folder):
    for name in ("a", "b"):
        (folder / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><object><name>cell</name><bndbox><xmin>1</xmin><ymin>2</ymin>"
            "<xmax>11</xmax><ymax>12</ymax></bndbox></object></annotation>"
        )
    scenes = read_scenes(str(folder), str(folder))
    assert scenes.classes == ["cell"] and [s.things[0].box for s in scenes.scenes] == [(0, 1, 11, 12)] * 2
    text = (folder / "b.xml").read_text()
    (folder / "b.xml").write_text(text.replace("</bndbox>", "</bndbox><difficult>1</difficult>"))
    difficult = [s.things[0].crowd for s in read_scenes(str(folder), str(folder)).scenes]
    assert difficult == [False, True]  # VOC's own scores leave such boxes out, too
    (folder / "b.xml").write_text("<annotation><object></annotation>")
    with pytest.raises(DataError, match=r"b.xml is not a VOC annotation"):
        read_scenes(str(folder), str(folder))


def voc(folder, stem, box, filename=None):
    sides = "".join(f"<{key}>{side}</{key}>" for key, side in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    element = "" if filename is None else f"<filename>{filename}</filename>"
    text = f"<annotation>{element}<object><name>cell</name><bndbox>{sides}</bndbox></object></annotation>"
    (folder / f"{stem}.xml").write_text(text)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1, 1, 40, 30), (0, 0, 40, 30)),  # the whole picture
        ((7, 9, 7, 9), (6, 8, 7, 9)),  # a pixel
        ((40, 30, 40, 30), (39, 29, 40, 30)),
        ((0, 0, 40, 30), (0, 0, 40, 30)),  # of a tool that counts from 0
    ],
)
def test_voc_counts_pixels_from_1_and_the_last_one_too(folder, box, expected):
    voc(folder, "a", box)
    (scene,) = read_scenes(str(folder), str(folder)).scenes
    assert scene.things[0].box == expected
    mask = np.zeros((30, 40), bool)
    mask[max(0, box[1] - 1) : box[3], max(0, box[0] - 1) : box[2]] = True  # pixels as VOC's own tools index them
    left, top, right, bottom = map(int, scene.things[0].box)
    assert mask[top:bottom, left:right].all() and mask.sum() == (right - left) * (bottom - top)


VOC_OBJECT = (
    "<object><name>cat</name>{}<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
)


@pytest.mark.parametrize(
    "start", ['annotation xmlns="http://host"', "annotations", "html", "Annotation"], ids=lambda start: start[:12]
)
def test_xml_whose_objects_would_not_be_found_is_refused(folder, start):
    (folder / "a.xml").write_text(f"<annotation>{VOC_OBJECT}</annotation>")
    (folder / "b.xml").write_text(f"<{start}>{VOC_OBJECT}</{start.split()[0]}>")
    with pytest.raises(DataError, match=r"b\.xml is not a VOC annotation \(it is of .*: expected 'annotation'"):
        read_scenes(str(folder), str(folder))


def test_which_files_of_a_folder_are_vocs(folder):
    """With suffixes in either case; not the files that macOS leaves on other systems' disks."""
    (folder / "a.xml").write_text(f"<annotation>{VOC_OBJECT}</annotation>")
    (folder / "b.XML").write_text(f"<annotation>{VOC_OBJECT}</annotation>")
    (folder / "._a.xml").write_bytes(b"\0\5\x16\7")
    assert [len(scene.things) for scene in read_scenes(str(folder), str(folder)).scenes] == [1, 1]


@pytest.mark.parametrize("filename", ["0.png", "0.bmp", None])
def test_voc_files_in_subfolders_belong_to_the_pictures_there(folder, filename):
    boxes = {"": (1, 1, 2, 2), "a": (1, 1, 4, 4), "b/c": (1, 1, 6, 6), ".trash": (1, 1, 9, 9)}
    pictures = folder / "pictures"
    for place, box in boxes.items():
        for side in (folder / "xml" / place, pictures / place):
            side.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(pictures / place / "0.png")
        voc(folder / "xml" / place, "0", box, filename if place else "0.png")
    scenes = read_scenes(str(folder / "xml"), str(pictures)).scenes
    there = {scene.path: scene.things[0].box for scene in scenes}
    assert there == {str(pictures / place / "0.png"): (0, 0, *boxes[place][2:]) for place in ("", "a", "b/c")}


@pytest.mark.parametrize(("word", "expected"), [("1", True), ("True", True), ("0", False), ("Unspecified", False)])
def test_difficult_in_other_words(folder, word, expected):
    things = VOC_OBJECT + VOC_OBJECT.format(f"<difficult> {word} </difficult>")
    (folder / "a.xml").write_text(f"<annotation>{things}</annotation>")
    assert [thing.crowd for thing in read_scenes(str(folder), str(folder)).scenes[0].things] == [False, expected]


@pytest.mark.parametrize("filename", [None, "", "a", "a.jpg", "JPEGImages/a.JPG", "a.png", "C:\\x\\a.bmp", "other.jpg"])
def test_voc_pictures_of_other_suffixes_than_told(folder, filename):
    (folder / "v1.2").mkdir()
    voc(folder, "a", (1, 1, 2, 2), filename)
    assert read_scenes(str(folder), str(folder)).scenes[0].path == str(folder / "a.png")


def test_voc_names_with_dots_and_lists_of_names_with_spaces(folder):
    (folder / "Annotations").mkdir()
    (folder / "ImageSets").mkdir()
    for stem in ("b.v1.2", "my picture", "my other"):
        Image.new("RGB", (40, 30)).save(folder / f"{stem}.png")
        voc(folder / "Annotations", stem, (1, 1, 2, 2), stem)
    (folder / "ImageSets" / "train.txt").write_text("b.v1.2  1\nmy picture\nmy other -1\n")
    scenes = read_scenes(str(folder / "ImageSets" / "train.txt"), str(folder)).scenes
    expected = [str(folder / name) for name in ("b.v1.2.png", "my picture.png", "my other.png")]
    assert [scene.path for scene in scenes] == expected


@pytest.mark.parametrize(
    ("annotations", "changed", "message"),
    [
        (None, {"images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "c.png"}]}, r"1 of the 2 .*c.png"),
        ([BOX | {"image_id": 9}], {}, r"coco.json .*annotation 1 belongs to image 9"),
        ([BOX | {"category_id": 9}], {}, r"coco.json .*annotation 1 has category 9, which is not in `categories`"),
        ([BOX | {"bbox": [5, 6, 0, 8]}], {}, r"1 of 1 objects have faults: annotation 1 of a.png: its box has no area"),
        ([BOX | {"bbox": [50, 6, 5, 8]}], {}, "lies outside the picture"),
        ([BOX | {"bbox": [5, 6]}], {}, r"annotation 1 has the bbox \[5, 6\]: expected four numbers"),
        ([BOX | {"bbox": [5, 6, "wide", 8]}], {}, r"annotation 1 has the bbox .*expected four numbers"),
        ([BOX | {"bbox": {"x": 5}}], {}, r"annotation 1 has the bbox .*expected four numbers"),
        ([BOX | {"bbox": [5, 6, float("nan"), 8]}], {}, "1 of 1 objects have faults"),
        ([BOX | {"bbox": [5, 6, 10**400, 8]}], {}, r"coco.json is not a COCO file: annotation 1 "),
        ([{"category_id": 3, "bbox": [5, 6, 7, 8]}], {}, r"annotations\[0\] has no image_id"),
        ([BOX, 5], {}, r"annotations\[1\] is 5: expected an object"),
        ({"a": 1}, {}, r"annotations\['a'\] is 1: expected an object"),
        ("none", {}, r"`annotations` is 'none': expected a list"),
        (None, {"images": [{"id": 7}]}, "image 7 has no file_name"),
        (None, {"images": [{"id": 7, "file_name": 7}]}, "image 7 has the file_name 7"),
        (None, {"images": [{"id": 7, "file_name": "a.png", "width": "wide"}]}, "image 7 has the size .*'wide'"),
        (None, {"images": [{"id": [7], "file_name": "a.png"}]}, r"image \[7\] has the id \[7\]: expected a number"),
        (None, {"categories": [{"id": 3}]}, "category 3 has no name"),
        (
            None,
            {"categories": [{"id": 3, "name": "a"}, {"id": "3", "name": "b"}]},
            "category '3' has the id of another",
        ),
        (None, {"images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "a.png"}]}, r"a.png \(a.png, a.png"),
        ([BOX | {"bbox": [0.1, 0.2, 0.5, 0.8]}], {}, "all of the 1 boxes lie within .* first pixel. Are they shares"),
        ([], {}, "holds no annotated object"),
        ([BOX | {"iscrowd": 1}], {}, "holds no annotated object"),
        (
            [BOX],
            {"images": [{"id": 7, "file_name": "a.png", "width": 80, "height": 60}]},
            "1 of the 1 pictures .* another size .*: a.png has 40x30 pixels, annotated were 80x60; shrunk",
        ),
    ],
)
def test_bad_coco_files_are_told_apart(folder, annotations, changed, message):
    with pytest.raises(DataError, match=message):
        read_scenes(coco(folder, annotations, **changed), str(folder))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[5, 6, 9, 9]], "has less than three corners"),
        ([[5, 6, 9, 9, 7]], "has less than three corners"),
        ([5, 6, 15, 6, 15, 14], "5 in its segmentation is no polygon: expected a list of lists"),
        ([[]], "has less than three corners"),
        ([], "has less than three corners"),
        ([[[5, 6], [15, 6], [15, 14]]], "is no polygon"),
        ([[5, 6, 15, 6, 15, "14"]], None),
        ([[5, 6, 15, 6, 15, None]], "is no polygon"),
        ([[5, 6, 15, 6, 10, 6]], "its mask holds no pixel"),
        ([[5, 6, float("inf"), 6, 10, 16]], "reaches far out of the picture"),
        ([[5, 6, 1e9, 6, 10, 1e9]], "reaches far out of the picture"),
        ("5 6 15 6 15 14", "neither polygons nor a run-length code"),
        ({"size": [30, 40], "counts": [1200]}, "its mask holds no pixel"),
        ({"size": [40, 30], "counts": [100, 1100]}, "its mask has 30x40 pixels, the picture 40x30"),
        ({"size": [30], "counts": [100, 1100]}, r"its mask has \[30\] pixels"),
        ({"counts": [100, 1100]}, "its mask has None pixels"),
        ({"size": [30, 40]}, "run-length code None is not one of 1200 pixels"),
        ({"size": [30, 40], "counts": [100, -5, 1105]}, "is not one of 1200 pixels"),
        ({"size": [30, 40], "counts": [100, 1101]}, "is not one of 1200 pixels"),
        ({"size": [30, 40], "counts": [100, 1099]}, "is not one of 1200 pixels"),
        ({"size": [30, 40], "counts": [100, 2**64 + 1100]}, "is not one of 1200 pixels"),
        ({"size": [30, 40], "counts": [100.5, 1099.5]}, "is not one of 1200 pixels"),
        ({"size": [30, 40], "counts": ["100", 1100]}, "is not one of 1200 pixels"),
        ({"size": [30, 40], "counts": "garbage"}, "is not one of 1200 pixels"),
        ({"size": [30, 40], "counts": ""}, "is not one of 1200 pixels"),
        ({"size": [30, 40], "counts": "ß" * 9}, "is not one of 1200 pixels"),
        ({"size": [30, 40], "counts": "o" * 99}, "is not one of 1200 pixels"),
    ],
)
def test_masks_that_cannot_be_used_are_counted_and_never_reach_the_library(folder, segmentation, message):
    file = coco(folder, [SQUARE | {"segmentation": segmentation}])
    if message is None:
        assert read_scenes(file, str(folder), masks=True).scenes[0].things[0].mask is not None
        return
    with pytest.raises(DataError, match=f"coco.json: 1 of 1 objects have faults: annotation 1 of a.png: .*{message}"):
        read_scenes(file, str(folder), masks=True)
    assert read_scenes(file, str(folder)).scenes[0].things[0].box == (5, 6, 15, 14)  # boxes need no masks
    many = [SQUARE | {"id": i} for i in range(2, 22)]
    kept = read_scenes(coco(folder, [SQUARE | {"segmentation": segmentation}, *many]), str(folder), masks=True)
    assert len(kept.scenes[0].things) == 20


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_of_several_polygons_the_usable_ones_are_kept(folder, caplog):
    from pycocotools import mask as coding

    polygons = [[5, 6, 15, 6, 15, 14], [20, 20, 21], [22, 10, 30, 10, 30, 20]]
    many = [SQUARE | {"id": i} for i in range(2, 22)]
    scenes = read_scenes(coco(folder, [SQUARE | {"segmentation": polygons}, *many]), str(folder), masks=True)
    truth = np.maximum(*(coding.decode(coding.frPyObjects([p], 30, 40))[..., 0] for p in (polygons[0], polygons[2])))
    assert np.array_equal(decode_mask(scenes.scenes[0].things[0].mask), truth)
    assert "1 of 21 objects have faults: annotation 1 of a.png: its polygon [20, 20, 21]" in caplog.text


def test_random_run_length_codes_are_read_as_pycocotools_writes_them(folder):
    from pycocotools import mask as coding

    rng = np.random.default_rng(0)
    masks = [np.asfortranarray(rng.random((30, 40)) < share, dtype=np.uint8) for share in rng.random(60)]
    entries = [
        SQUARE | {"id": i, "segmentation": {"size": [30, 40], "counts": coding.encode(mask)["counts"].decode()}}
        for i, mask in enumerate(masks)
    ]
    things = read_scenes(coco(folder, entries), str(folder), masks=True).scenes[0].things
    assert all(np.array_equal(decode_mask(t.mask), mask) for t, mask in zip(things, masks, strict=True))


@pytest.mark.parametrize("bbox", [None, []])
def test_a_box_that_is_missing_is_made_from_the_mask(folder, bbox):
    from pycocotools import mask as coding

    polygon = [[5.2, 6.7, 15.1, 6, 14, 14.9]]
    left, top, width, height = coding.toBbox(coding.frPyObjects(polygon, 30, 40)[0])
    file = coco(folder, [SQUARE | {"bbox": bbox, "segmentation": polygon}])
    for masks in (False, True):
        assert read_scenes(file, str(folder), masks=masks).scenes[0].things[0].box == (
            left,
            top,
            left + width,
            top + height,
        )
    with pytest.raises(DataError, match=r"annotation 1 of a.png: it has neither a bbox nor a segmentation"):
        read_scenes(coco(folder, [BOX | {"bbox": bbox}]), str(folder))


def test_corners_in_the_place_of_sizes_stop_it(folder, caplog):
    corners = [BOX | {"id": i, "bbox": [20, 10, 21 + i, 18]} for i in range(1, 11)]
    with pytest.raises(DataError, match=r"10 of 10 boxes reach over .*edge.* Are they corners \(left, top, right"):
        read_scenes(coco(folder, corners), str(folder))
    rounded = [BOX | {"id": i, "bbox": [20, 10, 21, 18]} for i in range(1, 11)]  # by a pixel
    assert read_scenes(coco(folder, rounded), str(folder)).scenes[0].things[0].box == (20, 10, 40, 28)
    few = [BOX | {"id": i} for i in range(1, 20)] + [BOX | {"id": 20, "bbox": [20, 10, 40, 18]}]
    assert read_scenes(coco(folder, few), str(folder)).scenes[0].things[-1].box == (20, 10, 40, 28)
    assert "1 of 20 boxes reach over their picture's edge" in caplog.text and "they are cut there" in caplog.text


def test_ids_are_compared_as_text_and_those_of_annotations_are_not_needed(folder):
    entry = {"image_id": "7", "category_id": 3.0, "bbox": [5, 6, 10, 8]}
    assert len(read_scenes(coco(folder, [entry, entry]), str(folder)).scenes[0].things) == 2
    keyed = {"first": entry, "second": entry}  # an object in the place of a list
    assert len(read_scenes(coco(folder, keyed), str(folder)).scenes[0].things) == 2
    without = {"images": [{"id": 7, "file_name": "a.png"}, {"file_name": "b.png"}]}
    assert [len(s.things) for s in read_scenes(coco(folder, [entry], **without), str(folder)).scenes] == [1, 0]
    names = {"categories": [{"id": i, "name": n} for i, n in ((10, "ten"), (9, "nine"), (3, "nine"), ("x", "text"))]}
    assert read_scenes(coco(folder, [entry], **names), str(folder)).classes == ["nine", "ten", "text"]
    flags = [entry | {"iscrowd": flag} for flag in (0, "0", False, 1, "1", True)]
    crowds = [thing.crowd for thing in read_scenes(coco(folder, flags), str(folder)).scenes[0].things]
    assert crowds == [False] * 3 + [True] * 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(folder, encoding):
    file = coco(folder, [BOX], categories=[{"id": 3, "name": "Käfer"}])
    (folder / "coco.json").write_bytes(
        json.dumps(json.loads((folder / "coco.json").read_text()), ensure_ascii=False).encode(encoding)
    )
    assert read_scenes(file, str(folder)).classes == ["Käfer"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"images": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"", "is not JSON"),
        (b"[]", "it has a list"),
    ],
)
def test_hostile_json(folder, content, message):
    (folder / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_scenes(str(folder / "x.json"), str(folder))


def named(folder, *names):
    return coco(
        folder,
        [BOX | {"id": i, "image_id": i} for i in range(len(names))],
        images=[{"id": i, "file_name": name} for i, name in enumerate(names)],
    )


@pytest.mark.parametrize(
    "name",
    [
        "a.png",
        "./a.png",
        "train2017/a.png",
        "sub\\a.png",
    ],
)
def test_pictures_are_found_by_the_end_of_their_names(folder, name, caplog):
    scenes = read_scenes(named(folder, name), str(folder))
    assert [scene.path for scene in scenes.scenes] == [str(folder / "a.png")]
    assert ("taken by the end of their names" in caplog.text) == (name not in ("a.png", "./a.png"))


def test_names_that_could_be_several_pictures_are_refused(folder, tmp_path):
    for sub in ("x", "y"):
        (folder / sub).mkdir()
        Image.new("RGB", (40, 30)).save(folder / sub / "0.png")
    with pytest.raises(DataError, match=r"1 pictures are not where it says below .* one of several there: z/0.png \("):
        read_scenes(named(folder, "z/0.png"), str(folder))
    scenes = read_scenes(named(folder, "data/x/0.png", "more/data/y/0.png", "b/a.png"), str(folder))
    assert [s.path for s in scenes.scenes] == [str(folder / p) for p in ("x/0.png", "y/0.png", "a.png")]
    with pytest.raises(DataError, match=r"names 1 pictures more than once: .*a.png \(1/a.png, 2/a.png\)"):
        read_scenes(named(folder, "1/a.png", "2/a.png"), str(folder))


def test_pictures_outside_the_folder_are_never_opened(tmp_path):
    inside = tmp_path / "pictures"
    inside.mkdir()
    Image.new("RGB", (40, 30)).save(inside / "a.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.png")
    for name in (
        "../secret.png",
        str(tmp_path / "secret.png"),
        "x/../../secret.png",
        "..\\secret.png",
        "C:\\data\\a.png",
        "/data/images/a.png",
        "../pictures/a.png",
    ):
        with pytest.raises(DataError, match=r"coco.json .* image 0 has the file_name .* leads out of the folder"):
            read_scenes(named(tmp_path, name), str(inside))
    for stem, name in (("a", "../secret.png"), ("a", str(tmp_path / "secret.png"))):
        voc(inside, stem, (1, 1, 2, 2), name)  # VOC's tools write folders of their own: the last part counts
        assert read_scenes(str(inside), str(inside)).pictures == [str(inside / "a.png")]
    for name in ("a..png", "c:a.png", "..a/b.png"):  # lead nowhere else
        with pytest.raises(DataError, match=r"1 of the 1 pictures .* are not in"):
            read_scenes(named(tmp_path, name), str(inside))


def test_pipes_in_the_place_of_files_are_not_waited_for(folder):
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(DataError, match=r"pipe.json cannot be read: a pipe"):
        read_scenes(str(folder / "pipe.json"), str(folder))
    os.mkfifo(folder / "a.xml")
    with pytest.raises(DataError, match=r"a.xml is not a VOC annotation \(a pipe"):
        read_scenes(str(folder), str(folder))
    with pytest.raises(UsageError, match="do not exist"):
        read_scenes("/nowhere/x.json", str(folder))


def test_numbers_of_any_length(folder):
    long = "9" * 5000
    names = [{"id": i, "name": n} for i, n in ((long, "last"), ("10", "ten"), ("9", "nine"), (3, "three"))]
    assert read_scenes(coco(folder, [BOX], categories=names), str(folder)).classes == ["three", "nine", "ten", "last"]
    for huge in (10**400, -(10**400), 1e308):
        for box in ([huge, 6, 10, 8], [5, 6, huge, huge], [5, 6, 10, float("inf")]):
            with pytest.raises(DataError, match=r"coco.json"):
                read_scenes(coco(folder, [BOX | {"bbox": box}]), str(folder))
        size = {"images": [{"id": 7, "file_name": "a.png", "width": huge, "height": 30}]}
        with pytest.raises(DataError, match=r"coco.json|has 40x30 pixels"):
            read_scenes(coco(folder, [BOX], **size), str(folder))


def test_names_with_line_breaks_stay_in_a_line(folder, caplog):
    names = ["x\ny.png", "\x1b[31m.png"]
    with pytest.raises(DataError, match="are not in") as error:
        read_scenes(named(folder, *names), str(folder))
    assert "x\\ny.png, \\x1b[31m.png" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("stem", ["nel\x85x", "feed\x0cx", "sep\u2028x", b"\xff".decode("utf-8", "surrogateescape")])
def test_lists_of_voc_hold_names_of_any_letters(folder, stem):
    (folder / "Annotations").mkdir()
    (folder / "ImageSets").mkdir()
    Image.new("RGB", (40, 30)).save(folder / f"{stem}.png")
    voc(folder / "Annotations", stem, (1, 1, 2, 2), "")
    (folder / "ImageSets" / "train.txt").write_bytes(os.fsencode(f"{stem}\n"))
    assert read_scenes(str(folder / "ImageSets" / "train.txt"), str(folder)).pictures == [str(folder / f"{stem}.png")]


def test_other_files_and_folders_are_told_apart(folder):
    (folder / "x.json").write_text("{]")
    with pytest.raises(DataError, match="is not JSON"):
        read_scenes(str(folder / "x.json"), str(folder))
    (folder / "x.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="is not a COCO file: expected an object with"):
        read_scenes(str(folder / "x.json"), str(folder))
    with pytest.raises(UsageError, match="do not exist"):
        read_scenes(str(folder / "no.json"), str(folder))
    with pytest.raises(UsageError, match="images is 'nowhere'"):
        read_scenes(coco(folder), "nowhere")
    with pytest.raises(DataError, match="classes that were not trained on: bat"):
        read_scenes(coco(folder), str(folder), ["cat"])


def test_a_picture_turned_by_its_exif_is_taken_upright_and_told_where_the_boxes_are_not(folder):
    lying = Image.new("RGB", (40, 30))
    exif = lying.getexif()
    exif[0x0112] = 6
    lying.save(folder / "a.jpg", exif=exif)
    upright = {"images": [{"id": 7, "file_name": "a.jpg", "width": 30, "height": 40}]}
    assert read_scenes(coco(folder, [BOX], **upright), str(folder)).scenes[0].size == (40, 30)
    with pytest.raises(DataError, match=r"annotated were 40x30; turned by its EXIF orientation"):
        read_scenes(
            coco(folder, [BOX], images=[{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}]), str(folder)
        )


def test_pictures_that_cannot_be_read_are_told_before_training(folder):
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a.png: not a picture"):
        read_scenes(coco(folder, [BOX]), str(folder))


def test_a_picture_that_is_damaged_in_its_midst_is_not_measured_with(folder, caplog):
    scenes = read_scenes(coco(folder, [BOX, BOX | {"id": 2, "image_id": 8}]), str(folder))
    content = bytearray((folder / "a.png").read_bytes())
    content[content.index(b"IDAT") + 8] ^= 255
    (folder / "a.png").write_bytes(content)
    assert (
        len(read_scenes(coco(folder, [BOX, BOX | {"id": 2, "image_id": 8}]), str(folder)).scenes) == 2
    )  # its end tells nothing
    assert scenes.whole().scenes == scenes.scenes[1:] and "a.png: damaged" in caplog.text


def test_a_few_boxes_without_area_are_left_out(folder, caplog):
    many = [BOX | {"id": i} for i in range(1, 40)] + [BOX | {"id": 40, "bbox": [5, 6, 0, 0]}]
    scenes = read_scenes(coco(folder, many), str(folder))
    assert len(scenes.scenes[0].things) == 39 and "1 of 40 objects have faults" in caplog.text


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_precision_is_that_of_pycocotools(folder, kind):
    from pycocotools import mask as coding
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)

    def mask(left, top, width, height):
        inside = np.zeros((30, 40), dtype=np.uint8, order="F")
        inside[top : top + height, left : left + width] = 1
        return coding.encode(inside)

    entries, detections = [], []
    for i in range(24):
        left, top, width, height = (int(v) for v in rng.integers((0, 0, 4, 4), (24, 16, 14, 12)))
        code = mask(left, top, width, height)
        entries.append(
            {
                "id": i + 1,
                "image_id": 7 + i % 2,
                "category_id": 3 - 2 * (i % 3 == 0),
                "bbox": [left, top, width, height],
                "segmentation": {"size": [30, 40], "counts": code["counts"].decode()},
                "iscrowd": int(i == 5),
            }
        )
        if i % 4:
            moved = max(0, left + int(rng.integers(-2, 3))), top, width, height
            detections.append(
                {
                    "image_id": i % 2 + 1,
                    "category_id": 2 - (i % 3 == 0),
                    "bbox": list(map(float, moved)),
                    "score": float(rng.random()),
                    "segmentation": mask(*moved),
                }
            )
    scenes = read_scenes(coco(folder, entries), str(folder), masks=True)
    ours = average_precision(scenes, [dict(d) for d in detections], kind)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = scenes.as_coco()
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes([dict(d) for d in detections]), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    assert 0.05 < ours["ap"] < 0.95
    for name, value in zip(("ap", "ap50", "ap75"), run.stats, strict=False):
        assert ours[name] == pytest.approx(value, abs=1e-9)
    for i, name in enumerate(scenes.classes):
        own = run.eval["precision"][:, :, i, 0, 2]
        assert ours["by_class"][name] == pytest.approx(own[own > -1].mean(), abs=1e-9)


def test_where_nothing_is_detected_classes_without_objects_have_no_precision(folder):
    scenes = read_scenes(coco(folder, [BOX]), str(folder))
    nothing = average_precision(scenes, [], "bbox")
    missed = {"image_id": 1, "category_id": 1, "bbox": [30.0, 20.0, 5.0, 5.0], "score": 0.5}
    assert nothing["by_class"] == average_precision(scenes, [missed], "bbox")["by_class"] == {"bat": None, "cat": 0.0}


def test_annotations_of_no_picture_and_of_none_that_is_whole_are_told(folder):
    with pytest.raises(DataError, match=r"coco\.json names no picture"):
        read_scenes(coco(folder, [], images=[]), str(folder))
    scenes = read_scenes(coco(folder, [BOX]), str(folder))  # whose only object is in a.png
    content = bytearray((folder / "a.png").read_bytes())
    content[content.index(b"IDAT") + 12] ^= 255
    (folder / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"coco\.json holds no annotated object of a picture that can be read"):
        scenes.whole()


def test_where_all_objects_are_crowds_that_is_said(folder):
    with pytest.raises(DataError, match=r"holds no annotated object but 2 crowds \(`iscrowd`\)"):
        read_scenes(coco(folder, [BOX | {"iscrowd": 1}, BOX | {"iscrowd": True}]), str(folder))


@pytest.mark.parametrize(("crowds", "words"), [(0, "2 to validate with"), (2, "2 crowds or difficult objects")])
def test_a_log_counts_crowds_apart(folder, crowds, words):
    things = [BOX | {"id": i, "iscrowd": int(i < crowds)} for i in range(4)]
    scenes, val = read_scenes(coco(folder, things), str(folder)), read_scenes(coco(folder, [BOX]), str(folder))
    task = MagicMock(scenes=scenes, val=val, learning_rate=1.0, layer_decay=1.0)
    line = Detection.describe(task)[1]
    assert words in line and f" 2 with {4 - crowds} objects of 2 classes" in line


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": None}, "not a COCO file: `images` is None"),
        ({"images": [{"id": 7, "file_name": "a.png"}, 8]}, r"not a COCO file: images\[1\] is 8"),
        ({"categories": {"id": 3, "name": "cat"}}, r"not a COCO file: categories\['id'\] is 3"),
        ({"annotations": [BOX, [BOX]]}, r"not a COCO file: annotations\[1\] is \["),
    ],
)
def test_an_entry_that_is_none_is_not_called_by_the_one_before(folder, changed, message):
    with pytest.raises(DataError, match=message):
        read_scenes(coco(folder, **changed), str(folder))


@pytest.mark.parametrize("bbox", ["5618", {"5": 1, "6": 1, "1": 1, "8": 1}])
def test_boxes_are_lists(folder, bbox):
    with pytest.raises(DataError, match="expected four numbers: left, top, width, height"):
        read_scenes(coco(folder, [BOX | {"bbox": bbox}]), str(folder))


def test_a_size_in_words_is_shown_as_such(folder):
    code = {"size": ["30", "40"], "counts": [0, 1200]}
    with pytest.raises(DataError, match="its mask has '40'x'30' pixels, the picture 40x30"):
        read_scenes(coco(folder, [BOX | {"segmentation": code}]), str(folder), masks=True)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_names_with_accents_as_other_systems_write_them(tmp_path, forms, kind):
    on_disk, in_file = (unicodedata.normalize(form, "h\u00fctte") for form in forms)
    Image.new("RGB", (40, 30)).save(tmp_path / f"{on_disk}.png")
    if kind == "coco":
        source = coco(tmp_path, [BOX], images=[{"id": 7, "file_name": f"x/{in_file}.png"}])
    else:
        (tmp_path / f"{in_file}.xml").write_text(f"<annotation>{VOC_OBJECT}</annotation>", encoding="utf-8")
        source = str(tmp_path)
    assert read_scenes(source, str(tmp_path)).pictures == [str(tmp_path / f"{on_disk}.png")]
