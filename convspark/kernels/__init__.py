"""Faster ways to carry out the engine's plans, by kind of device. `sparse/` computes the same without any of them.

What each gains of a whole step is measured by `benchmarks/kernels.py`.
"""

from __future__ import annotations

from ..sparse.faster import Faster
from . import batch_norm, cpu, depthwise, gpu, pairs, rows


def register(faster: Faster) -> None:
    """Offer all kernels to the engine; they are asked in this order."""
    cpu.register()
    gpu.register()
    faster.convolutions += [depthwise.offer, pairs.offer]
    faster.sums.append(rows.offer)
    faster.batch_norms.append(batch_norm.offer)
