"""When several processes write a checkpoint: what one of them asks for is known to all a step later, and done once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convspark.runs import callbacks
from convspark.runs.callbacks import Checkpoints, Interrupted
from convspark.runs.folder import RunFolder


class Agreed:
    """What one process wishes stands for all."""

    def __init__(self, here: Any, *wishes: bool) -> None:
        self.wishes = wishes

    def result(self) -> tuple[bool, ...]:
        return self.wishes


@pytest.fixture
def saved_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Steps after which a run of so many is saved, a second each; and the step after which it stopped."""

    def run(minutes: float, steps: int, stop_at: int | None = None) -> tuple[list[int], int]:
        now, saved = [0.0], []
        monkeypatch.setattr(callbacks, "Agreement", Agreed)
        monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
        here = SimpleNamespace(is_first=True, are_several=True)
        loader: Any = SimpleNamespace(
            here=here, accumulate=1, mark=lambda *_: None, order=SimpleNamespace(num_batches=0)
        )
        checkpoints = Checkpoints(RunFolder(tmp_path), loader, minutes)

        def save(*_: Any) -> None:
            saved.append(round(now[0]))
            checkpoints._saved = now[0]

        monkeypatch.setattr(checkpoints, "_save", save)
        trainer: Any = SimpleNamespace(current_epoch=0)
        checkpoints.on_train_start(trainer, trainer)
        for step in range(steps):
            now[0] += 1
            if step + 1 == stop_at:
                checkpoints.stop()
            try:
                checkpoints.on_train_batch_end(trainer, trainer, None, None, step)
            except Interrupted:
                return saved, step + 1
        return saved, steps

    return run


def test_by_the_clock_once_in_its_time(saved_after) -> None:
    assert saved_after(1, 200) == ([62, 124, 186], 200)


def test_a_stop_is_not_forgotten_where_the_clock_saved(saved_after) -> None:
    for at in range(55, 70):
        saved, end = saved_after(1, 100, stop_at=at)
        assert saved[-1] == end and at < end <= at + 2
