"""Orders of an epoch."""

import numpy as np

_WINDOW = 2048  # pictures that are shuffled with one another


def in_windows(rng: np.random.Generator, blocks: np.ndarray) -> np.ndarray:
    """An order of all pictures in which those that lie together are read at about the same time.

    Blocks are taken in random order, as many at a time as make a window (at least one), and the pictures of a window
    are shuffled.

    Args:
        blocks: of each picture, (N,); those of a block follow each other.
    """
    starts = np.flatnonzero(np.diff(blocks, prepend=blocks[:1] - 1))
    sizes = np.diff(starts, append=len(blocks))
    order = rng.permutation(len(starts))
    window = np.cumsum(sizes[order]) // _WINDOW  # of each block
    pieces = zip(starts[order], sizes[order], strict=True)
    pictures = np.concatenate([np.arange(start, start + size) for start, size in pieces])
    chance = rng.random(len(pictures))
    return pictures[np.lexsort((chance, np.repeat(window, sizes[order])))]
