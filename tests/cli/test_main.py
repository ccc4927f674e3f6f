"""Commands, exit codes, help, interruptions."""

import os
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest

from convspark import __version__
from convspark.cli import main as main_module
from convspark.cli.main import COMMANDS, main
from convspark.errors import ConvsparkError, DataError, DivergedError, NotExactError, UsageError


def test_help_names_every_command(capsys):
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert all(f"  {name} " in text for name in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"convspark {__version__}\n"


@pytest.mark.parametrize(("word", "nearest"), [("pretain", "pretrain"), ("demos", "demo"), ("--pretrain", "option")])
def test_unknown_commands_are_usage_errors(capsys, word, nearest):
    assert main([word]) == 2
    captured = capsys.readouterr()
    assert nearest in captured.err and not captured.out


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_no_torch_and_takes_less_than_a_second(arguments):
    """A second of the processor's time, whatever else the machine does."""
    code = (
        "import sys, time\nfrom convspark.cli.main import main\n"
        f"assert main({arguments!r}) == 0\n"
        "heavy = {'torch', 'timm', 'lightning', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert time.process_time() < 1, time.process_time()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConvsparkError("x"), 1),
        (NotExactError("x"), 1),
        (UsageError("x"), 2),
        (DataError("x"), 3),
        (DivergedError("x"), 4),
        (KeyboardInterrupt("x"), 130),
        (OSError(28, "No space left on device"), 1),
        (OSError(21, "Is a directory"), 1),
        (MemoryError(), 1),
        (ImportError("x.so: failed to map segment from shared object"), 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12000000000000 bytes."), 1),
    ],
)
def test_errors_are_one_message_and_an_exit_code(monkeypatch, capsys, error, code):
    class Module:
        @staticmethod
        def run(_arguments):
            raise error

    monkeypatch.setattr(main_module, "import_module", lambda _name: Module)
    assert main(["demo"]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and not captured.out
    said = ("error: x", "x", "error: No space left on device", "error: Is a directory")
    assert captured.err.strip() in said or "out of memory" in captured.err or "memory of this process" in captured.err


def test_mistakes_of_ours_keep_their_traceback(monkeypatch):
    class Module:
        @staticmethod
        def run(_arguments):
            raise ZeroDivisionError

    monkeypatch.setattr(main_module, "import_module", lambda _name: Module)
    with pytest.raises(ZeroDivisionError):
        main(["demo"])


def test_a_working_folder_that_is_gone_is_told(tmp_path, monkeypatch, capsys):
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["recipes"]) == 2
    assert "started in is not usable (No such file or directory): cd to another" in capsys.readouterr().err


def test_python_m(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "convspark", "--version"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.startswith("convspark ")


def test_what_ends_connected_to_others_with_an_error_is_not_taken_down_by_python():
    """Threads of open connections abort some of these processes; here everything at their end does."""
    code = (
        "import atexit, os, sys\nfrom convspark.cli import main\n"
        "main.are_connected = lambda: True\natexit.register(os.abort)\n"
        "sys.argv[1:] = ['nothing']\nsys.exit(main.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "convspark has no command 'nothing'" in done.stderr


def test_commands_are_there_without_their_docstrings():
    """`python -OO` keeps none."""
    command = [sys.executable, "-OO", "-m", "convspark", "pretrain", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--mask-ratio X" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signals_end_a_real_process_with_130_and_a_checkpoint(folder, quick, tmp_path, number):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "convspark", "pretrain", str(folder), "--out", str(out), *quick]
    process = subprocess.Popen(
        [*command, "--epochs", "100000", "--workers", "1"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        metrics = out / "metrics.csv"
        deadline = time.monotonic() + 60
        while not metrics.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, number)  # the whole group, as a terminal does
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert f"convspark pretrain --resume {out}" in errors and "Traceback" not in errors
    assert (out / "checkpoints" / "last.ckpt").is_file()


_WAITS = """
import os, sys, time
from importlib import import_module
from convspark.cli.main import main
def wait(*_args, **_options):
    print("waiting", flush=True)
    time.sleep(60)
if sys.argv[1] == "import":
    slow = staticmethod(lambda name, *_: wait() if name == "timm" else None)
    sys.meta_path.insert(0, type("Slow", (), {"find_spec": slow}))
else:
    module, name = sys.argv[1].split(":")
    setattr(import_module(module), name, wait)
sys.argv[1:2] = []
sys.exit(main())
"""


_NOTHING = "Stopped convspark pretrain; nothing was written"


def _hears_ctrl_c():
    """Shells switch Ctrl-C off for what they start in the background, and child processes inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("where", "number", "words"),
    [
        ("import", signal.SIGTERM, _NOTHING),
        pytest.param(
            "convspark.pretraining.plan:first_images",
            signal.SIGTERM,
            "Stopped. To go on:\n  convspark pretrain --resume {out}",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_process_that_is_stopped_early_says_in_a_line_what_was_stopped(folder, quick, tmp_path, where, number, words):
    out = tmp_path / "run"
    command = [sys.executable, "-c", _WAITS, where, "pretrain", str(folder), "--out", str(out), *quick]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, preexec_fn=_hears_ctrl_c) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "waiting\n"
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors.endswith(f"\n{words.format(out=out)}\n") and "Traceback" not in errors
    assert out.exists() == ("--resume" in words)


@pytest.mark.parametrize("where", ["convspark.runs.images:scan", "convspark.model.spark:prove_exact"])
def test_stopped_before_there_is_a_folder_nothing_is_written(folder, quick, tmp_path, monkeypatch, capsys, where):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    module, name = where.split(":")
    monkeypatch.setattr(import_module(module), name, interrupted)
    out = tmp_path / "run"
    assert main(["pretrain", str(folder), "--out", str(out), *quick]) == 130
    assert capsys.readouterr().err.endswith(f"\n{_NOTHING}\n") and not out.exists()
