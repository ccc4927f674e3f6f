"""An index of its own for each test."""

import pytest

from convspark.data import index


@pytest.fixture(autouse=True)
def own_index(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("index")
    monkeypatch.setattr(index, "cache_folder", lambda: folder)
