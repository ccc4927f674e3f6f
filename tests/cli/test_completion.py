"""What TAB completes, asked of the shells themselves."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convspark.cli.main import COMMANDS, main

pytest.importorskip("shtab")

ASKED = """
source "$1"; shift
complete -p convspark | grep -q -- -F || exit 1
function=$(complete -p convspark | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
$function convspark "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""
CASES = [
    ("pre", ["pretrain"]),
    ("pretrain --decoder ", ["lean", "paper"]),
    ("pretrain PICTURES --epochs 3 --decoder l", ["lean"]),
    ("pretrain --decod", ["--decoder", "--decoder-width"]),
    ("pretrain --compile ", ["false", "true"]),
    ("finetune --recipe resnet50", ["resnet50_imagenet_finetune"]),
    ("pretrain --model resnet10", ["resnet101", "resnet101_clip", "resnet101_clip_gap", "resnet101c"]),
    ("check resnet18", ["resnet18", "resnet18d"]),
    ("recipes small", ["small_data"]),
    ("completion ", ["bash", "fish", "zsh"]),
    ("compare --js", ["--json"]),
    ("report --trus", ["--trust-code"]),
    ("pretrain pict", ["pictures.csv"]),
    ("pretrain --config set", ["settings.yaml"]),
    ("report one set", ["settings.yaml"]),
]


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """Writes a shell's script to a file; the current folder holds two files."""
    (tmp_path / "pictures.csv").touch()
    (tmp_path / "settings.yaml").touch()
    monkeypatch.chdir(tmp_path)

    def write(shell: str) -> Path:
        assert main(["completion", shell]) == 0
        (tmp_path / "of").mkdir()
        file = tmp_path / "of" / "_convspark"
        file.write_text(capsys.readouterr().out)
        return file

    return write


def test_bash(script):
    file = script("bash")
    for line, expected in CASES:
        words = ["convspark", *line.split(" ")]
        asked = subprocess.run(["bash", "-c", ASKED, "-", file, *words], capture_output=True, text=True, check=True)
        assert set(expected) <= set(asked.stdout.split()), line
        assert all(word.startswith(words[-1]) for word in asked.stdout.split()), line
    first = subprocess.run(
        ["bash", "-c", ASKED, "-", file, "convspark", ""], capture_output=True, text=True, check=True
    )
    assert set(COMMANDS) <= set(first.stdout.split())


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish(script):
    file = script("fish")
    for line, expected in CASES:
        asked = subprocess.run(
            ["fish", "--no-config", "-c", f"source {file}; complete -C 'convspark {line}'"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert set(expected) <= {line.partition("\t")[0] for line in asked.stdout.splitlines()}, line


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh(script):
    """Types what has a single continuation, and sees it written out."""
    folder = script("zsh").parent
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb", "PS1": "ready "})

    def until(text: str) -> str:
        seen, end = "", time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < end, seen
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 65536).decode(errors="replace")
        return seen

    def say(text: str) -> None:
        os.write(terminal, text.encode())

    try:
        until("ready ")
        say(f"fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D; echo be''gin\n")
        until("begin")
        for line, expected in CASES:
            word = line.split(" ")[-1]
            if word and len(expected) == 1:
                say(f"convspark {line}\t")
                until(f"convspark {line.removesuffix(word)}{expected[0]} ")
                say("\x15")
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def test_no_shell(capsys):
    assert main(["completion"]) == 0
    text = capsys.readouterr().out
    assert all(f"convspark completion {shell}" in text for shell in ("bash", "zsh", "fish"))
    assert main(["completion", "tcsh"]) == 2
    assert "'tcsh': expected bash or zsh or fish" in capsys.readouterr().err


def test_the_script_is_made_without_torch():
    code = (
        "import sys; from convspark.cli import main; main.main(['completion', 'bash']); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "False"
