"""The guides run as they are printed, with a small part of the public data that they speak of."""

import gzip
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as coding
from pages import ROOT, Block, run_page
from PIL import Image

DOCS = ROOT / "docs"
SHORT = {command: ["--epochs", "1"] for command in ("pretrain", "finetune", "detect", "segment", "compare")}


@pytest.fixture
def unpacked(shared_data_dir, tmp_path) -> Iterator[object]:
    """Unpacks an archive of pictures; skips where it is absent. What it is unpacked to is removed afterwards."""
    place = tmp_path / "unpacked"

    def unpack(name: str) -> Path:
        file = shared_data_dir / "data" / f"{name}.tar"
        if not file.is_file():
            pytest.skip(f"no {file}")
        with tarfile.open(file) as archive:
            archive.extractall(place, filter="data")
        return place / name

    yield unpack
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def here(tmp_path) -> Path:
    """An empty folder to run a page in."""
    (tmp_path / "page").mkdir()
    return tmp_path / "page"


def test_commands_of_a_block():
    text = '# a comment\nconvspark scan a \\\n    -o "b c.png"  # why\n\nconvspark completion bash > "a file"\n'
    block = Block("sh", text, None)
    assert block.commands == [["convspark", "scan", "a", "-o", "b c.png"], ["convspark", "completion", "bash"]]


def test_a_page_is_run_in_its_order(here, capsys):
    page = here / "page.md"
    page.write_text(
        "```python\nx = 1\n```\n<!-- needs: a moon -->\n```sh\nconvspark moon\n```\n```text\nconvspark no\n```\n"
        "```sh\nconvspark --version\n```\n```python\nassert x == 1\nopen('here', 'w').close()\n```\n"
    )
    run_page(page, here, {})
    assert "convspark " in capsys.readouterr().out and (here / "here").is_file()
    page.write_text("```sh\nconvspark moon\n```\n")
    with pytest.raises(AssertionError, match="convspark moon"):
        run_page(page, here, {})
    page.write_text("```python\nassert not 'so'\n```\n")
    with pytest.raises(AssertionError):
        run_page(page, here, {})


@pytest.mark.slow
def test_tutorial(unpacked, here):
    smears = unpacked("bccd")
    lists = smears / "ImageSets" / "Main"
    for part, count in (("train", 20), ("val", 4)):
        names = (lists / f"{part}.txt").read_text().split()[:count]
        for name in [*names, "BloodImage_00007", "BloodImage_00010"]:
            for file in (f"JPEGImages/{name}.jpg", f"Annotations/{name}.xml", f"ImageSets/Main/{part}.txt"):
                (here / "smears" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(smears / file, here / "smears" / file)
        (here / "smears" / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
    run_page(DOCS / "tutorial.md", here, SHORT)
    results = json.loads((here / "runs" / "detector" / "results.json").read_text())
    assert set(results["by_class"]) == {"Platelets", "RBC", "WBC"}


@pytest.mark.slow
def test_medical(unpacked, here):
    volumes = unpacked("hippocampus3d")
    for file in sorted((volumes / "train" / "images").iterdir())[:10]:
        for kind in ("images", "labels"):
            (here / "volumes" / kind).mkdir(parents=True, exist_ok=True)
            values = _nifti(volumes / "train" / kind / file.name)
            np.save(here / "volumes" / kind / file.name.replace(".nii.gz", ".npy"), values)
    run_page(DOCS / "example-medical.md", here, SHORT)
    results = json.loads((here / "runs" / "hippocampus" / "results.json").read_text())
    assert len(results["iou_by_class"]) == 3
    assert (here / "encoder3d.pth").is_file()


@pytest.mark.slow
def test_satellite(unpacked, here):
    stacks = unpacked("multiband")
    for kind in ("landsat", "sentinel"):
        (here / "scenes" / kind).mkdir(parents=True)
    for file in stacks.glob("LE7*.gtif"):
        shutil.copy(file, here / "scenes" / "landsat")
    shutil.copy(stacks / "sentinel2_5scenes_13band.npy", here / "scenes" / "sentinel" / "scenes.npy")
    run_page(DOCS / "example-satellite.md", here, SHORT)
    config = json.loads((here / "runs" / "scenes" / "export" / "config.json").read_text())
    assert config["pixels"]["bands"] == [1, 2, 3, 4, 5, 6, 7] and config["model_args"]["in_chans"] == 7


@pytest.mark.slow
def test_microscope(unpacked, here):
    _as_published(unpacked("dsb_fluo"), here / "stage1_train", 28)
    run_page(DOCS / "example-microscope.md", here, SHORT)
    results = json.loads((here / "runs" / "nuclei" / "results.json").read_text())
    assert set(results["iou_by_class"]) == {"background", "nucleus"}


@pytest.mark.slow
def test_factory(here):
    pytest.importorskip("skimage")
    run_page(DOCS / "example-factory.md", here, SHORT)
    results = json.loads((here / "runs" / "faults" / "results.json").read_text())
    assert results["pictures"] == 150


def _nifti(file: Path) -> np.ndarray:
    """The voxels of a NIfTI-1 file, as they are stored, without nibabel."""
    content = gzip.decompress(file.read_bytes())
    dims = np.frombuffer(content, "<i2", 8, 40)
    kind = {2: "<u1", 16: "<f4", 64: "<f8"}[int(np.frombuffer(content, "<i2", 1, 70)[0])]
    shape = [int(n) for n in dims[1 : 1 + dims[0]]]
    start = int(np.frombuffer(content, "<f4", 1, 108)[0])
    return np.frombuffer(content, kind, int(np.prod(shape)), start).reshape(shape, order="F")


def _as_published(source: Path, target: Path, most: int) -> None:
    """A folder for each picture, in it the picture in RGBA and a mask for each nucleus."""
    coco = json.loads((source / "coco" / "instances_train.json").read_text())
    small = [image for image in coco["images"] if max(image["height"], image["width"]) <= 256]
    for image in small[:most]:
        name = Path(image["file_name"]).stem
        for kind in ("images", "masks"):
            (target / name / kind).mkdir(parents=True)
        picture = Image.open(source / "train" / f"{name}.png").convert("RGBA")
        picture.save(target / name / "images" / f"{name}.png")
        own = [entry for entry in coco["annotations"] if entry["image_id"] == image["id"]]
        for number, entry in enumerate(own):
            code = entry["segmentation"]
            if isinstance(code["counts"], list):
                code = coding.frPyObjects(code, *code["size"])
            Image.fromarray(coding.decode(code) * 255).save(target / name / "masks" / f"{number}.png")
