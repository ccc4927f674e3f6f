"""Fixtures shared by all tests, and the folder of larger test data, which is not part of the project."""

import gc
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# The tensors of tests are small: threads would spend their time waiting for each other, here and in started processes.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Kernels for GPUs are run by Triton's interpreter where there is no GPU; it is asked for when Triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure() -> None:
    """Signals as in a terminal: a shell switches Ctrl-C off for tests that it starts in the background, and processes
    that they start would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Python's garbage collector need not look at what was imported: each of its runs takes a tenth of the time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # for libraries that count what is left at the end


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Reports that can be sent to another process: names of files need not be UTF-8, what is sent must be. They say of
    what kind the case is, if it is one of harm that must not be done.
    """
    report = yield
    case = item.get_closest_marker("robust")
    if case is not None:
        report.user_properties.append(("robust", case.args[0]))
    report.sections = [(title, _encodable(text)) for title, text in report.sections]
    if report.longrepr is not None and report.longreprtext != _encodable(report.longreprtext):
        report.longrepr = _encodable(report.longreprtext)
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many cases of each kind went as they must."""
    counts: Counter[tuple[str, bool]] = Counter()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            kinds = [kind for name, kind in getattr(report, "user_properties", ()) if name == "robust"]
            counts.update((kind, outcome == "passed") for kind in kinds if outcome == "error" or report.when == "call")
    for kind in sorted({kind for kind, _ in counts}):
        terminalreporter.line(
            f"{kind}: {counts[kind, True]} of {counts[kind, True] + counts[kind, False]} as they must"
        )


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.fixture(autouse=True)
def whatever_ran_before() -> Iterator[None]:
    """Each test draws the same numbers, and compiles afresh, in any order of the tests."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is not None and dynamo.counters.get("frames"):
        torch._dynamo.reset()
        dynamo.counters.clear()


@pytest.fixture(scope="session")
def shared_data_dir() -> Path:
    """Folder with `golden/` and `data/`, from CONVSPARK_TEST_DATA or beside the repository; skips where absent."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("CONVSPARK_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder} (set CONVSPARK_TEST_DATA to the folder with golden/ and data/)")
    return folder


@pytest.fixture(scope="session")
def golden_dir(shared_data_dir: Path) -> Path:
    """Folder of tensors written by the method's authors' implementation; skips where absent."""
    folder = shared_data_dir / "golden"
    if not folder.is_dir():
        pytest.skip(f"no golden tensors at {folder} (set CONVSPARK_TEST_DATA to the folder that has golden/)")
    return folder
