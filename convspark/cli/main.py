"""`convspark COMMAND …`: finds the command, runs it, and turns errors into messages and exit codes."""

import atexit
import contextlib
import ctypes
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from .._version import __version__
from ..errors import ConvsparkError, UsageError
from ..names import shown, shown_text
from ..runs.processes import ALONE, EndedElsewhereError, Processes, are_connected
from ..trust import trust_code

# Each module has a `command()`, what it takes, and a `run(arguments) -> exit code`; it is imported when called.
COMMANDS = {
    "scan": ("convspark.cli.scan", "look at pictures: what there is, what is damaged or double, what suits them"),
    "pretrain": ("convspark.cli.pretrain", "pre-train a convolutional network on a folder of images"),
    "finetune": (
        "convspark.cli.finetune",
        "train a classifier on labelled pictures, from pre-trained or random weights",
    ),
    "detect": ("convspark.cli.detect", "train a detector on annotated pictures: boxes, or masks of each object"),
    "segment": ("convspark.cli.segment", "train a network to tell the class of every pixel"),
    "probe": ("convspark.cli.probe", "measure how good frozen features are, compared with random weights"),
    "compare": (
        "convspark.cli.compare",
        "did pre-training help on your data? the same fine-tuning from several weights",
    ),
    "embed": ("convspark.cli.embed", "write the features of pictures into a file"),
    "export": (
        "convspark.cli.export",
        "write weights for timm, torchvision, ONNX, detectron2, MMDetection or the paper's code",
    ),
    "reconstruct": ("convspark.cli.reconstruct", "draw how a run reconstructs masked pictures"),
    "figures": ("convspark.cli.figures", "draw figures as in the paper, of your network and pictures"),
    "runs": ("convspark.cli.runs", "list the runs in a folder: what they are, how far, and which are running or died"),
    "report": ("convspark.cli.report", "write a page about runs: curves, pictures, settings, warnings, next steps"),
    "check": ("convspark.cli.check", "prove that a network runs exactly on visible patches; show what a step costs"),
    "bench": ("convspark.cli.bench", "time a network dense, by mask-and-multiply and on visible patches only"),
    "recipes": ("convspark.cli.recipes", "list the settings of published runs, for --recipe, and show them"),
    "models": ("convspark.cli.models", "list timm's networks, and which of them run exactly"),
    "demo": ("convspark.cli.demo", "pre-train on photographs that are already installed, in a few minutes"),
    "completion": (
        "convspark.cli.completion",
        "print a script that makes TAB complete commands, in bash, zsh or fish",
    ),
}

_TRUST = "--trust-code"

OPTIONS = {
    "--help": "print this text; `convspark COMMAND --help` prints that of a command",
    "--version": "print the version",
    _TRUST: "with any command: import code that a run, an export or a config names",
}

_BY_SEVERAL = ("pretrain", "finetune", "detect", "segment", "embed")
"""Commands that several processes can carry out together."""

USAGE_ERROR = 2

# Errors of the system that the user can do something about, printed in its own words and with the file's name.
_SAYS_ENOUGH = {
    getattr(errno, name)
    for name in "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EISDIR ENOTDIR ENAMETOOLONG EIO ESTALE ELOOP EMFILE "
    "ENFILE".split()
}

