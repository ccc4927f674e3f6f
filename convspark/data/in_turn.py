"""More pictures than fit into memory as a list: each epoch has some of the files that hold them, the next others."""

import logging
from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from ..seeds import Use, counted
from .places import list_pictures
from .scan import MOST_BAD

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardsInTurn:
    """Files of many pictures, divided into groups of about equal numbers of files; each epoch has one group.

    After as many epochs as there are groups, each picture was shown once. Files are then divided anew. Which files an
    epoch has depends only on (seed, epoch).

    Attributes:
        shards: paths and URLs.
        per_epoch: most files of an epoch.
        seed: of the division.
        bands: see `list_pictures`.
        left_out: pictures that no epoch has.
    """

    shards: list[str]
    per_epoch: int
    seed: int = 0
    bands: bool = False
    left_out: frozenset[str] = frozenset()

    @property
    def groups(self) -> int:
        """Epochs until all were shown."""
        return -(-len(self.shards) // self.per_epoch)

    def group(self, epoch: int) -> list[str]:
        """The files of an epoch, in the order of all."""
        turn, place = divmod(epoch, self.groups)
        order = counted(self.seed, Use.SHARDS, turn).permutation(len(self.shards))
        return [self.shards[number] for number in sorted(np.array_split(order, self.groups)[place])]

    def pictures(self, epoch: int, share: float = 0.0) -> tuple[list[str], list[tuple[str, str]]]:
        """Addresses of the pictures of an epoch; and (path, reason) of files that cannot be read.

        Args:
            share: of its files, after which to begin: processes that begin at different ones help each other, as what
                is found in a file is kept in the user's cache.

        Raises:
            DataError: more than 5 % of its files cannot be read, or none holds a picture.
        """
        group = self.group(epoch)
        first = int(share * len(group))
        inside: dict[str, list[str]] = {}
        bad: list[tuple[str, str]] = []
        for shard in [*group[first:], *group[:first]]:
            try:
                inside[shard] = list_pictures(shard, self.bands)
            except DataError as error:
                bad.append((shard, str(error)))
        addresses = [one for shard in group for one in inside.get(shard, ()) if one not in self.left_out]
        if len(bad) > MOST_BAD * len(group):
            raise DataError(
                f"images: {len(bad)} of the {len(group)} files of epoch {epoch + 1} cannot be used: {bad[0][1]}"
            )
        for shard, reason in bad:
            _log.warning("epoch %d goes without the pictures of %s: %s", epoch + 1, shard, reason)
        if not addresses:
            raise DataError(f"images: the {len(group)} files of epoch {epoch + 1} hold no picture")
        return addresses, bad
