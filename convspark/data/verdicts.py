"""Results of looks at files, kept from one run to the next: only new or changed files are looked at again."""

import time
from enum import IntEnum

import numpy as np

from . import index
from .names import Names

_SETTLED = 2_000_000_000  # nanoseconds: a file changed just now may change again without its time telling


class Look(IntEnum):
    """How far a file was looked at and found good."""

    NONE = 0
    QUICK = 1
    WHOLE = 2


class Verdicts:
    """Which of some files are good by an earlier look, and what is left out of them. Bad ones are looked at again.

    Attributes:
        sizes, times: bytes and nanoseconds of each file at that look, (N,) int64; -1 where there was none.
        looks: `Look` of each.
        beside: for each, the index in `remarks` of what is left out of it; 0 for nothing.
    """

    def __init__(self, names: Names, place: str | None) -> None:
        count = len(names)
        self._names, self._place = names, place
        self.sizes = np.full(count, -1, dtype=np.int64)
        self.times = np.full(count, -1, dtype=np.int64)
        self.looks = np.zeros(count, dtype=np.uint8)
        self.beside = np.zeros(count, dtype=np.uint8)
        self.remarks = [""]
        self._began = time.time_ns()
        self._learned = False
        arrays = index.load("look", place) if place is not None else None
        if arrays is not None:
            self._take_over(arrays)

    def are_good(self, indices: range, stamps: np.ndarray, look: Look) -> np.ndarray:
        """Which of the files that now have these sizes and times, (n, 2), are known to be good; (n,) bool."""
        part = slice(indices.start, indices.stop)
        same = (self.sizes[part] == stamps[:, 0]) & (self.times[part] == stamps[:, 1])
        return same & (stamps[:, 0] >= 0) & (self.looks[part] >= look)

    def remark(self, at: int) -> str | None:
        """What is left out of a file that is known to be good."""
        return self.remarks[self.beside[at]] or None

    def learn(self, at: np.ndarray, stamps: np.ndarray, look: Look) -> None:
        """Files are good; their sizes and times, (n, 2), were taken before the look."""
        if len(at):
            settled = (stamps[:, 0] >= 0) & (stamps[:, 1] < self._began - _SETTLED)
            self.sizes[at], self.times[at] = stamps.T
            self.looks[at] = np.where(settled, look, Look.NONE)
            self._learned = True

    def note(self, at: int, remark: str | None) -> None:
        """Remember what is left out of a file."""
        remark = remark or ""
        if not remark and not self.beside[at]:
            return
        if remark not in self.remarks:
            self.remarks.append(remark)
        self.beside[at] = self.remarks.index(remark)

    def keep(self) -> None:
        """Save the verdicts for the next run, if any is new."""
        if self._place is not None and self._learned:
            remarks = Names(self.remarks)
            arrays = {name: getattr(self, name) for name in ("sizes", "times", "looks", "beside")}
            arrays |= {"text": self._names.text, "ends": self._names.ends}
            index.save("look", self._place, arrays | {"said": remarks.text, "said_ends": remarks.ends})

    def _take_over(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over an earlier run's verdicts, by path where the paths have changed."""
        before = Names.of(arrays["text"], arrays["ends"])
        self.remarks = list(Names.of(arrays["said"], arrays["said_ends"]))
        own = ("sizes", "times", "looks", "beside")
        if before == self._names:
            for name in own:
                setattr(self, name, arrays[name])
            return
        rows = {name: row for row, name in enumerate(before)}
        pairs = [(at, rows[name]) for at, name in enumerate(self._names) if name in rows]
        here, there = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        for name in own:
            getattr(self, name)[here] = arrays[name][there]
