"""Labelled pictures, and detectors that are quick to train."""

from functools import partial
from pathlib import Path

import pytest
from labelled_pictures import write_pictures
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor

from convspark.tasks.detection import network as detection
from convspark.tasks.fpn import Pyramid


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """train, val and test folders of three classes."""
    root = tmp_path_factory.mktemp("labelled")
    for seed, (part, count) in enumerate({"train": 16, "val": 4, "test": 6}.items()):
        write_pictures(root / part, count, seed)
    return root


@pytest.fixture
def small_heads(monkeypatch):
    """Detectors with narrow maps and heads that look at fewer places: at full width a step takes seconds."""
    monkeypatch.setattr(detection, "Pyramid", partial(Pyramid, out_channels=32))
    places = {f"rpn_{when}_nms_top_n_{where}": 60 for when in ("pre", "post") for where in ("train", "test")}

    def narrow(build, backbone, classes, **options):
        network = build(backbone, classes, **options | places)
        network.roi_heads.box_head = TwoMLPHead(backbone.out_channels * 7**2, 64)
        network.roi_heads.box_predictor = FastRCNNPredictor(64, classes)
        if build is MaskRCNN:
            network.roi_heads.mask_head = MaskRCNNHeads(backbone.out_channels, (32,), 1)
            network.roi_heads.mask_predictor = MaskRCNNPredictor(32, 32, classes)
        return network

    for build in (FasterRCNN, MaskRCNN):
        monkeypatch.setattr(detection, build.__name__, partial(narrow, build))
