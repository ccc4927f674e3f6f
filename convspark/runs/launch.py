"""Several processes of one command on this machine: started, signalled and ended together."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from .folder import available_cores, check_processes
from .numbers import check_positive
from .processes import EndedElsewhereError, Processes

_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_TELL = 15.0  # for the others, to notice and to report what they know
_SECONDS_TO_END = 10.0
_INTERRUPTED = 130
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1


def count_of(devices: int | str) -> int:
    """The number of processes that `--devices` stands for."""
    if devices != "all":
        if isinstance(devices, str):
            raise UsageError(f"devices is {devices!r}: expected a number of processes, or all")
        return devices
    import torch

    if not torch.cuda.device_count():
        raise UsageError("devices is 'all', and there is no GPU here: give a number of processes")
    return torch.cuda.device_count()


def asked_for(devices: int | str | None, nodes: int | None) -> Processes:
    """The first of the processes that settings ask for; this one's place where it is one of several already.

    Raises:
        UsageError: numbers of them that cannot be.
    """
    here = Processes.here()
    if here.are_several or devices is None:
        return here
    count = count_of(devices)
    check_positive(devices=count, nodes=nodes)
    check_processes(devices=count)
    return Processes(0, count * (nodes or 1), 0, count)


def launch(command: Sequence[str], devices: int, nodes: int = 1) -> int:
    """Start `devices` processes of a command, and wait for them; 0, or the exit code of the one that failed.

    Of several nodes, each starts its own: the environment says where the first is (MASTER_ADDR) and which this one is
    (NODE_RANK).
    """
    environment = {**os.environ, **_of_node(nodes)}
    environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # of a torchrun that started this one alone
    first, count = int(environment["NODE_RANK"]) * devices, devices * nodes
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // devices)))
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or else each step's bookkeeping is logged
    started = [
        subprocess.Popen(
            command,
            env=environment
            | {
                "RANK": str(first + local),
                "LOCAL_RANK": str(local),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(devices),
            },
            # A terminal's Ctrl-C reaches this process alone, which passes it on: else they would see it twice.
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        for local in range(devices)
    ]

    def pass_on(number: int, _frame: Any) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    heard = [number for number in _PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in heard}
    try:
        return _wait(started)
    finally:
        for process in started:
            process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all, end those that another's failure left; the exit code of the one that failed first."""
    failed: dict[int, int] = {}
    since = 0.0
    while any(process.poll() is None for process in started):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        for rank, process in enumerate(started):
            if process.poll():
                failed.setdefault(rank, process.poll() or 0)
        if not failed:
            continue
        since = since or time.monotonic()
        # A process that was asked to stop has time to write its checkpoint.
        patience = 60 * _SECONDS_TO_TELL if set(failed.values()) == {_INTERRUPTED} else _SECONDS_TO_TELL
        waited = time.monotonic() - since
        for process in started:
            if process.poll() is None and waited > patience:
                process.send_signal(signal.SIGTERM if waited < patience + _SECONDS_TO_END else signal.SIGKILL)
    failed |= {rank: code for rank, process in enumerate(started) if (code := process.poll()) and rank not in failed}
    if not failed:
        return 0
    rank, code = min(failed.items(), key=lambda item: item[1] == EndedElsewhereError.exit_code)
    if code < 0:
        print(f"error: process {rank} was ended by {signal.Signals(-code).name}", file=sys.stderr)
        return 128 - code
    return code


def _of_node(nodes: int) -> dict[str, str]:
    """Where the processes find each other."""
    if nodes == 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "NODE_RANK": "0"}
    missing = [name for name in ("MASTER_ADDR", "NODE_RANK") if name not in os.environ]
    if missing:
        raise UsageError(
            f"nodes is {nodes}, and the environment lacks {' and '.join(missing)}: on each of the machines, set "
            "MASTER_ADDR to the first one's address and NODE_RANK to 0, 1, ... Or start by torchrun, or by SLURM's srun"
        )
    if not os.environ["NODE_RANK"].isdecimal() or int(os.environ["NODE_RANK"]) >= nodes:
        raise UsageError(
            f"NODE_RANK is {os.environ['NODE_RANK']!r} in the environment, and nodes is {nodes}: expected 0 on the "
            f"first of the machines, and so on up to {nodes - 1}"
        )
    return {"MASTER_PORT": os.environ.get("MASTER_PORT", "29400")}


def _end_with_parent() -> None:
    """Have this process asked to stop when the one that started it is gone."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
