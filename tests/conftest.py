"""Fixtures shared by all tests, and where the larger truths that are not part of the project lie."""

import os
from pathlib import Path

import pytest
import torch

# The tensors of tests are small: threads would spend their time waiting for each other.
torch.set_num_threads(1)

# Kernels for GPUs are run by Triton's interpreter where there is no GPU; it is asked for when Triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


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
