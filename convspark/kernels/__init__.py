"""Faster ways to carry out the engine's plans, by kind of device. `sparse/` computes the same without any of them.

What each gains of a whole step is measured by `benchmarks/kernels.py` and, on GPUs, `benchmarks/gpu.py`. What has not
been seen to gain there is switched on by its name: CONVSPARK_KERNELS=layer_norm,column_sums,products,implicit_gemm.
"""

from __future__ import annotations

from ..sparse.faster import Faster
from . import batch_norm, cpu, depthwise, gpu, implicit_gemm, layer_norm, linear, max_pool, pairs, rows
from .ops import is_chosen


def register(faster: Faster) -> None:
    """Offer all kernels to the engine; they are asked in this order."""
    cpu.register()
    gpu.register()
    if is_chosen("implicit_gemm"):
        faster.convolutions.append(implicit_gemm.offer)
    faster.convolutions += [depthwise.offer, pairs.offer]
    faster.sums.append(rows.offer)
    faster.max_pools.append(max_pool.offer)
    faster.batch_norms.append(batch_norm.offer)
    if is_chosen("layer_norm"):
        faster.layer_norms.append(layer_norm.offer)
    if is_chosen("column_sums"):
        faster.linears.append(linear.offer)
    if is_chosen("products"):
        faster.product_devices.add("cuda")
