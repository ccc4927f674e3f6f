"""Detectors and segmenters: learned on drawn pictures, resumed, and their measures beside scikit-learn's."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from faster_coco_eval.core import mask as coding
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file
from sklearn.metrics import f1_score, jaccard_score
from torch.nn import functional as F
from torchvision.models.detection.mask_rcnn import (
    maskrcnn_resnet50_fpn_v2,
)

from convspark.checkpoints.export import export
from convspark.checkpoints.origin import Origin, find_weights
from convspark.cli.main import main
from convspark.data import Pixels
from convspark.errors import DataError, UsageError
from convspark.tasks.detection import network as detection
from convspark.tasks.detection import train as detecting
from convspark.tasks.detection.command import detect
from convspark.tasks.detection.data import read_scenes
from convspark.tasks.detection.network import build_detector, detections_in
from convspark.tasks.load import Detector, Segmenter, load
from convspark.tasks.segmentation import network as segmentation
from convspark.tasks.segmentation.command import segment
from convspark.tasks.segmentation.data import IGNORED
from convspark.tasks.segmentation.network import overlap, pixel_counts, segmentation_loss
from convspark.tasks.segmentation.train import places_to_draw

COMMON = {"device": "cpu", "precision": "fp32", "workers": 0}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Pictures of bright squares on dark noise, with COCO boxes and masks, and mask files."""
    root = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        (root / part).mkdir()
        (root / f"{part}_masks").mkdir()
        images, things = [], []
        for i in range(count):
            pixels = rng.integers(0, 60, (64, 80, 3), dtype=np.uint8)
            labels = np.zeros((64, 80), dtype=np.uint8)
            for _ in range(2):
                side, left, top = int(rng.integers(14, 24)), int(rng.integers(0, 56)), int(rng.integers(0, 40))
                pixels[top : top + side, left : left + side] = (230, 200, 40)
                labels[top : top + side, left : left + side] = 255
                polygon = [left, top, left + side, top, left + side, top + side, left, top + side]
                things.append(
                    {
                        "id": len(things) + 1,
                        "image_id": i,
                        "category_id": 1,
                        "bbox": [left, top, side, side],
                        "segmentation": [polygon],
                    }
                )
            Image.fromarray(pixels).save(root / part / f"{i}.png")
            Image.fromarray(labels).save(root / f"{part}_masks" / f"{i}.png")
            images.append({"id": i, "file_name": f"{i}.png"})
        content = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "square"}]}
        (root / f"{part}.json").write_text(json.dumps(content))
    return root


def places(drawn):
    return {
        "train": str(drawn / "train.json"),
        "val": str(drawn / "val.json"),
        "images": str(drawn / "train"),
        "val_images": str(drawn / "val"),
    }


def average_precisions(truth: Path, detections: list[dict], kind: str) -> list[float]:
    """AP, AP50 and AP75 by COCO's own code; images are counted from 0 in the file, from 1 in what was found."""
    coco = COCO()
    content = json.loads(truth.read_text())
    for image in content["images"]:
        image |= {"id": image["id"] + 1, "height": 64, "width": 80}
    for thing in content["annotations"]:
        width, height = thing["bbox"][2:]
        thing |= {"image_id": thing["image_id"] + 1, "area": width * height, "iscrowd": 0}
    coco.dataset = content
    coco.createIndex()
    run = COCOeval(coco, coco.loadRes(detections), kind)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run.stats[:3].tolist()


