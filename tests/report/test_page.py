"""The page about runs: one file, nothing fetched, nothing of a name obeyed, whatever the folders hold."""

import json
import os
import re
import shutil
import struct
import subprocess
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convspark.cli.main import main
from convspark.cli.report import KNOWN
from convspark.errors import UsageError
from convspark.files import held
from convspark.report import inline, page
from convspark.report.page import report, write_page, write_page_at_last
from convspark.runs.folder import RunFolder

METRICS = "epoch,step,train_loss,held_out_loss,learning_rate\n1,10,0.9,0.95,0.1\n2,20,0.7,,0.2\n3,30,0.6,0.68,0.1\n"
WATCH = "epoch,step,linear,linear_random,rank,seconds\n0,0,0.31,0.31,4,1\n3,30,0.5,0.31,9,1\n"


def make(folder: Path, kind: str = "pretrain", **settings) -> Path:
    """A run folder after three epochs, with two pictures."""
    (folder / "pictures").mkdir(parents=True)
    settings = {"images": "/data/pictures", "model": "resnet50", "epochs": 3, "mask_ratio": 0.6, "size": 224} | settings
    lines = [f"kind: {kind}", *(f"{name}: {json.dumps(value)}" for name, value in settings.items())]
    (folder / "config.yaml").write_text("\n".join(lines) + "\n")
    (folder / "metrics.csv").write_text(METRICS)
    (folder / "watch.csv").write_text(WATCH)
    (folder / "environment.json").write_text(
        json.dumps({"command": ["convspark", kind, "--size", "224"], "device": "CPU"})
    )
    for epoch in (1, 3):
        Image.new("RGB", (60, 40), (80 * epoch, 0, 0)).save(folder / "pictures" / f"epoch_{epoch}.png")
    return folder


