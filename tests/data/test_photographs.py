"""The demo's photographs come from installed packages."""

import socket
from pathlib import Path

import pytest

from convspark.data import demo_photographs, photographs
from convspark.errors import UsageError


def test_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")

    def refuse(*_: object) -> None:
        raise AssertionError("the demo must not reach for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    pictures = demo_photographs()
    names = [name for name, _ in pictures]
    assert len(pictures) >= 12 and len(set(names)) == len(names)
    assert all(picture.mode == "RGB" and min(picture.size) >= 300 for _, picture in pictures)


def test_absent_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(photographs, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'convspark\[demo\]'"):
        demo_photographs()
    monkeypatch.undo()
    monkeypatch.setattr(photographs, "_package_folder", lambda _: tmp_path)
    with pytest.raises(UsageError, match=r"only 0 of 16 .*pip install --upgrade"):
        demo_photographs()