@pytest.mark.parametrize(
    ("task", "width", "epochs"),
    [
        ("masks", "narrow", 6),
        pytest.param("boxes", "narrow", 6, marks=pytest.mark.slow),
        pytest.param("boxes", "whole", 8, marks=pytest.mark.slow),
    ],
)
def test_a_detector_learns(drawn, tmp_path, request, task, width, epochs):
    if width == "narrow":
        request.getfixturevalue("small_heads")
    options = {"task": task, "size": 64, "batch_size": 2, "learning_rate": 2e-3, **COMMON}
    result = detect("random:resnet10t", **places(drawn), epochs=epochs, out=str(tmp_path / "run"), **options)
    assert result.pictures == 4 and list(result.by_class) == ["square"]
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < (0.5 if width == "whole" else 0.8) * losses[0]
    detections = json.loads((tmp_path / "run" / "detections.json").read_text())
    assert {d["image_id"] for d in detections} <= {1, 2, 3, 4}
    assert all(("segmentation" in entry) == (task == "masks") for entry in detections)
    expected = average_precisions(drawn / "val.json", detections, "segm" if task == "masks" else "bbox")
    assert (result.ap, result.ap50, result.ap75) == pytest.approx(expected, abs=1e-6) and result.ap50 >= 0.1
    with Image.open(tmp_path / "run" / "pictures" / "predictions.png") as picture:
        assert picture.width > 300
    file = tmp_path / "run" / "detector.pth"  # whose backbone is WEIGHTS to other commands
    trained = torch.load(file, weights_only=True)["model"]["backbone.backbone.conv1.0.weight"]
    for weights in (tmp_path / "run", file):
        assert torch.equal(find_weights(str(weights)).build().conv1[0].weight, trained)
    alone = shutil.copy(file, tmp_path / "alone.pth")  # no run, no annotations beside it
    detector = load(str(alone))
    assert isinstance(detector, Detector) and detector.classes == ["square"]
    first = [d for d in detections if d["image_id"] == 1]
    seen = detector(drawn / "val" / "0.png")
    for one, entry in zip(seen, first, strict=True):
        left, top, width, height = entry["bbox"]
        assert (one.name, one.score) == (
            detector.classes[entry["category_id"] - 1],
            pytest.approx(entry["score"], abs=1e-5),
        )
        assert one.box == pytest.approx((left, top, left + width, top + height), abs=1e-3)
        assert (one.mask is None) == (task == "boxes")
        if one.mask is not None:
            assert (one.mask != coding.decode(entry["segmentation"])).mean() < 1e-3
    with Image.open(drawn / "val" / "0.png") as picture:  # an image of Pillow's is read as a file that holds it
        Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as picture:
        assert [one.box for one in detector(picture)] == [one.box for one in detector(tmp_path / "deep.png")]


@pytest.mark.parametrize(
    ("batch_size", "steps", "rate"),
    [
        (16, 90_000, 2.5e-4),
        (16, 500_000, 2.5e-4),
        (16, 22_500, 5e-4),
        (16, 10, 1e-3),
        (4, 206, 5e-4),
        (4, 90_000, 1.25e-4),
    ],
)
def test_the_learning_rate_is_the_papers_and_higher_in_fewer_steps(batch_size, steps, rate):
    assert detecting.default_rate(batch_size, steps) == pytest.approx(rate)


def test_pictures_are_measured_once_after_the_last_epoch_and_again_when_going_on_behind_it(
    drawn, tmp_path, small_heads, monkeypatch
):
    measured = []

    def counted(network, scene, *rest):
        measured.append(scene.path)
        return detections_in(network, scene, *rest)

    for module in (detection, detecting):
        monkeypatch.setattr(module, "detections_in", counted)
    folder = str(tmp_path / "run")
    first = detect("random:resnet10t", **places(drawn), size=64, batch_size=2, epochs=1, out=folder, **COMMON)
    assert len(measured) == 4 == len(set(measured))
    before = (tmp_path / "run" / "detections.json").read_text()
    again = detect(resume=folder)
    assert len(measured) == 8
    assert (again.ap, again.ap50) == (first.ap, first.ap50)
    assert (tmp_path / "run" / "detections.json").read_text() == before