class Page(HTMLParser):
    """The elements of a page, and its text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements, self.text, self.scripts = [], [], []
        self._within: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._within = [tag] if tag in ("script", "style") else []

    def handle_endtag(self, tag):
        self._within = []

    def handle_data(self, data):
        (self.scripts if self._within else self.text).append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def charts(self):
        return json.loads(next(text for text in self.scripts if text.startswith("[")))

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def test_it_holds_the_curves_the_settings_and_the_pictures(tmp_path):
    run = make(tmp_path / "run", mask_ratio=0.5)
    file, count = report([str(run)], KNOWN)
    assert file == run / "report.html" and count == 1
    shown = Page(file)
    loss = next(chart for chart in shown.charts if chart["title"] == "Loss")
    assert {line["label"]: line["points"] for line in loss["lines"]} == {
        "training": [[1, 0.9], [2, 0.7], [3, 0.6]],
        "held out": [[1, 0.95], [3, 0.68]],
    }
    features = next(chart for chart in shown.charts if "features" in chart["title"])
    assert {line["label"]: line["style"] for line in features["lines"]} == {"linear": "", "linear, random": "dotted"}
    assert len(shown.of("figure")) == len(shown.charts) == 4
    assert [picture["data-epoch"] for picture in shown.of("img")] == ["1", "3"] and "hidden" in shown.of("img")[0]
    asked, others = shown.words.split("All others")
    assert "mask_ratio 0.5 (default 0.6)" in asked and "size 224" in asked  # typed, though it is the default
    assert "epochs 3" in others and "convspark pretrain --size 224" in asked  # epochs were chosen, not typed
    assert f"convspark pretrain --resume {run}" in others  # it died


def test_nothing_is_fetched(tmp_path):
    shown = Page(report([str(make(tmp_path / "run"))], KNOWN)[0])
    for tag, attributes in shown.elements:
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    text = (tmp_path / "run" / "report.html").read_text()
    assert "default-src 'none'" in text and "@import" not in text and "url(http" not in text and "fetch(" not in text
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not a place


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


def test_names_with_markup_are_names(tmp_path):
    run = make(tmp_path / "run<b>&\"'", model=EVIL, images=EVIL, out_of=EVIL)
    (run / "warnings.csv").write_text('epoch,step,kind,text\n1,1,<i>,"<script>alert(3)</script>"\n')
    (run / "environment.json").write_text(json.dumps({"command": ["convspark", EVIL], "device": EVIL}))
    (run / "export").mkdir()
    Image.new("RGB", (8, 8)).save(run / "<u>.png")
    shown = Page(report([str(run)], KNOWN)[0])
    assert len(shown.of("script")) == 2 and not shown.of("b") and not shown.of("i") and not shown.of("u")
    assert all(picture["src"].startswith("data:") and "onerror" not in picture for picture in shown.of("img"))
    assert EVIL in shown.words and "<script>alert(3)</script>" in shown.words


def test_names_with_markup_in_results_and_labels_of_curves(tmp_path):
    runs = []
    for name in ("a</x>", "b"):
        run = make(tmp_path / name.replace("/", "_"), "finetune")
        (run / "results.json").write_text(json.dumps({"top1": 0.5, "recall": {EVIL: 0.25}}))
        runs.append(str(run))
    shown = Page(report(runs, KNOWN, out=str(tmp_path / "page.html"))[0])
    assert len(shown.of("script")) == 2 and f"{EVIL} 25.0 %" in shown.words
    assert {line["label"] for line in shown.charts[0]["lines"]} >= {"a<_x>: training", "b: training"}


def test_several_runs_have_what_differs_on_top(tmp_path):
    runs = [make(tmp_path / "x" / "run"), make(tmp_path / "y" / "run", mask_ratio=0.75)]
    file, count = report([str(run) for run in runs], KNOWN, out=str(tmp_path / "page.html"))
    shown = Page(file)
    before, after = shown.words.split("Curves Over the epochs")
    assert count == 2 and "mask_ratio 0.6 0.75" in before and "model" not in before.split("What differs")[1]
    assert {line["colour"] for line in shown.charts[0]["lines"]} == {0, 1}
    assert "x/run: training" in {line["label"] for line in shown.charts[0]["lines"]} and "x/run" in after
    assert len(shown.of("input")) == 2


def test_a_folder_of_runs_stands_for_them(tmp_path):
    make(tmp_path / "a"), make(tmp_path / "b")
    assert report([str(tmp_path)], KNOWN, out=str(tmp_path / "page.html"))[1] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "runs are missing"),
        (["MISSING"], "no run folder"),
        (["EMPTY"], "holds none"),
        (["RUN", "-o", "page.pdf"], "ends in .html"),
        (["RUN", "--every", "0"], "one second"),
    ],
)
def test_what_cannot_be_used(tmp_path, capsys, arguments, words):
    (tmp_path / "empty").mkdir()
    places = {"MISSING": tmp_path / "missing", "EMPTY": tmp_path / "empty", "RUN": make(tmp_path / "run")}
    assert main(["report", *(str(places.get(word, word)) for word in arguments)]) == 2
    assert words in capsys.readouterr().err


def test_more_runs_than_colours(tmp_path):
    with pytest.raises(UsageError, match="at most 8"):
        report([str(make(tmp_path / str(number))) for number in range(9)], KNOWN, out=str(tmp_path / "page.html"))


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 50, b"\xff\xfe", b"{", b"[1]", b"epoch,step,train_loss\n1,x", b"a: [1"]
)
@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "metrics.csv",
        "watch.csv",
        "warnings.csv",
        "environment.json",
        "results.json",
        "pictures/epoch_1.png",
    ],
)
def test_torn_folders_have_a_page(tmp_path, name, content):
    run = make(tmp_path / "run", "finetune" if name == "results.json" else "pretrain")
    (run / name).write_bytes(content)
    write_page([run], tmp_path / "page.html", KNOWN)
    assert "resnet50" in Page(tmp_path / "page.html").words or name == "config.yaml"


@pytest.mark.parametrize(
    "results",
    [
        {"scores": 3},
        {"scores": [{"arm": 1}]},
        {"verdict": "x", "differences": [{}]},
        {"verdict": [3], "scores": [None]},
    ],
)
def test_comparisons_of_other_versions_have_one_too(tmp_path, results):
    run = make(tmp_path / "run", "compare")
    (run / "config.yaml").rename(run / "compare.yaml")
    (run / "compare.json").write_text(json.dumps(results))
    write_page([run], tmp_path / "page.html", KNOWN)


def test_pictures_are_made_to_fit(tmp_path, monkeypatch):
    run, rng = make(tmp_path / "run"), np.random.default_rng(0)
    for epoch in range(4, 24):
        noise = Image.fromarray(rng.integers(0, 256, (300, 500, 3), dtype=np.uint8))
        noise.save(run / "pictures" / f"epoch_{epoch}.png")
    monkeypatch.setattr(page, "_PICTURES", 300_000)
    write_page([run], tmp_path / "page.html", KNOWN)
    assert (tmp_path / "page.html").stat().st_size < 300_000 + 80_000  # the rest is text
    monkeypatch.setattr(page, "_PICTURES", 4_000_000)
    write_page([run], tmp_path / "page.html", KNOWN)
    shown = Page(tmp_path / "page.html").of("img")
    assert len(shown) == 12 and [int(shown[0]["data-epoch"]), int(shown[-1]["data-epoch"])] == [1, 23]
    assert inline.inline([tmp_path / "missing.png"], 10**6) == []


def test_watching_writes_it_again_until_the_run_is_over(tmp_path, monkeypatch):
    run, waits, written = make(tmp_path / "run"), [], []
    lock = held(run / "config.yaml")
    lock.__enter__()

    def sleep(seconds):
        waits.append(seconds)
        written.append('data-reload="7"' in (run / "report.html").read_text())
        if len(waits) == 3:
            lock.__exit__(None, None, None)

    monkeypatch.setattr(page.time, "sleep", sleep)
    assert main(["report", str(run), "--watch", "--every", "7"]) == 0
    assert waits == [7.0] * 3 and written == [True] * 3
    assert 'data-reload="0"' in (run / "report.html").read_text()  # it is not read again for ever


def test_a_page_that_fails_fails_nothing_else(tmp_path, caplog):
    run = make(tmp_path / "run")
    (run / "report.html").mkdir()  # fails as a full disk would
    write_page_at_last(RunFolder(run), KNOWN["pretrain"])
    assert "could not be written" in caplog.text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium")
def test_a_browser_draws_the_curves(tmp_path):
    run = make(tmp_path / "run")
    columns = {
        "gradient_norm": (1e16, 1e16 + 2, 1e16),  # a browser must not count from 0 up to these in steps of 0.5
        "learning_rate": (5e-5, 1.8e-4, 0.0),
        "rank": (0.61001, 0.61003, 0.61004),
        "dead_channels": (0.00001, 0.00003, 0.00004),
        "images_per_second": (150_000, 152_000, 158_000),
        "prediction_deviation": (0, 3e-8, 2e-8),
    }
    rows = [",".join(("epoch", "step", "train_loss", "held_out_loss", *columns))]
    rows += [f"{n},{n},0.9,0.8,{','.join(str(cells[n - 1]) for cells in columns.values())}" for n in (1, 2, 3)]
    (run / "metrics.csv").write_text("\n".join(rows).replace("0.9,0.8", "0.7,0.68") + "\n")
    (run / "watch.csv").unlink()
    file, _ = report([str(run)], KNOWN)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = ["chromium", *flags, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    charts = Page(file).charts
    lines = sum(len(chart["lines"]) for chart in charts)
    assert len(re.findall("<polyline", done.stdout)) == lines == 8
    for chart, drawn in zip(charts, re.findall(r"<svg viewBox.*?</svg>", done.stdout, re.DOTALL), strict=True):
        ticks = re.findall(r'<text x="[^"]*" y="([^"]*)" text-anchor="end">([^<]*?)(?: %)?</text>', drawn)
        if chart["title"] != "Gradient norm":  # whose ticks no page has room for
            heights, values = np.array(ticks, dtype=float).T
            assert len(values) > 1 and len(set(values)) == len(values), (chart["title"], ticks)
            # What a tick says lies where it says: on one line, to a hundredth of the way between two of them.
            off = values - np.polyval(np.polyfit(heights, values, 1), heights)
            assert abs(off).max() < 0.01 * abs(np.diff(values)).min(), (chart["title"], ticks)
    assert len(re.findall(r'<span class="key', done.stdout)) == lines and "<b>0.68</b>" in done.stdout


def test_pipes_among_the_files_of_a_run_are_not_waited_for(tmp_path):
    run = make(tmp_path / "run")
    os.mkfifo(run / "pictures" / "epoch_2.png")
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")
    (record,) = write_page([run], tmp_path / "page.html", KNOWN)
    assert record.torn == ["config.yaml"] and len(Page(tmp_path / "page.html").of("img")) == 2
    assert main(["runs", str(tmp_path)]) == 0


def test_the_pace_is_that_of_all_images_over_all_seconds(tmp_path):
    run = make(tmp_path / "run")
    rows = [f"{n},{n},0.5,{speed},{wait},{1000 / speed}" for n, (speed, wait) in enumerate([(10, 0.9), (100, 0)], 1)]
    head = "epoch,step,train_loss,images_per_second,data_wait_share,seconds"
    (run / "metrics.csv").write_text("\n".join([head, *rows]) + "\n")  # 1000 images in 100 s, of which 90, and in 10 s
    words = Page(report([str(run)], KNOWN)[0]).words
    assert f"images a second {2000 / 110:.4g} on average" in words and f"{100 * 90 / 110:.1f} % of it" in words


def test_curves_of_several_runs_are_told_apart_by_colour_and_style(tmp_path):
    watched = ["linear", "knn", "linear_random", "knn_random", "rank", "rank_random"]
    tasks = ["train_loss", "val_loss", "ema_loss", "val_top1", "ema_top1", "val_balanced", "ema_balanced"]
    maps = ["val_ap", "val_ap50", "val_ap75", "val_iou", "val_dice", "val_accuracy", "data_wait_share", "clipped_share"]
    runs = [make(tmp_path / name) for name in "ab"]
    for run in runs:
        for file, columns in (("metrics.csv", [*tasks, "held_out_loss", *maps]), ("watch.csv", watched)):
            (run / file).write_text(f"epoch,step,{','.join(columns)}\n1,1{',0.5' * len(columns)}\n")
    for chart in Page(report([str(run) for run in runs], KNOWN, out=str(tmp_path / "page.html"))[0]).charts:
        looks = [(line["colour"], line["style"]) for line in chart["lines"]]
        assert len(set(looks)) == len(looks) and {line["colour"] for line in chart["lines"]} == {0, 1}, chart["title"]
        assert all((line["style"] in ("dotted", "sparse")) == ("random" in line["label"]) for line in chart["lines"])
    styles = set(re.findall(r"\.curve\.(\w+)", (tmp_path / "page.html").read_text()))
    assert styles == {"dashed", "dashdotted", "long", "dotted", "sparse"}


def test_pictures_that_are_trained_on_are_not_said_to_be_held_out(tmp_path):
    run = make(tmp_path / "run")
    assert "Of pictures held out." in Page(report([str(run)], KNOWN)[0]).words
    (run / "metrics.csv").write_text("epoch,step,train_loss,held_out_loss\n1,10,0.9,\n3,30,0.6,\n")
    words = Page(report([str(run)], KNOWN)[0]).words
    assert "Nothing is held out: of pictures that it is trained on." in words and "held-out" not in words


@pytest.mark.parametrize("error", [SyntaxError, TypeError, struct.error, Image.DecompressionBombError])
def test_a_damaged_picture_is_left_out_whatever_its_decoder_raises(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error("broken")

    run = make(tmp_path / "run")
    monkeypatch.setattr(Image, "open", fail)
    assert not Page(report([str(run)], KNOWN)[0]).of("img")


def test_a_picture_higher_than_webp_allows(tmp_path):
    run = make(tmp_path / "run")
    Image.new("RGB", (30, 40_000)).save(run / "tall.png")
    shown = Page(report([str(run)], KNOWN)[0])
    assert [picture["height"] for picture in shown.of("img") if picture["alt"].startswith("tall")] == ["16000"]


def test_whoever_ends_the_watching_has_a_page(tmp_path, monkeypatch, capsys):
    run = make(tmp_path / "run")

    def stop(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(page.time, "sleep", stop)
    with held(run / "config.yaml"):
        assert main(["report", str(run), "--watch"]) == 130
    said = capsys.readouterr().err
    assert (run / "report.html").is_file() and "stays as it was written" in said and "nothing was written" not in said


def test_somebody_elses_run_has_its_page_elsewhere(tmp_path, monkeypatch, capsys):
    run = make(tmp_path / "run")

    @contextmanager
    def refuse(path):
        if run in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        yield path

    monkeypatch.setattr(page, "written_whole", refuse)
    assert main(["report", str(run)]) == 1
    assert "Permission denied): name another place by --out FILE.html" in capsys.readouterr().err
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0


def test_how_runs_of_a_demo_and_of_datasets_go_on(tmp_path):
    run = make(tmp_path / "run", images=None)
    assert f"convspark.pretrain(images, resume={json.dumps(str(run))})" in Page(report([str(run)], KNOWN)[0]).words
    (run / "environment.json").write_text(json.dumps({"command": ["bin/convspark", "demo"]}))
    assert f"convspark demo --resume {run}" in Page(report([str(run)], KNOWN)[0]).words


def test_warnings_that_cannot_be_read_may_be_there(tmp_path):
    run = make(tmp_path / "run")
    assert "No warnings." in Page(report([str(run)], KNOWN)[0]).words
    (run / "warnings.csv").write_bytes(b"\xff")
    assert "No warnings." not in Page(report([str(run)], KNOWN)[0]).words


@pytest.mark.parametrize("every", [0.0, -1.0, float("inf"), float("nan")])
def test_a_time_that_cannot_be_waited_is_refused(tmp_path, every):
    with pytest.raises(UsageError, match="one second or more, up to 1e"):
        report([str(make(tmp_path / "run"))], KNOWN, every=every)


def test_a_place_below_a_file_is_refused(tmp_path):
    run = make(tmp_path / "run")
    with pytest.raises(UsageError, match=r"config\.yaml is no folder"):
        report([str(run)], KNOWN, out=str(run / "config.yaml" / "page.html"))
