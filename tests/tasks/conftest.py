"""Fixtures of labelled pictures."""

from pathlib import Path

import pytest
from labelled_pictures import write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """train, val and test folders of three classes."""
    root = tmp_path_factory.mktemp("labelled")
    for seed, (part, count) in enumerate({"train": 16, "val": 4, "test": 6}.items()):
        write_pictures(root / part, count, seed)
    return root
