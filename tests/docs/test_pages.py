"""Every command of the README and the pages under docs/ is understood, and runs unless it says what it needs."""

import json
import re
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled_pictures import write_pictures
from pages import PAGES, blocks, convspark_commands, importable, meanings_forgotten, run_page
from PIL import Image, ImageDraw

from convspark.cli import arguments
from convspark.cli.main import COMMANDS, main

# So that each is over within seconds. Other settings are the page's, or the defaults.
SMALL = ["--size", "64", "--workers", "0", "--device", "cpu"]
SHORT = {
    "pretrain": [*SMALL, "--epochs", "1", "--batch-size", "4"],
    "finetune": [*SMALL, "--epochs", "1"],
    "compare": [*SMALL, "--epochs", "1", "--seeds", "1", "--fractions", "1"],
    "detect": [*SMALL, "--epochs", "1", "--batch-size", "2"],
    "segment": [*SMALL, "--epochs", "1"],
    "probe": [*SMALL, "--seeds", "1"],
    "embed": SMALL,
    "bench": ["--size", "64", "--batch-size", "2", "--repeats", "1"],
    "figures": ["--size", "64"],
}


class _UnderstoodError(Exception):
    """A command line was parsed, and is not run."""


@pytest.fixture
def only_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = arguments.Command.parse

    def stop(self: arguments.Command, words: list[str]) -> None:
        parse(self, words)
        raise _UnderstoodError

    monkeypatch.setattr(arguments.Command, "parse", stop)


