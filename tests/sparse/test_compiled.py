"""Our own kernels are compiled once, and where that is impossible PyTorch's operations do their work."""

import logging
import os

import pytest
import torch
from torch.nn import functional

from convspark.sparse import PatchGrid, compiled, gather

needs_kernel = pytest.mark.skipif(not compiled.library_is_there(), reason="no C++ compiler for the kernel")


@pytest.fixture(autouse=True)
def afresh(monkeypatch, tmp_path):
    """No library known, and a cache folder of its own."""
    monkeypatch.setattr(compiled, "library", compiled.library.__wrapped__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CONVSPARK_COMPILE", raising=False)


@needs_kernel
def test_compiling_is_done_once(tmp_path):
    assert compiled.library() is not None
    (built,) = (tmp_path / "convspark").iterdir()
    time = built.stat().st_mtime_ns
    assert compiled.library() is not None and built.stat().st_mtime_ns == time


@needs_kernel
def test_compiling_in_a_folder_that_cannot_be_written_goes_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "convspark").write_text("a file is in the way")
    monkeypatch.setattr(compiled.tempfile, "gettempdir", lambda: str(tmp_path / "elsewhere"))
    assert compiled.library() is not None
    assert any((tmp_path / "elsewhere").rglob("kernels-*.so"))


def test_compiling_is_switched_off_by_a_variable(monkeypatch):
    monkeypatch.setenv("CONVSPARK_COMPILE", "0")
    assert compiled.library() is None


@pytest.mark.parametrize("compiler", ["fails", "is not there"])
def test_compiling_that_is_impossible_leaves_the_work_to_pytorch(compiler, tmp_path, monkeypatch, caplog):
    script = tmp_path / "compiler"
    if compiler == "fails":
        script.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho cannot compile that >&2\nexit 1\n")
        os.chmod(script, 0o755)
    monkeypatch.setenv("CXX", str(script))
    with caplog.at_level(logging.WARNING, logger=compiled.__name__):
        assert compiled.library() is None
    assert ("cannot compile that" if compiler == "fails" else "no C++ compiler") in caplog.text

    visible = torch.tensor([[[True, False], [True, True]]])
    images, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 3, 3)
    grid = PatchGrid(visible)
    found = functional.conv2d(gather(images, grid), weight, None, 1, 1, 1, 4)
    mask = visible[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = gather(functional.conv2d(images * mask, weight, None, 1, 1, 1, 4), grid)
    torch.testing.assert_close(found.values, expected.values)
