"""The command line's allocator settings: the user's own come first."""

import subprocess
import sys

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "LD_PRELOAD"])
def test_settings_of_the_user_stay(name):
    code = "from convspark.cli.main import keep_memory; print(keep_memory())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={name: "1"}, check=True)
    assert run.stdout.strip() == "False"
