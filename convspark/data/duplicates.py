"""Pictures that show the same: found by a hash of what they look like, then compared to be sure."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE = 16
"""Pixels a side of the thumbnails that are compared."""

_HASHED = 32  # side of the picture whose coarse waves are the hash
_WAVES = 8  # along each side
_MOST_BITS = 7  # of 64 that may differ where pictures look alike: fewer than there are bytes, so that one byte is equal
_ALIKE = 0.985  # correlation of thumbnails
_BLANK = 2.0  # deviation of a thumbnail, of 255 levels, below which there is nothing to compare
_BLOCK = 2048


def thumbnail(grey: Image.Image) -> tuple[int, np.ndarray]:
    """The hash of a grey picture, 64 bits, and a thumbnail (16, 16) uint8.

    Each bit stands for a wave of the cosine transform of the shrunk picture: whether it is stronger than the median.
    What changes all pixels a little (another size, JPEG's quality, brightness) changes few bits.
    """
    small = np.asarray(grey.resize((_HASHED, _HASHED), Image.Resampling.BOX, reducing_gap=2), dtype=np.float32)
    waves = (_COSINES @ small @ _COSINES.T).reshape(-1)  # (8, 32) (32, 32) (32, 8) -> (64,)
    bits = waves > np.median(waves[1:])  # the first is the mean brightness
    number = int(np.packbits(bits).view(">u8")[0])
    # (32, 32) -> (16, 2, 16, 2) -> (16, 16)
    return number, small.reshape(SIDE, 2, SIDE, 2).mean((1, 3)).round().astype(np.uint8)


def is_blank(thumb: np.ndarray) -> bool:
    """Whether a picture is of one colour."""
    return float(thumb.std()) < _BLANK


def near_duplicates(hashes: Sequence[int], thumbs: np.ndarray) -> list[list[int]]:
    """Groups of places of pictures that look alike, each in order; blank pictures are in none.

    Hashes that differ in at most seven of 64 bits have one of their eight bytes in common: each byte in turn sorts them
    into 256 heaps, and only within a heap all are compared.

    Args:
        hashes: of each picture.
        thumbs: (N, 16, 16) uint8.
    """
    flat = thumbs.reshape(len(thumbs), -1).astype(np.float32)  # (N, 256)
    flat -= flat.mean(1, keepdims=True)
    length = np.sqrt((flat**2).sum(1))
    places = np.flatnonzero(length >= _BLANK * SIDE)
    flat /= np.maximum(length, 1e-9)[:, None]
    numbers = np.array(hashes, dtype=np.uint64)
    parent = list(range(len(numbers)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    def join(one: np.ndarray, other: np.ndarray) -> None:
        alike = (flat[one] * flat[other]).sum(1) >= _ALIKE
        for a, b in zip(one[alike].tolist(), other[alike].tolist(), strict=True):
            first, second = sorted((root(a), root(b)))
            parent[second] = first

    # Pictures of one hash are compared with the first of them; then that one with the first ones of other hashes.
    order = places[np.argsort(numbers[places], kind="stable")]
    _, starts, inverse = np.unique(numbers[order], return_index=True, return_inverse=True)
    join(order[starts][inverse], order)
    unique = order[starts]
    for shift in range(0, 64, 8):
        heap_of = (numbers[unique] >> np.uint64(shift)) & np.uint64(255)
        for heap in range(256):
            members = unique[heap_of == heap]
            for start in range(0, len(members), _BLOCK):
                block = members[start : start + _BLOCK]
                differ = np.bitwise_count(numbers[block][:, None] ^ numbers[members[start:]][None])
                one, other = np.nonzero(differ <= _MOST_BITS)
                later = one < other
                join(block[one[later]], members[start:][other[later]])
    groups: dict[int, list[int]] = defaultdict(list)
    for place in places.tolist():
        groups[root(place)].append(place)
    return [group for group in groups.values() if len(group) > 1]


def _cosines() -> np.ndarray:
    """The first eight waves over 32 pixels, (8, 32)."""
    wave, pixel = np.arange(_WAVES)[:, None], np.arange(_HASHED)[None]
    return np.cos(np.pi * wave * (2 * pixel + 1) / (2 * _HASHED)).astype(np.float32)


_COSINES = _cosines()
