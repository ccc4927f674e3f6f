"""`scan`: what is found in a folder of which everything is known."""

import json
import shlex
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from convspark import scan
from convspark.cli.main import main
from convspark.cli.pretrain import command
from convspark.data import hold_out, list_pictures
from convspark.data.duplicates import is_blank, near_duplicates, thumbnail
from convspark.errors import DataError, UsageError
from convspark.measure.advice import advise
from convspark.measure.choices import Known, choose
from convspark.runs.machine import Machine


def picture(seed: int, size: tuple[int, int] = (150, 120), grey: bool = False) -> Image.Image:
    """Smooth, of (width, height)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6) if grey else (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        picture(i).save(root / f"{i}.png")
    picture(0).resize((75, 60)).save(root / "small.jpg", quality=60)  # looks like 0.png
    Image.eval(picture(1), lambda value: 20 + value * 9 // 10).save(root / "bright.png")  # and this like 1.png
    (root / "twin.png").write_bytes((root / "2.png").read_bytes())
    (root / "cut.png").write_bytes((root / "3.png").read_bytes()[:-2000])
    picture(9, grey=True).save(root / "grey.tif")
    Image.new("RGB", (200, 40), (10, 20, 30)).save(root / "blank.bmp")
    return root


def test_what_is_there(folder: Path, tmp_path: Path) -> None:
    sheet, keep = tmp_path / "sheet.png", tmp_path / "keep.txt"
    report = scan(str(folder), out=str(sheet), keep=str(keep), workers=2)
    assert report.pictures == 11
    assert report.formats == {"PNG": 8, "JPEG": 1, "TIFF": 1, "BMP": 1}
    assert report.bands == {3: 10, 1: 1} and report.kinds == {"uint8": 11} and report.grey == 1
    assert report.sizes == {"height": [40, 120, 120], "width": [75, 150, 200], "short": [40, 120, 120]}
    assert [(Path(path).name, reason[:9]) for path, reason in report.unreadable] == [("cut.png", "truncated")]
    assert [[Path(path).name for path in group] for group in report.duplicates] == [["2.png", "twin.png"]]
    groups = sorted([Path(path).name for path in group] for group in report.near_duplicates)
    assert groups == [["0.png", "small.jpg"], ["1.png", "bright.png"]]
    assert [Path(path).name for path in report.blank] == ["blank.bmp"]
    kept = {Path(path).name for path in list_pictures(keep)}
    assert kept == {*(f"{i}.png" for i in range(6)), "grey.tif", "blank.bmp"}
    with Image.open(sheet) as page:
        pixels = np.asarray(page)
    assert page.size[0] > 8 * 176 and (pixels == (10, 20, 30)).all(2).sum() == 176 * 35  # the blank one, 200 x 40
    text = str(report)
    assert "11 pictures in" in text and str(keep) in text and "0.png = " in text


def test_values_are_numpys(folder: Path, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes((folder / f"{i}.png").read_bytes())
    report = scan(str(tmp_path), out=None)
    every = np.stack([np.asarray(picture(i)) for i in range(3)]).reshape(-1, 3) / 255
    np.testing.assert_allclose(report.statistics["mean"], every.mean(0), rtol=1e-6)
    np.testing.assert_allclose(report.statistics["std"], every.std(0), rtol=1e-6)
    assert report.statistics["maximum"] == (every.max(0) * 255).round().tolist()
    assert report.sheet is None and not list(tmp_path.glob("*scan*"))


def test_bands_of_any_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    scenes = rng.normal(3000, 500, (4, 40, 50, 6)).astype(np.float32)
    scenes[:, :20, :20] += np.arange(4).reshape(4, 1, 1, 1) * 1000
    np.save(tmp_path / "scenes.npy", scenes)
    np.save(tmp_path / "other.npy", rng.normal(size=(40, 50)))
    sheet = str(tmp_path / "sheet.png")
    assert main(["scan", str(tmp_path), "--json", "-o", sheet]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bands"] == {"6": 4, "1": 1} and facts["others"] == 1 and facts["statistics"]["bands"] == 6
    np.testing.assert_allclose(facts["statistics"]["low"], np.quantile(scenes.reshape(-1, 6), 0.001, axis=0), rtol=1e-5)
    flags = {choice["flag"]: choice["value"] for choice in facts["advice"]}
    assert flags["channels"] == 6 and flags["stats"] == "auto" and flags["size"] == 40
    assert main(["scan", str(tmp_path), "-o", sheet]) == 0
    assert "1 picture of other bands cannot be read with these" in capsys.readouterr().out


def test_opacity_is_no_channel_to_train_on(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 65536, (40, 50, 2), np.uint16)
    picture[..., 1] = 65535
    tifffile = pytest.importorskip("tifffile", reason="tifffile writes the picture")
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="minisblack", extrasamples=["unassalpha"])
    report = scan(str(tmp_path), out=None)
    assert report.bands == {2: 1} and report.grey == 1 and report.statistics["bands"] == 1
    assert {choice.flag: choice.value for choice in report.advice}["channels"] == 1
    np.testing.assert_allclose(report.statistics["maximum"], [picture[..., 0].max()])


@pytest.mark.parametrize(
    ("size", "flags"),
    [
        ((480, 640), {"size": 224}),
        ((150, 130), {"size": 128}),
        ((64, 64), {"size": 64, "model-args": {"output_stride": 16}}),
        ((20, 30), {"size": 32, "model-args": {"output_stride": 8}}),
        ((3000, 4000), {"size": 224, "crops-per-image": 4}),
    ],
)
def test_advice_is_what_pretrain_takes(size: tuple[int, int], flags: dict[str, Any]) -> None:
    machine = Machine("cuda", 16, 108, 40 << 30, is_bf16=True)
    for bands, is_plain, is_grey in ((3, True, False), (3, True, True), (1, False, True), (13, False, False)):
        advice = advise([size] * 9, bands, machine, is_plain=is_plain, is_grey=is_grey, pictures=100)
        assert {choice.flag: choice.value for choice in advice}.items() >= flags.items()
        line = shlex.join(["FOLDER", *(word for choice in advice for word in (f"--{choice.flag}", choice.text))])
        settings = command().parse(shlex.split(line))
        assert settings.channels == (1 if is_grey else bands)
        assert settings.stats == (None if is_plain else "auto")
        assert all(getattr(settings, flag.replace("-", "_")) == value for flag, value in flags.items())
        assert all(choice.why for choice in advice)


def test_advice_counts_the_pictures_that_are_trained_on_and_their_crops() -> None:
    machine = Machine("cpu", 2, 0, 0, is_bf16=True)
    for side in (200, 3000):
        advice = advise([(side, side)] * 9, 3, machine, is_plain=True, is_grey=False, pictures=514)
        flags = {choice.flag: choice.value for choice in advice}
        crops = flags.get("crops-per-image", 1)
        assert crops == (4 if side == 3000 else 1)
        trained, _ = hold_out(range(514))  # 504, as `pretrain` has them
        known = Known(len(trained), side, side * side, crops=crops)
        assert flags.items() >= {"batch-size": 64, "epochs": choose(known, machine).settings["epochs"]}.items()
        steps = flags["epochs"] * -(-len(trained) * crops // 64)
        assert 4000 <= steps < 4200 or flags["epochs"] == 400, flags


def test_of_doubles_one_is_kept_that_pretrain_can_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"b{number}.png")
    grey = Image.open(tmp_path / "b0.png").convert("L")
    np.save(tmp_path / "a.npy", np.asarray(grey, dtype=np.uint16) * 257)  # the first of the two, of other bands
    report = scan(str(tmp_path), out=None, keep=str(tmp_path / "keep.txt"))
    assert [[Path(path).name for path in group] for group in report.near_duplicates] == [["a.npy", "b0.png"]]
    kept = (tmp_path / "keep.txt").read_text().splitlines()
    assert [Path(path).name for path in kept] == ["b0.png", "b1.png", "b2.png"]


def test_the_hash_is_of_the_cosine_transform() -> None:
    grey = picture(3, (32, 32), grey=True)
    number, thumb = thumbnail(grey)
    waves = dctn(np.asarray(grey, dtype=float))[:8, :8].reshape(-1)
    # SciPy's transform doubles each wave alike along both axes, so that none changes its place in order.
    assert number == int("".join(str(int(wave > np.median(waves[1:]))) for wave in waves), 2)
    np.testing.assert_allclose(thumb.astype(int), np.asarray(grey.reduce(2)).astype(int), atol=1)
    assert not is_blank(thumb) and is_blank(np.full((16, 16), 7, np.uint8))


def test_near_duplicates_are_all_pairs_within_seven_bits() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 600, np.uint64)
    for place in range(100):  # these with 0 to 11 other bits
        bits = rng.choice(64, place % 12, replace=False).astype(np.uint64)
        hashes[300 + place] = hashes[place] ^ np.bitwise_xor.reduce(np.uint64(1) << bits, initial=np.uint64(0))
    for byte in range(8):  # one bit in each byte but this one
        hashes[400 + byte] = hashes[200 + byte] ^ np.uint64(0x0101010101010101 & ~(255 << 8 * byte))
    thumb = rng.integers(0, 256, (1, 16, 16), np.uint8)
    pairs = near_duplicates(hashes.tolist(), np.repeat(thumb, 600, 0))
    expected = [[place, 300 + place] for place in range(100) if place % 12 <= 7]
    assert pairs == expected + [[200 + byte, 400 + byte] for byte in range(8)]
    # Those that do not look alike are none, whatever their hashes; nor are blank ones.
    thumbs = rng.integers(0, 256, (600, 16, 16), np.uint8)
    thumbs[300] = 255 - thumbs[0]
    thumbs[5] = thumbs[305] = 3
    assert near_duplicates(hashes.tolist(), thumbs) == []


def test_what_cannot_be_scanned(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.png"):
        scan(str(tmp_path), out="x.jpg")
    with pytest.raises(UsageError, match="images are missing"):
        scan()
    with pytest.raises(UsageError, match="workers is -1"):
        scan(str(tmp_path), workers=-1)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the files can be read: 1\n.*empty"):
        scan(str(tmp_path), out=str(tmp_path / "s.png"))


def test_no_file_of_a_user_is_written_over(folder: Path, tmp_path: Path) -> None:
    (linked := tmp_path / "linked").symlink_to(folder)
    archive, listed = tmp_path / "a.tar", tmp_path / "list.txt"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder / "1.png", "1.png")
    listed.write_text(f"{folder / '1.png'}\n")
    files = [archive, listed, *sorted(folder.iterdir())]
    before = [file.read_bytes() for file in files]
    for images, keep, out in (
        (folder, folder / "1.png", None),
        (linked, folder / "1.png", None),
        (archive, archive, None),
        (listed, listed, None),
        (folder, None, folder / "1.png"),
        (listed, None, folder / "2.png"),  # no picture of this scan, and still no sheet
        (folder, tmp_path / "both.png", tmp_path / "both.png"),
    ):
        with pytest.raises(UsageError, match=r"one of the pictures or a file|no sheet of an earlier scan|keep and out"):
            scan(images, keep=keep, out=out)  # type: ignore[arg-type]
    assert [file.read_bytes() for file in files] == before and not (tmp_path / "both.png").exists()
    keep, out = tmp_path / "keep.txt", folder / "sheet.png"
    first, second = (
        scan(str(folder), keep=str(keep), out=str(out)) for _ in range(2)
    )  # what a scan wrote, it replaces
    assert first.pictures == second.pictures
    out.unlink()
