"""Which images of an optimiser step's batch belong to one forward pass of one process."""

from typing import NamedTuple


class Part(NamedTuple):
    """A forward pass's images: those from `first` on, so many, of a batch of `total`.

    What is random in a step is a function of an image's place in the batch, so that neither the number of processes
    nor that of passes changes it.
    """

    first: int
    images: int
    total: int

    @property
    def is_whole(self) -> bool:
        return self.images == self.total


def part_of(batch_size: int, passes: int, number: int, rank: int = 0, processes: int = 1) -> Part:
    """Part of pass `number` (from 0) of process `rank`: the batch is divided into passes, and each among processes."""
    count = batch_size // (passes * processes)
    return Part((number * processes + rank) * count, count, batch_size)