def test_pictures_are_measured_at_the_size_asked_for(drawn):
    backbone = timm.create_model("resnet10t", num_classes=0)
    scenes = read_scenes(str(drawn / "train.json"), str(drawn / "train"))
    network = build_detector(backbone, scenes, 100, (0.5,) * 3, (0.2,) * 3, masks=False).eval()
    images, _ = network.transform([torch.zeros(3, 64, 80)])
    assert images.image_sizes == [(100, 125)]


def test_pictures_that_would_shrink_to_nothing_are_refused(drawn, tmp_path):
    scenes = read_scenes(str(drawn / "train.json"), str(drawn / "train"))
    backbone = timm.create_model("test_resnet", num_classes=0)
    network = build_detector(backbone, scenes, 64, (0.5,) * 3, (0.2,) * 3, masks=False).eval()
    for size in ((106, 1), (1, 106), (318, 3)):
        assert not detection.is_too_narrow(size, 107)
        assert min(network.transform([torch.zeros(3, *size)])[0].image_sizes[0]) == 1  # torchvision takes it
    detector = Detector(network, ["square"], 3)
    for size in ((107, 1), (3, 2000)):
        with pytest.raises(DataError, match=f"picture of {size[0]}x{size[1]} pixels is too narrow .* most 107 pixels"):
            detector(Image.new("RGB", size))
    Image.new("RGB", (2000, 3)).save(tmp_path / "line.png")
    things = [{"id": 0, "image_id": 0, "category_id": 0, "bbox": [5, 0, 3, 3]}]
    content = {
        "images": [{"id": 0, "file_name": "line.png"}],
        "annotations": things,
        "categories": [{"id": 0, "name": "x"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    source = {"train": str(tmp_path / "c.json"), "val": str(tmp_path / "c.json"), "images": str(tmp_path)}
    with pytest.raises(DataError, match=r"^images: 1 pictures are too narrow .*line\.png \(2000x3\)"):
        detect("random:test_resnet", **source, size=64, out=str(tmp_path / "run"), **COMMON)
    assert not (tmp_path / "run").exists()


def test_what_is_no_picture_is_refused_by_what_load_gives():
    for looks in (
        Detector(torch.nn.Identity(), ["x"], 3),
        Segmenter(torch.nn.Identity(), ["x"], Origin("r", "r", None)),
    ):
        for thing, kind in ((np.zeros((4, 4, 3), np.uint8), "ndarray"), (None, "NoneType"), (b"a.png", "bytes")):
            with pytest.raises(
                UsageError, match=f"picture is a {kind}: expected the name of a file, or a Pillow image"
            ):
                looks(thing)


@pytest.mark.slow
def test_what_is_found_does_not_depend_on_the_size_of_earlier_pictures(drawn):
    torch.manual_seed(0)
    scenes = read_scenes(str(drawn / "train.json"), str(drawn / "train"))
    network = build_detector(
        timm.create_model("resnet10t", num_classes=0), scenes, 64, (0.5,) * 3, (0.2,) * 3, masks=True
    ).eval()
    small, picture = torch.rand(3, 38, 38), torch.rand(3, 64, 64)
    with torch.no_grad():
        first = network([picture])[0]
        network.transform.min_size = (38,)
        network([small])
        network.transform.min_size = (64,)
        again = network([picture])[0]
    assert len(first["boxes"]) and all(torch.equal(first[name], again[name]) for name in first)
    assert [pool.scales for pool in (network.roi_heads.box_roi_pool, network.roi_heads.mask_roi_pool)] == [
        [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    ] * 2


def test_places_are_not_rounded_to_bfloat16(drawn):
    """A true box of one pixel, far from the corner, would lose its area, and the loss be no number."""
    torch.manual_seed(0)
    scenes = read_scenes(str(drawn / "train.json"), str(drawn / "train"))
    backbone = timm.create_model("resnet10t", num_classes=0)
    network = build_detector(backbone, scenes, 384, (0.5,) * 3, (0.2,) * 3, masks=False).train()
    network.transform.min_size = (384,)
    rois = []
    network.roi_heads.box_roi_pool.register_forward_pre_hook(lambda _, inputs: rois.extend(inputs[1]))
    box = torch.tensor([[600.2, 300.1, 601.3, 301.2]])
    with torch.autocast("cpu", torch.bfloat16):
        losses = network([torch.rand(3, 384, 640)], [{"boxes": box, "labels": torch.tensor([1])}])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert {boxes.dtype for boxes in rois} == {torch.float32} and any((boxes == box).all(1).any() for boxes in rois)


@pytest.mark.parametrize("task", ["boxes", "masks"])
def test_more_objects_than_cocos_hundred_are_all_counted(tmp_path, task):
    from convspark.tasks.detection.network import average_precision

    Image.new("RGB", (400, 40)).save(tmp_path / "a.png")
    boxes = [[4 * (i % 100), 10 * (i // 100), 3, 9] for i in range(300)]
    things = [
        {
            "id": i,
            "image_id": 1,
            "category_id": 1,
            "bbox": [x, y, w, h],
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for i, (x, y, w, h) in enumerate(boxes)
    ]
    images, categories = [{"id": 1, "file_name": "a.png"}], [{"id": 1, "name": "bar"}, {"id": 2, "name": "none"}]
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"images": images, "annotations": things, "categories": categories}))
    scenes = read_scenes(str(file), str(tmp_path), masks=task == "masks")
    detections = [
        {
            "image_id": 1,
            "category_id": 1,
            "bbox": [float(v) for v in box],
            "score": 0.9 - 0.001 * i,
            "segmentation": thing.mask,
        }
        for i, (box, thing) in enumerate(zip(boxes, scenes.scenes[0].things, strict=True))
    ]
    scores = average_precision(scenes, detections, "segm" if task == "masks" else "bbox")
    assert scores["ap"] == pytest.approx(1.0) and scores["by_class"] == {"bar": pytest.approx(1.0), "none": None}


def test_detect_says_what_is_wrong(drawn, tmp_path):
    with pytest.raises(UsageError, match="val is missing: give --val"):
        detect("random:resnet10t", **{**places(drawn), "val": None})
    for wrong in ({"epochs": 0}, {"batch_size": 0}, {"layer_decay": 2.0}, {"weight_decay": -1.0}, {"drop_path": 1.0}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))} is"):
            detect("random:resnet10t", **{**places(drawn), **wrong})
        with pytest.raises(UsageError, match=f"{next(iter(wrong))} is"):
            segment("random:resnet10t", images="a", masks="b", **wrong)
    with pytest.raises(UsageError, match="size is 8"):
        detect("random:resnet10t", **places(drawn), size=8)
    with pytest.raises(DataError, match="8 of the 12 pictures"):
        detect("random:resnet10t", **{**places(drawn), "images": str(drawn / "val")})
    assert main(["detect", "random:resnet10t", "--train", str(drawn / "none.json")]) == 2


@pytest.mark.parametrize("kind", ["files", pytest.param("coco", marks=pytest.mark.slow)])
def test_a_segmenter_learns(drawn, tmp_path, kind):
    masks = {"files": ("train_masks", "val_masks"), "coco": ("train.json", "val.json")}[kind]
    result = segment(
        "random:test_resnet",
        images=str(drawn / "train"),
        masks=str(drawn / masks[0]),
        val_images=str(drawn / "val"),
        val_masks=str(drawn / masks[1]),
        epochs=8,
        size=64,
        batch_size=4,
        learning_rate=2e-3,
        out=str(tmp_path / "run"),
        **COMMON,
    )
    assert result.iou > 0.6 and len(result.iou_by_class) == 2
    again = segment(resume=str(tmp_path / "run"))
    assert (again.iou, again.dice) == (result.iou, result.dice)
    segmenter = load(str(tmp_path / "run"))
    assert isinstance(segmenter, Segmenter) and len(segmenter.classes) == 2
    right = 0
    for place in range(4):
        with Image.open(drawn / "val_masks" / f"{place}.png") as mask:
            right += int((segmenter(drawn / "val" / f"{place}.png") == (np.asarray(mask) > 0)).sum())
    assert right / (4 * 64 * 80) == pytest.approx(result.accuracy)


NORMED = """
import warnings
from torch import nn

def block(norm, i, o):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of the older of its two ways
        return nn.Sequential(getattr(nn.utils, norm)(nn.Conv2d(i, o, 3, 2, 1)), nn.BatchNorm2d(o), nn.ReLU())

def network(norm):
    return nn.Sequential(*(block(norm, i, o) for i, o in ((3, 8), (8, 8), (8, 12), (12, 16), (16, 24))))

def weight_norm():
    return network("weight_norm")

def spectral_norm():
    return network("spectral_norm")
"""


@pytest.mark.usefixtures("small_heads")
@pytest.mark.parametrize(("task", "norm"), [("segment", "weight_norm"), ("detect", "spectral_norm")])
def test_weights_that_hooks_make_are_trained_and_exported(drawn, tmp_path, monkeypatch, task, norm):
    (tmp_path / "normed.py").write_text(NORMED)
    monkeypatch.syspath_prepend(tmp_path)
    model, out = f"normed:{norm}", tmp_path / "run"
    options = {"epochs": 1, "size": 64, "batch_size": 4, "out": str(out), **COMMON}
    if task == "detect":
        detect(f"random:{model}", **places(drawn), **options)
    else:
        segment(f"random:{model}", images=str(drawn / "train"), masks=str(drawn / "train_masks"), **options)
    file = out / ("detector.pth" if task == "detect" else "segmenter.pth")
    before, after = find_weights(f"random:{model}").build(), find_weights(str(file), model).build()
    first, trained = before.state_dict(), after.state_dict()
    assert any(name.endswith(("weight_g", "weight_u")) for name in first)
    assert not [name for name in first if torch.equal(first[name], trained[name])]
    written = export(str(file), model=model, size=64, out=str(tmp_path / "export"))
    loaded = before.eval()
    loaded.load_state_dict(load_file(f"{written.file}/model.safetensors"))
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded(image), after.eval()(image))


def test_pictures_from_all_parts_of_their_order_are_drawn():
    assert places_to_draw(469) == {58, 175, 293, 410}  # the middles of the four quarters
    assert [places_to_draw(count) for count in (1, 2, 4, 5)] == [{0}, {0, 1}, {0, 1, 2, 3}, {0, 1, 3, 4}]


def test_measures_are_scikit_learns():
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(0, 3, (2, 40, 50)), rng.integers(0, 3, (2, 40, 50))
    truth[0, :5] = IGNORED
    scores = overlap(pixel_counts(truth, predicted, 3))
    a, b = truth[truth != IGNORED], predicted[truth != IGNORED]
    assert scores["iou_by_class"] == pytest.approx(jaccard_score(a, b, average=None))
    assert scores["dice_by_class"] == pytest.approx(f1_score(a, b, average=None))
    assert scores["iou"] == pytest.approx(jaccard_score(a, b, average="macro"))
    assert scores["accuracy"] == pytest.approx(np.mean(a == b))


def test_the_loss_knows_nothing_of_ignored_pixels():
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    labels = torch.randint(0, 3, (2, 8, 8))
    labels[:, :4] = IGNORED
    loss = segmentation_loss(logits, labels)
    loss.backward()
    assert torch.equal(logits.grad[:, :, :4], torch.zeros_like(logits.grad[:, :, :4])) and logits.grad[:, :, 4:].any()
    alone = segmentation_loss(logits[:, :, 4:], labels[:, 4:])
    assert float(loss.detach()) == pytest.approx(float(alone.detach()))
    perfect = 50 * F.one_hot(labels[:, 4:], 3).permute(0, 3, 1, 2).float()
    assert float(segmentation_loss(perfect, labels[:, 4:])) == pytest.approx(0, abs=1e-6)
    nothing = segmentation_loss(logits, torch.full_like(labels, IGNORED))
    assert float(nothing.detach()) == 0


def test_heads_with_norms_are_those_of_torchvisions_second_version(drawn):
    scenes = read_scenes(str(drawn / "train.json"), str(drawn / "train"), masks=True)
    ours = build_detector(
        timm.create_model("test_resnet", num_classes=0), scenes, 64, (0.5,) * 3, (0.2,) * 3, masks=True, norm=True
    )
    theirs = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=2)

    def shapes(network, inner):
        return {
            name: tensor.shape
            for name, tensor in network.state_dict().items()
            if name.startswith("roi_heads") or (name.startswith("backbone.fpn") and inner not in name)
        }

    # What the pyramid's first convolutions read is another network's.
    assert shapes(ours, "inner_blocks") == shapes(theirs, "inner_blocks")
    assert {"backbone.fpn.inner_blocks.0.1.running_mean"} <= set(ours.state_dict())


def test_objects_fit_or_cocos_usual_numbers(drawn):
    scenes = read_scenes(str(drawn / "train.json"), str(drawn / "train"))
    usual = build_detector(
        timm.create_model("test_resnet", num_classes=0),
        scenes,
        800,
        (0.5,) * 3,
        (0.2,) * 3,
        masks=False,
        short_sides=(480, 896),
        fit_to_objects=False,
    )
    assert usual.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert usual.roi_heads.detections_per_img == 100 and usual.transform.max_size == 1333
    assert sorted(usual.transform.min_size) == list(range(480, 897, 32)) and usual.transform.min_size[-1] == 800


@pytest.mark.usefixtures("small_heads")
def test_passes_share_a_step_of_a_detector(drawn, tmp_path):
    """Rates are those of steps, and the loss is about that of the whole batch: the mean over its passes."""
    rows = []
    for name, most in (("whole", None), ("passes", 1)):
        settings = {"epochs": 1, "size": 64, "batch_size": 4, "device_batch_size": most, "learning_rate": 1e-4}
        result = detect("random:test_resnet", **places(drawn), **settings, **COMMON, out=str(tmp_path / name))
        assert result.steps == 3
        with (tmp_path / name / "metrics.csv").open() as file:
            rows += list(csv.DictReader(file))
    assert rows[0]["learning_rate"] == rows[1]["learning_rate"]
    assert float(rows[0]["train_loss"]) == pytest.approx(float(rows[1]["train_loss"]), rel=0.15)


def test_a_segmenter_of_stored_samples_takes_files_and_no_images_of_pillows(tmp_path):
    deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    backbone = timm.create_model("test_resnet", in_chans=1, num_classes=0)
    pixels = Pixels(channels=1, stored=True)
    origin = Origin("random:test_resnet", "test_resnet", None, channels=1, mean=(0.5,), std=(0.2,), pixels=pixels)
    network = segmentation.Segmenter(backbone, 2).eval()
    segmenter = Segmenter(network, ["background", "cell"], origin)
    values = torch.from_numpy((deep / 65535 - 0.5) / 0.2).float()[None, None]
    with torch.no_grad():
        expected = network(values).argmax(1)[0].numpy()
    assert np.mean(segmenter(str(tmp_path / "deep.png")) == expected) > 0.999
    with Image.open(tmp_path / "deep.png") as picture, pytest.raises(UsageError, match="give it the file"):
        segmenter(picture)


@pytest.mark.usefixtures("small_heads")
def test_batch_norms_without_anything_to_average_over_are_told(drawn, tmp_path):
    options = {"size": 32, "batch_size": 2, "accumulate": 2, "epochs": 1, **COMMON}
    with pytest.raises(UsageError, match="a forward pass has 1 images, and a map of them holds a single position"):
        detect("random:test_resnet", **places(drawn), out=str(tmp_path / "run"), **options)