@pytest.mark.parametrize("page", [page for page in PAGES if any(convspark_commands(page))], ids=lambda page: page.name)
def test_every_command_is_understood(page: Path, only_parsed: None) -> None:
    for words in convspark_commands(page):
        if words[0] in COMMANDS:
            with pytest.raises(_UnderstoodError):
                print(words, main(words))


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """Of each command."""
    made = {name: import_module(module).command() for name, (module, _) in COMMANDS.items()}
    actions = {name: {flag for a in one.parser._actions for flag in a.option_strings} for name, one in made.items()}
    return {
        name: known | {"--trust-code", *(f"--{key.replace('_', '-')}" for key in made[name]._positional)}
        for name, known in actions.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_of_commands_in_sentences_exist(page: Path, flags: dict[str, set[str]]) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for name, rest in re.findall(rf"`(?:convspark\s+)?({'|'.join(COMMANDS)})\s([^`]*)`", prose):
        named = set(re.findall(r"(?<![\w-])--?[a-z][a-z_-]*", rest))
        assert named <= flags[name], f"{name} {rest}"


def test_no_command_stands_in_a_comment_or_is_broken_in_two() -> None:
    named = re.compile(rf"(?<!`)\bconvspark\s+(?:{'|'.join(COMMANDS)})\b")
    for page in PAGES:
        for block in blocks(page):
            if block.language == "sh":
                understood = [" ".join(words) for words in block.commands]
                commands = [line for line in understood if named.search(line)]
                assert len(commands) == len(named.findall(block.text)), f"{page.name}:\n{block.text}"


def test_blocks_are_fenced_so_that_they_are_seen() -> None:
    for page in PAGES:
        prose, fenced = [], False
        for line in page.read_text().splitlines():
            fenced ^= line.startswith("```")
            prose += [] if fenced else [line]
        assert not [line for line in prose if line.startswith(("    convspark", "    python", "    pip"))], page.name


def draw(root: Path, count: int) -> Path:
    """Pictures of discs, their masks, and their boxes: PICTURES, MASKS, train.json and val.json."""
    rng = np.random.default_rng(0)
    images, boxes = [], []
    for folder in ("PICTURES", "MASKS"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        picture = Image.fromarray(rng.integers(0, 90, (96, 104, 3), dtype=np.uint8))
        mask = Image.new("L", picture.size)
        x, y = (int(v) for v in rng.integers(8, 50, 2))
        for canvas, colour in ((picture, "gold"), (mask, 255)):
            ImageDraw.Draw(canvas).ellipse((x, y, x + 32, y + 32), fill=colour)
        picture.save(root / "PICTURES" / f"{number}.jpg")
        mask.save(root / "MASKS" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": picture.width, "height": picture.height})
        outline = [[x, y, x + 32, y, x + 32, y + 32, x, y + 32]]
        entry = {"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, 33, 33], "area": 1089}
        boxes.append(entry | {"segmentation": outline, "iscrowd": 0})
    for name, part in (("train", slice(0, count // 2)), ("val", slice(count // 2, count))):
        content = {"images": images[part], "annotations": boxes[part], "categories": [{"id": 1, "name": "disc"}]}
        (root / f"{name}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name, small."""
    import tifffile

    root = draw(tmp_path_factory.mktemp("workshop"), 12)
    for part, count in (("train", 4), ("val", 2), ("test", 2)):
        write_pictures(root / "LABELLED" / part, count, seed=count)
    shutil.copy(root / "PICTURES" / "0.jpg", root / "PICTURE.jpg")
    shutil.copy(root / "PICTURES" / "1.jpg", root / "OTHER.jpg")
    rng = np.random.default_rng(0)
    for folder, shape in (("SCENES", (8, 72, 72)), ("CELLS", (72, 72))):
        (root / folder).mkdir()
        for number in range(6):
            values = rng.integers(100, 4000, shape, dtype=np.uint16)
            tifffile.imwrite(root / folder / f"{number}.tif", values, photometric="minisblack")
    (root / "package").mkdir()
    (root / "package" / "module.py").write_text(
        "import timm\n\n\ndef factory():\n    return timm.create_model('test_resnet', num_classes=0)\n"
    )
    import timm

    torch.save(timm.create_model("resnet18").state_dict(), root / "weights.pth")
    tiny = ["--model", "test_resnet", *SHORT["pretrain"]]
    first = str(root / "runs" / "first")
    pictures, labelled = str(root / "PICTURES"), str(root / "LABELLED")
    assert main(["pretrain", pictures, "--out", first, *tiny]) == 0
    assert main(["pretrain", pictures, "--out", str(root / "runs" / "second"), *tiny, "--seed", "1"]) == 0
    for command, name, data in (
        ("finetune", "classifier", [labelled]),
        ("segment", "segmenter", ["--images", pictures, "--masks", str(root / "MASKS")]),
        (
            "detect",
            "detector",
            ["--images", pictures, "--train", str(root / "train.json"), "--val", str(root / "val.json")],
        ),
    ):
        assert main([command, first, *data, "--out", str(root / "runs" / name), *SHORT[command]]) == 0
    for name, target in (
        ("RUN", "runs/first"),
        ("WEIGHTS", "runs/first"),
        ("DATA", "LABELLED"),
        ("IMAGES", "PICTURES"),
    ):
        (root / name).symlink_to(target)
    new = root / "NEW"
    for old, name in (("PICTURES", "pictures"), ("LABELLED", "labelled"), ("MASKS", "masks")):
        shutil.copytree(root / old, new / name)
    for name in ("train.json", "val.json"):
        shutil.copy(root / name, new)
    return root


@pytest.fixture
def at_work(workshop: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the workshop for one page, whose meanings are forgotten afterwards."""
    folder = tmp_path / "workshop"
    shutil.copytree(workshop, folder, symlinks=True)
    with importable(folder), meanings_forgotten():
        yield folder


RUN_HERE = [
    page
    for page in PAGES
    if any(b.language in ("sh", "python") and not b.needs for b in blocks(page))
    and not page.stem.startswith(("example-", "tutorial"))  # on data of their own: test_guides.py
]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: page.name)
def test_every_block_runs(page: Path, at_work: Path) -> None:
    if "--out runs/first" in page.read_text():  # the page makes it itself
        shutil.rmtree(at_work / "runs" / "first")
    run_page(page, at_work, SHORT)
