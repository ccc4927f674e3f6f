"""What a user sees of a run that goes on."""

import io
import sys

import pytest

from convspark.pretraining.command import pretrain
from convspark.runs import progress
from convspark.runs.numbers import format_seconds


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3599, "1 h"), (3600 * 3 + 1200, "3 h 20 min"), (200_000, "2 days 7 h")],
)
def test_times_in_words(seconds, text):
    assert format_seconds(seconds) == text


def test_plain_lines_where_there_is_no_terminal(pictures, small, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)  # so that measuring, too, takes long enough to be told
    pretrain(str(pictures), out=str(tmp_path / "run"), **small)
    told = [record.message for record in caplog.records if record.message.startswith("epoch ")]
    measuring = [line for line in told if "  measuring, " in line]
    assert measuring == ["epoch 1/2  measuring, batch 1/1", "epoch 2/2  measuring, batch 1/1"]
    lines = [line for line in told if "step" not in line and line not in measuring]
    assert len(lines) == 2
    assert all(word in lines[0] for word in ("1/2", "loss", "held out", "images/s", "left"))
    assert lines[1] in (tmp_path / "run" / "log.txt").read_text()


def test_very_many_short_epochs_have_a_line_for_some(pictures, small, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(progress, "_LINES", 2)
    pretrain(str(pictures), out=str(tmp_path / "run"), **small | {"epochs": 6, "watch_epochs": 0, "picture_epochs": 0})
    lines = [record.message for record in caplog.records if record.message.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/6", "3/6", "6/6"]
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 7


def test_a_bar_on_a_terminal(pictures, small, tmp_path, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    pretrain(str(pictures), out=str(tmp_path / "run"), **small)
    assert all(text in screen.getvalue() for text in ("8/8", " left", "measuring 1/1"))
    assert "\x1b" not in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(("kind", "draws"), [("xterm", True), ("dumb", False), ("unknown", False)])
def test_a_terminal_that_cannot_draw_gets_plain_lines(kind, draws, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", kind)
    bar = progress.Progress(None, 0, None)  # type: ignore[arg-type]
    assert bar._wants_bar == draws
