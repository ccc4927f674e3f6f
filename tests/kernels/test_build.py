"""Our own kernels are compiled once, and where that is impossible PyTorch's operations do their work."""

import ctypes
import logging
import multiprocessing
import os
import platform
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from convspark.kernels.cpu import build
from convspark.sparse import PatchGrid, gather

needs_kernel = pytest.mark.skipif(not build.library_is_there(), reason="no C++ compiler for the kernel")


@pytest.fixture(autouse=True)
def afresh(monkeypatch, tmp_path):
    """No library known, and a cache folder of its own."""
    monkeypatch.setattr(build, "library", build.library.__wrapped__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CONVSPARK_COMPILE", raising=False)


@pytest.fixture
def brief(monkeypatch, tmp_path):
    """A source that is compiled quickly, where the kernels are not called."""
    source = tmp_path / "brief.cpp"
    source.write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(build, "_SOURCE", source)


@needs_kernel
@pytest.mark.usefixtures("brief")
def test_compiling_is_done_once(tmp_path):
    assert build.library().answer() == 42
    (built,) = (tmp_path / "convspark").iterdir()
    time = built.stat().st_mtime_ns
    assert build.library() is not None and built.stat().st_mtime_ns == time


@needs_kernel
@pytest.mark.usefixtures("brief")
def test_compiling_in_a_folder_that_cannot_be_written_goes_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "convspark").write_text("a file is in the way")
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path / "elsewhere"))
    assert build.library() is not None
    assert any((tmp_path / "elsewhere").rglob("kernels-*.so"))


@needs_kernel
@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("cut", [0, 0.5, -1])
def test_a_library_that_is_not_whole_is_compiled_again(cut):
    library = build.library()
    path = Path(library._name)
    whole = path.read_bytes()
    end = int(cut * len(whole)) if isinstance(cut, float) else cut
    path.unlink()  # the loader has the old file, and would crash if it were changed
    path.write_bytes(whole[:end])
    assert build.library() is not None
    assert len(path.read_bytes()) == len(whole)


@needs_kernel
@pytest.mark.usefixtures("brief")
def test_a_compiler_with_arguments(tmp_path, monkeypatch):
    """As with `ccache g++`."""
    wrapper = tmp_path / "a wrapper"
    wrapper.write_text('#!/bin/sh\necho "$@" >> "$0.log"\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{wrapper}' {shutil.which('c++') or 'g++'} -DNOTHING")
    assert build.library() is not None
    assert "-DNOTHING" in (tmp_path / "a wrapper.log").read_text()


@needs_kernel
@pytest.mark.usefixtures("brief")
def test_a_folder_from_which_nothing_may_be_run_goes_elsewhere(tmp_path, monkeypatch):
    load = ctypes.CDLL

    def refuses(path):
        if (tmp_path / "convspark") in Path(path).parents:
            raise OSError("failed to map segment from shared object")  # as on a disk mounted with noexec
        return load(path)

    monkeypatch.setattr(build.ctypes, "CDLL", refuses)
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere") in Path(build.library()._name).parents


@needs_kernel
@pytest.mark.usefixtures("brief")
def test_a_user_without_a_home(tmp_path, monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(build.Path, "home", nowhere)
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    assert tmp_path in Path(build.library()._name).parents


def _ask():
    sys.exit(build.library() is None or build.library().answer() != 42)


@needs_kernel
@pytest.mark.usefixtures("brief")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # where the tests' own process has other threads
def test_processes_at_once(tmp_path):
    asking = [multiprocessing.get_context("fork").Process(target=_ask) for _ in range(3)]
    for process in asking:
        process.start()
    for process in asking:
        process.join(120)
    assert [process.exitcode for process in asking] == [0, 0, 0]
    (built,) = (tmp_path / "convspark").iterdir()
    assert build._is_whole(built)


def test_compiling_is_switched_off_by_a_variable(monkeypatch):
    monkeypatch.setenv("CONVSPARK_COMPILE", "0")
    assert build.library() is None


@pytest.mark.parametrize("compiler", ["fails", "is not there"])
def test_compiling_that_is_impossible_leaves_the_work_to_pytorch(compiler, tmp_path, monkeypatch, caplog):
    script = tmp_path / "compiler"
    if compiler == "fails":
        script.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho cannot compile that >&2\nexit 1\n")
        os.chmod(script, 0o755)
    monkeypatch.setenv("CXX", str(script))
    with caplog.at_level(logging.WARNING, logger=build.__name__):
        assert build.library() is None
    assert ("cannot compile that" if compiler == "fails" else "no C++ compiler") in caplog.text
    assert not list(tmp_path.rglob("*.so"))

    visible = torch.tensor([[[True, False], [True, True]]])
    images, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 3, 3)
    grid = PatchGrid(visible)
    ours = functional.conv2d(gather(images, grid), weight, None, 1, 1, 1, 4)
    mask = visible[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = gather(functional.conv2d(images * mask, weight, None, 1, 1, 1, 4), grid)
    torch.testing.assert_close(ours.values, expected.values)


@needs_kernel
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names of x86 processors")
@pytest.mark.parametrize(
    ("processor", "needs"), [pytest.param("x86-64", "sse2", marks=pytest.mark.slow), ("x86-64-v3", "avx2")]
)
def test_kernels_for_other_processors_compute_the_same(processor, needs, monkeypatch):
    """Registers of 16 and of 32 bytes, whatever this processor has."""
    if needs not in build._processor().split():
        pytest.skip(f"this processor has no {needs}")
    flags = [f"-march={processor}" if flag.startswith("-march") else flag for flag in build._FLAGS]
    monkeypatch.setattr(build, "_FLAGS", tuple(flags))
    library = build.library()
    assert library is not None
    monkeypatch.setattr(build, "library", lambda: library)
    grid = PatchGrid.random(3, (3, 3), mask_ratio=0.5, generator=torch.Generator().manual_seed(0))
    mask = grid.visible[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3)
    generator = torch.Generator().manual_seed(1)
    for groups, width in ((1, 75), (8, 4), (4, 8), (2, 16), (3, 5), (2, 40), (75, 1)):
        for dtype in (torch.float32, torch.float64, *([torch.bfloat16] if width == 1 else [])):
            sizes = (3, groups * width, 6, 6), (groups * width, width, 3, 3)
            images, weight = (torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in sizes)
            run = functional.conv2d(gather(images, grid), weight, None, 1, 1, 1, groups).values
            exact = functional.conv2d(images.double() * mask, weight.double(), None, 1, 1, 1, groups)
            dense = gather(exact, grid).values
            slope = torch.randn(run.shape, generator=generator).to(dtype)
            ours = run, *torch.autograd.grad(run, (images, weight), slope)
            expected = dense, *torch.autograd.grad(dense, (images, weight), slope.double())
            for one, other in zip(ours, expected, strict=True):
                tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
                scale = other.double().abs().max()
                assert (one.double() - other.double()).abs().max() < tolerance * scale, (groups, width, dtype)
