"""Processes that load images and end, or cannot hand over what they loaded."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing import resource_sharer

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from convspark.errors import ConvsparkError
from convspark.runs import loading
from convspark.runs.loading import MeasuringLoader, end_workers, workers_explained

NO_ROOM = "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"


class NotHandedOver:
    """What a batch of the user's own collating may hold: put into shared memory as it is sent."""

    def __init__(self, words: str) -> None:
        self.words = words

    def __str__(self) -> str:
        return f"not handed over: {self.words}"

    def __reduce__(self):
        raise RuntimeError(self.words)


class Failing(Dataset):
    """Whose second image a worker fails at, in one way or another."""

    def __init__(self, failure: signal.Signals | Exception | NotHandedOver) -> None:
        self.failure = failure

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int):
        if index and get_worker_info() is not None:
            if isinstance(self.failure, signal.Signals):
                os.kill(os.getpid(), self.failure)
            if isinstance(self.failure, Exception):
                raise self.failure
            return self.failure
        return torch.zeros(3)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (RuntimeError(NO_ROOM), r"shared memory.*--shm-size 8g.*--workers 0"),
        (NotHandedOver(NO_ROOM), r"shared memory.*--shm-size 8g.*--workers 0"),
        (signal.SIGBUS, r"shared memory.*--shm-size 8g.*--workers 0"),
        (signal.SIGKILL, r"killed, most likely by the system as memory ran out: try fewer --workers"),
        (signal.SIGSEGV, r"crashed \(.*Segmentation fault.*\): try --workers 0"),
        (NotHandedOver("something else"), r"crashed \(.*(exit code 1|reset).*--shm-size 8g.*\): try --workers 0"),
        (RuntimeError("received 0 items of ancdata"), r"opened too many files: --workers 0 .*ulimit -n 65536"),
        (OSError(24, "Too many open files"), r"opened too many files"),
    ],
    ids=str,
)
def test_what_to_do_about_processes_that_load_is_said(failure, words, monkeypatch):
    # Torch's handler of processes that die, which it sets but once, whatever ran in this process before.
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    loader = MeasuringLoader(Failing(failure), 1, 1)
    loader.collate_fn = list if isinstance(failure, NotHandedOver) else torch.stack
    try:
        with pytest.raises(ConvsparkError, match=words), workers_explained():
            list(loader)
    finally:
        with suppress(RuntimeError):  # torch's handler, which may run once, before the first line of what is called
            end_workers(loader)
        end_workers(loader)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("open shared memory object </torch_1_2_3> in read-write mode: No such file or directory (2)", "No such file"),
        ("resize file </torch_1_2_3> to the right size: File too large (27)", "File too large"),
    ],
)
def test_shared_memory_that_cannot_be_used(words, why):
    message = rf"cannot use shared memory, /dev/shm \({why}.*--workers 0"
    with pytest.raises(ConvsparkError, match=message), workers_explained():
        raise RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: unable to {words}\n")


def test_what_torch_learns_of_a_crash_while_it_is_explained_counts(monkeypatch):
    advice = loading._advice

    def advice_once_interrupted(error):
        monkeypatch.undo()
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.")

    monkeypatch.setattr(loading, "_advice", advice_once_interrupted)
    with pytest.raises(ConvsparkError, match="shared memory"), workers_explained():
        raise ConnectionResetError(104, "Connection reset by peer")
    assert loading._advice is advice


def test_processes_are_ended_though_torch_raises_of_a_crash_meanwhile(monkeypatch):
    """Its handler of the signal may do so at any moment, once."""

    def raise_once(loader):
        monkeypatch.undo()
        raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 1")

    loader = MeasuringLoader(Failing(RuntimeError("unused")), 1, 2)
    next(iter(loader))
    assert multiprocessing.active_children()
    monkeypatch.setattr(loading, "_end_workers_of", raise_once)
    end_workers(loader)
    assert not multiprocessing.active_children() and loader._iterator is None


def test_a_process_that_ends_while_it_hands_over_has_crashed(tmp_path):
    """Before it is known to have ended: torch raises what the connection gave."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        ending = threading.Thread(target=lambda: listening.accept()[0].close())
        ending.start()
        handed_over = resource_sharer.DupFd.__new__(resource_sharer.DupFd)
        handed_over._id = str(tmp_path / "socket"), 1
        with pytest.raises(ConvsparkError, match=r"crashed \(.*reset.*--shm-size 8g.*\)"), workers_explained():
            handed_over.detach()
        ending.join()


def test_a_process_that_is_found_to_have_crashed_at_the_end_leaves_none(monkeypatch):
    loader = MeasuringLoader(Failing(RuntimeError("unused")), 1, 2)
    next(iter(loader))
    iterator = loader._iterator

    def crashed():
        raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 1")

    monkeypatch.setattr(iterator, "_shutdown_workers", crashed)
    end_workers(loader)
    assert loader._iterator is None and not any(process.is_alive() for process in iterator._workers)
    monkeypatch.undo()
    with suppress(RuntimeError):
        iterator._shutdown_workers()


def test_other_errors_stay_what_they_are():
    with pytest.raises(EOFError), workers_explained():
        raise EOFError
    loader = MeasuringLoader(Failing(RuntimeError("of somebody's own")), 1, 1)
    with pytest.raises(RuntimeError, match="of somebody's own") as raised, workers_explained():
        list(loader)
    end_workers(loader)
    assert not isinstance(raised.value, ConvsparkError)


@pytest.mark.slow
@pytest.mark.parametrize("command", [["pretrain", "--model=test_resnet"], ["finetune", "random:test_resnet"]])
def test_commands_say_that_shared_memory_is_too_small(tmp_path, command):
    """With a real /dev/shm of 1 MB, where this machine lets a process have its own."""
    own = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1M tmpfs /dev/shm && exec "$@"', "sh"]
    try:
        subprocess.run([*own, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no /dev/shm of its own here")
    for shade, name in enumerate(("blue", "red")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            picture = Image.fromarray(np.full((160, 160, 3), 40 * shade + i, np.uint8))
            picture.save(tmp_path / "pictures" / name / f"{i}.png")
    flags = "--size 160 --batch-size 8 --workers 2 --epochs 1 --device cpu --precision fp32".split()
    done = subprocess.run(
        [*own, sys.executable, "-m", "convspark", *command, str(tmp_path / "pictures"), *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 1
    assert "error: the processes that load pictures ran out of shared memory: /dev/shm has 1 MB" in done.stderr
    assert "--shm-size 8g" in done.stderr and "--workers 0" in done.stderr