# glibc's own numbers for what mallopt sets.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0 done, 1 failed, 2 usage or settings, 3 images that cannot be used, 4 the loss diverged, 130 Ctrl-C, SIGTERM or
    SIGHUP.
    """
    if arguments is None:  # run as a program: the process is ours
        keep_memory()
        _ready_streams()
        for number in (signal.SIGTERM, signal.SIGHUP):  # what asks to stop is answered like Ctrl-C
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
        code = main(sys.argv[1:])
        if are_connected():
            # The threads of connections, open ones after an error, at times abort a process that Python takes down.
            if not code:
                atexit._run_exitfuncs()  # which close them
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    stream.flush()
            os._exit(code)
        return code
    arguments = list(arguments)
    try:
        return _run(arguments)
    except SystemExit as exit_:  # from argparse: --help, --version
        return exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
    except EndedElsewhereError as error:
        return error.exit_code  # the process that failed says what happened
    except ConvsparkError as error:
        here = ALONE
        with contextlib.suppress(UsageError):  # that this process cannot be known may be the error
            here = Processes.here()
        _say(f"error{'' if here.is_first else f' (process {here.rank})'}: {shown_text(error)}")
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        # A run that has a folder says more; everything else writes at its end, and whole.
        stopped = f"Stopped convspark {arguments[0] if arguments else ''}".rstrip() + "; nothing was written"
        _say(f"\n{shown_text(interrupt) if interrupt.args else stopped}")
        return INTERRUPTED
    except (MemoryError, RuntimeError) as error:
        allocation = re.search(r"tried to allocate (\d+) bytes", str(error))
        if allocation is None and not isinstance(error, MemoryError):
            raise
        much = f": {int(allocation[1]) / 2**30:.1f} GiB were asked for at once" if allocation else ""
        _say(f"error: out of memory{much}. Choose a smaller --size or --batch-size")
        return ConvsparkError.exit_code
    except ImportError as error:
        if "failed to map segment" not in str(error):
            raise
        _say(f"error: a library could not be loaded ({error}): is the memory of this process limited (`ulimit -v`)?")
        return ConvsparkError.exit_code
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _SAYS_ENOUGH:
            raise
        _say(f"error: {error.strerror}{f': {shown(error.filename)}' if error.filename else ''}")
        return ConvsparkError.exit_code


def keep_memory() -> bool:
    """Have glibc keep freed memory in this process; True if it does now.

    By default it gives large buffers back to Linux after each step, whose page faults then cost up to half of the next
    one. Settings of the user's own (any MALLOC_ variable, or another allocator preloaded) stay as they are.
    """
    if not sys.platform.startswith("linux") or any(k.startswith("MALLOC_") or k == "LD_PRELOAD" for k in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def _say(text: str) -> None:
    """Print to stderr, unless it is gone, as a terminal may be by now."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def _ready_streams() -> None:
    """Open what the process was started without, and have names of any letters printed wherever the output goes.

    Files that are opened would else become the standard output, and get what libraries print there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # the first number that is free is its own
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  for as long as the process lasts
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    name, *rest = arguments
    if name in ("--version", "-V"):
        print(f"convspark {__version__}")
        return 0
    if name not in COMMANDS:
        nearest = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(COMMANDS)}"
        kind = "option" if name.startswith("-") else "command"
        print(f"error: convspark has no {kind} {name!r}; {hint}\n\n{_help()}", file=sys.stderr)
        return USAGE_ERROR
    try:
        os.getcwd()
    except OSError as error:  # libraries end the process where it is gone
        raise UsageError(
            f"the folder that this was started in is not usable ({error.strerror}): cd to another"
        ) from None
    here = Processes.here()
    if here.are_several and name not in _BY_SEVERAL:
        print(f"error: convspark {name} runs in one process, and {here.count} were started", file=sys.stderr)
        return USAGE_ERROR
    if _TRUST in rest:
        rest = [word for word in rest if word != _TRUST]
        trust_code()
    # What stands in the command line was typed, also after `--flag=`, `NAME=` and `random:`.
    trust_code(part.removeprefix("random:") for word in rest for part in re.split("[=,]", word))
    return import_module(COMMANDS[name][0]).run(rest)


def _help() -> str:
    width = max(map(len, (*COMMANDS, _TRUST))) + 2
    lines = [
        "usage: convspark COMMAND [ARGUMENTS]",
        "",
        "Masked-image pre-training (SparK) for any convolutional network, computing visible patches only.",
        "",
        "commands:",
        *(f"  {name:{width}}{summary}" for name, (_, summary) in COMMANDS.items()),
        "",
        "options:",
        *(f"  {name:{width}}{what}" for name, what in OPTIONS.items()),
        "",
        "exit codes: 0 done, 1 failed, 2 usage or settings, 3 unusable images, 4 diverged, 130 Ctrl-C",
    ]
    return "\n".join(lines)
