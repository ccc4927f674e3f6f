"""Faster ways to carry out the engine's plans, by kind of device. `sparse/` computes the same without any of them.

What each gains of a whole step is measured by `benchmarks/kernels.py` and, on GPUs, `benchmarks/gpu.py`. What has not
been seen to gain there is switched on by its name: CONVSPARK_KERNELS=batch_norm.
"""

from __future__ import annotations

import os

from ..sparse.faster import Faster
from . import batch_norm, cpu, depthwise, gpu, pairs, rows


def register(faster: Faster) -> None:
    """Offer all kernels to the engine; they are asked in this order."""
    cpu.register()
    gpu.register()
    faster.convolutions += [depthwise.offer, pairs.offer]
    faster.sums.append(rows.offer)
    if "batch_norm" in os.environ.get("CONVSPARK_KERNELS", "").split(","):
        faster.batch_norms.append(batch_norm.offer)  # right, but not yet seen to be quicker
