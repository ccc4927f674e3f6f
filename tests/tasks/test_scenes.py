"""COCO and VOC annotations, good and bad; what evaluation says, beside pycocotools."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from convspark.errors import DataError, UsageError
from convspark.tasks.detection.data import decode_mask, read_scenes
from convspark.tasks.detection.network import average_precision


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
    return tmp_path


def coco(folder, annotations=None, **changed):
    things = [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 3,
            "bbox": [5, 6, 10, 8],
            "segmentation": [[5, 6, 15, 6, 15, 14, 5, 14]],
        },
        {"id": 2, "image_id": 8, "category_id": 1, "bbox": [30, 20, 20, 5], "iscrowd": 1},
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
    assert decode_mask(first.mask).sum() == 80 and decode_mask(first.mask).shape == (30, 40)
    assert second.box == (30, 20, 40, 25) and second.crowd  # cut at the picture's edge
    with pytest.raises(DataError, match=r"annotation 2 of b.png has no mask"):
        read_scenes(coco(folder), str(folder), masks=True)


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
    assert scenes.classes == ["cell"] and [s.things[0].box for s in scenes.scenes] == [(1, 2, 11, 12)] * 2
    text = (folder / "b.xml").read_text()
    (folder / "b.xml").write_text(text.replace("</bndbox>", "</bndbox><difficult>1</difficult>"))
    difficult = [s.things[0].crowd for s in read_scenes(str(folder), str(folder)).scenes]
    assert difficult == [False, True]  # VOC's own scores leave such boxes out, too
    (folder / "b.xml").write_text("<annotation><object></annotation>")
    with pytest.raises(DataError, match=r"b.xml is not a VOC annotation"):
        read_scenes(str(folder), str(folder))


BOX = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [5, 6, 10, 8]}


@pytest.mark.parametrize(
    ("annotations", "changed", "message"),
    [
        (None, {"images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "c.png"}]}, r"1 of the 2 .*c.png"),
        ([BOX | {"image_id": 9}], {}, "annotation 1 belongs to image 9"),
        ([BOX | {"category_id": 9}], {}, "category 9, which is not in `categories`"),
        ([BOX | {"bbox": [5, 6, 0, 8]}], {}, r"1 of 1 objects have no area .*annotation 1 of a.png.*More|more than 5%"),
        ([BOX | {"bbox": [50, 6, 5, 8]}], {}, "lie outside their picture"),
        ([BOX | {"bbox": [5, 6]}], {}, "is not a COCO file: an entry lacks or garbles"),
        ([BOX | {"bbox": [5, 6, float("nan"), 8]}], {}, "1 of 1 objects have no area"),
        ([BOX | {"segmentation": [[5, 6, 9, 9]]}], {}, "neither polygons nor .* three corners"),
        ([BOX | {"segmentation": {"size": [30, 40], "counts": [1200]}}], {}, "its mask holds no pixel"),
        ({"a": 1}, {}, "lacks or garbles"),
        (None, {"images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "a.png"}]}, "a.png"),
        (
            [BOX | {"segmentation": {"size": [40, 30], "counts": [1200]}}],
            {},
            "its mask has 30x40 pixels, the picture 40x30",
        ),
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


def test_a_few_boxes_without_area_are_left_out(folder, caplog):
    many = [BOX | {"id": i} for i in range(1, 40)] + [BOX | {"id": 40, "bbox": [5, 6, 0, 0]}]
    scenes = read_scenes(coco(folder, many), str(folder))
    assert len(scenes.scenes[0].things) == 39 and "1 of 40 objects have no area" in caplog.text


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
