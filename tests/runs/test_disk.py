"""Disks that are full, may not be written or are gone in the midst of it: a line, exit code 1, nothing half written."""

import errno
import json
import os
import resource
import shutil
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from labelled_pictures import write_pictures
from PIL import Image

from convspark import files
from convspark.cli.main import main
from convspark.runs.callbacks import Checkpoints, Metrics
from convspark.runs.checkpoints import damage
from convspark.runs.folder import RunFolder

QUICK = "--size 32 --batch-size 4 --epochs 2 --workers 0 --device cpu --precision fp32".split()
OFTEN = ["--checkpoint-minutes", "1e-9"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_pictures(root / "labelled", 4, side=32)
    rng = np.random.default_rng(0)
    images, things = [], []
    for folder in ("p", "m"):
        (root / folder).mkdir()
    for i in range(8):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "p" / f"{i}.png")
        Image.fromarray(pixels[..., 0] // 128 * 255).save(root / "m" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png"})
        things.append({"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 20, 20]})
    content = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "thing"}]}
    (root / "coco.json").write_text(json.dumps(content))
    return root


def line(command, data, out):
    labelled, boxes, network = str(data / "labelled"), str(data / "coco.json"), "random:test_resnet"
    pictures = ["--images", str(data / "p")]
    comparison = "--seeds 1 --fractions 1 --epochs 1 --size 32 --batch-size 4 --workers 0 --device cpu".split()
    rest = {
        "pretrain": [labelled, "--model", "test_resnet", "--decoder-width", "32", *QUICK, "--size", "64", *OFTEN],
        "finetune": [network, labelled, *QUICK, *OFTEN],
        "segment": [network, *pictures, "--masks", str(data / "m"), *QUICK, *OFTEN],
        "detect": [network, *pictures, "--train", boxes, "--val", boxes, *QUICK, *OFTEN],
        "compare": [network, labelled, *comparison],
        "embed": [network, labelled, "--size", "32", "--workers", "0", "--device", "cpu"],
        "export": ["random:resnet18", "--to", "torchvision"],
    }
    return [command, *rest[command], "--out", str(out)]


@contextmanager
def room_for(size):
    """Files of this process can be no larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    compiles, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = compiles


def half_written(folder):
    return [path for path in folder.rglob(".*") if "-part" in path.name]


@pytest.mark.parametrize("command", ["pretrain", "finetune", "segment", "detect", "compare", "embed", "export"])
def test_a_full_disk(command, data, tmp_path, capfd):
    out = tmp_path / {"embed": "f.npz", "export": "w.pth"}.get(command, "run")
    with room_for(1000 if command == "embed" else 100_000):
        assert main(line(command, data, out)) == 1
    said = capfd.readouterr().err
    assert "error: File too large" in said and "Traceback" not in said and str(out) in said
    assert not half_written(tmp_path)
    if command in ("embed", "export"):
        assert not out.exists()
        return
    assert f"{command} --resume {out}" in said
    if command in ("finetune", "segment"):
        assert main([command, "--resume", str(out)]) == 0


def failing(monkeypatch, number, after):
    """The disk fails from the `after`-th file on that is written as a whole."""
    written = []

    def fsync(descriptor):
        written.append(descriptor)
        if len(written) >= after:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fsync)


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, *(pytest.param(n, marks=pytest.mark.slow) for n in (errno.EROFS, errno.EIO))]
)
def test_in_the_midst_the_last_good_checkpoint_stays(number, data, tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        failing(patched, number, after=12)
        assert main(line("pretrain", data, out)) == 1
    said = capfd.readouterr().err
    assert f"error: {os.strerror(number)}: {out}" in said and f"convspark pretrain --resume {out}" in said
    folder = RunFolder(out)
    assert any(damage(path) is None for path in folder.checkpoints.glob("*.ckpt")) and not half_written(out)
    whole = tmp_path / "whole"
    assert main(["pretrain", "--resume", str(out)]) == 0 and main(line("pretrain", data, whole)) == 0
    weights = "export/model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.parametrize("where", [Metrics, Checkpoints])
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_run_folder_that_is_gone(command, where, data, tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    hook = "on_train_epoch_end"
    before = getattr(where, hook)

    def gone(self, *args):
        if out.is_dir():
            shutil.move(out, tmp_path / "elsewhere")
        before(self, *args)

    monkeypatch.setattr(where, hook, gone)
    assert main(line(command, data, out)) == 1
    said = capfd.readouterr().err
    assert f"the run folder {out} is gone" in said and f"convspark {command} --resume {out}" in said
    assert "Traceback" not in said and not out.exists()


def test_what_killed_processes_left_is_swept_away_by_the_next_start(data, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / ".config-part999999999.yaml").write_text("torn")
    shutil.rmtree(out / "checkpoints")
    assert main(line("finetune", data, out)) == 0  # a start that was killed is no run
    ours = out / f".notes-part{os.getpid()}.txt"
    for path in (out / "checkpoints" / ".epoch_4-part999999999.ckpt", out / ".log\n-part999999999.txt", ours):
        path.write_text("torn")
    (out / ".export-part999999999").mkdir()
    (out / ".party").mkdir()
    assert main(["finetune", "--resume", str(out)]) == 0
    assert {path.name for path in out.rglob(".*")} == {".party", ours.name}
