"""A run: begun once, in a folder for itself."""

import logging
import os
import subprocess
import sys

import pytest

from convspark.errors import UsageError
from convspark.runs import run as running
from convspark.runs.logs import run_log
from convspark.runs.run import Run
from convspark.tasks.segmentation.settings import SegmentSettings

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def begin(asked: SegmentSettings) -> Run[SegmentSettings]:
    run = Run(asked)
    with run_log(logging.CRITICAL) as log, run.begun(run.settings, "segment", log):
        pass
    return run


def test_reads_and_checks_without_writing_and_goes_on_with_what_was_begun(tmp_path):
    asked = SegmentSettings("random:resnet18", out=str(tmp_path / "run"), epochs=3)
    Run(asked)
    assert not (tmp_path / "run").exists()
    begun = begin(asked)
    assert not begun.goes_on and {p.name for p in begun.folder.path.iterdir()} == {"config.yaml", "log.txt"}
    again = Run(SegmentSettings(resume=str(tmp_path / "run"), workers=2))
    assert again.goes_on and again.settings.epochs == 3 and again.settings.workers == 2
    with pytest.raises(UsageError, match=f"segment --resume {tmp_path}"):
        Run(asked)


def test_of_two_that_begin_at_the_same_moment_one_does(tmp_path, monkeypatch):
    others = []

    def create(*place):
        folder = create_folder(*place)
        if not others:  # between the look at the folder and the first file in it
            others.append(folder)
            begin(SegmentSettings(out=str(folder.path), epochs=3))
        return folder

    create_folder = running.RunFolder.create
    monkeypatch.setattr(running.RunFolder, "create", create)
    with pytest.raises(UsageError, match=f"exists already: go on with `convspark segment --resume {tmp_path}/run`"):
        begin(SegmentSettings(out=str(tmp_path / "run"), epochs=4))
    assert Run(SegmentSettings(resume=str(tmp_path / "run"))).settings.epochs == 3
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"config.yaml", "log.txt"}


def test_begins_where_files_have_one_name(tmp_path, monkeypatch):
    def link(*_names):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    assert begin(SegmentSettings(out=str(tmp_path / "run"), epochs=3)).folder.config.is_file()


def test_a_run_that_another_process_carries_out_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_PATIENCE", 0.3)
    folder = begin(SegmentSettings(out=str(tmp_path / "run"))).folder
    command = [sys.executable, "-c", HOLD, str(folder.config)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        before = folder.log.read_text()
        with pytest.raises(UsageError, match="another process is carrying out"):
            begin(SegmentSettings(resume=str(folder.path)))
        assert folder.log.read_text() == before
        other.communicate()
    assert begin(SegmentSettings(resume=str(folder.path))).goes_on
