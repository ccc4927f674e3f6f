"""The package's operators by kernels in Triton."""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from ...sparse.grid import PatchGrid
from ...sparse.plans import Plan, Sizes, seeing_by_tap, seen_by_tap
from ..ops import PLAIN, is_chosen, run_on, wide

_log = logging.getLogger(__name__)

_PROGRAMS = 16  # of a reduction, for each multiprocessor


@torch.compiler.assume_constant_result
def kernels_run() -> bool:
    """Whether kernels of Triton run here; also asked while a graph is traced."""
    with _disable_current_modes():
        return can_run()


@functools.cache
def can_run() -> bool:
    """Whether there is a Triton whose kernels compute here what they should; `CONVSPARK_COMPILE=0` switches it off."""
    if os.environ.get("CONVSPARK_COMPILE", "1") == "0":
        return False
    slower = "what looks at neighbours runs on PyTorch's operations, more slowly"
    if importlib.util.find_spec("triton") is None:
        _log.warning("Triton is not installed: %s", slower)
        return False
    try:
        wrong = _wrong(torch.device("cuda"))
    except Exception as error:  # whatever a compiler or a driver that is missing, broken or too old leads to
        _log.warning("kernels of Triton do not run here: %s (%s: %s)", slower, type(error).__name__, error)
        return False
    if wrong:
        _log.warning("kernels of Triton compute something else here: %s (%s)", slower, ", ".join(wrong))
    return not wrong


def _wrong(device: torch.device) -> list[str]:
    """Names of those that deviate from the operators' plain versions on a small case."""
    deviating, draw = [], torch.Generator().manual_seed(0)
    plan = Plan((4, 4), (3, 3), (2, 2), (1, 1), (1, 1))
    grid = PatchGrid.random(2, (3, 3), 0.5, draw, device)
    around, patches = grid.around(plan.reach).slots, grid.num_visible
    for dtype, exactness in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):

        def random(*size: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(size, generator=draw, device="cpu").to(device, dtype)

        rows, grad = random(patches * plan.positions, 48), random(patches * plan.outputs, 48)
        weight, bias = random(48, 1, 3, 3), random(48)
        full, other, slopes = random(40, 48, 3, 3), random(40), random(patches * plan.outputs, 40)
        cases: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (sum_rows, (rows, around, seen_by_tap(plan, device), patches, 0.0)),
            (depthwise, (rows, weight, bias, around, *plan.sizes)),
            (depthwise_input_gradient, (grad, weight, around, *plan.sizes)),
            (depthwise_weight_gradient, (grad, rows, around, *plan.sizes)),
        ]
        positive = rows.abs()  # so that no masked neighbours, which are 0, are the largest together
        taken = PLAIN["max_pool"](positive, around, *plan.sizes, -math.inf)[1]
        cases += [
            (max_pool, (positive, around, *plan.sizes, -math.inf)),
            (max_pool_gradient, (grad, taken, around, *plan.sizes)),
        ]
        moments, slope = PLAIN["batch_moments"](rows, None, None, 0.1, 1e-5), random(*rows.shape)
        sums = PLAIN["normalise_slopes"](slope, rows, *moments)
        cases += [
            (batch_moments, (rows, *torch.stack([bias, bias.abs()]), 0.1, 1e-5)),
            (normalise, (rows, *moments, bias, bias)),
            (normalise_slopes, (slope, rows, *moments)),
            (normalise_gradient, (slope, rows, *moments, bias, sums)),
            (column_sums, (slope,)),
        ]
        of_rows = PLAIN["layer_norm"](rows, bias, bias, 1e-5, dtype)[1:]
        cases += [
            (layer_norm, (rows, bias, bias, 1e-5, dtype)),
            (layer_norm_gradient, (slope, rows, *of_rows, bias)),
        ]
        if is_chosen("implicit_gemm"):
            cases += [
                (convolve, (rows, full, other, around, *plan.sizes)),
                (convolve_input_gradient, (slopes, full, around, *plan.sizes)),
                (convolve_weight_gradient, (slopes, rows, around, *plan.sizes)),
            ]
        for run, arguments in cases:
            # In float64, which neither autocast nor TF32, under which a step asks, makes anything else of.
            exact = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, arguments)
            both = (
                (run(*arguments), arguments),
                (PLAIN[run.__name__](*exact), exact),
            )  # some change what they are passed
            tensors = [[t.double() for t in tree_leaves(of) if isinstance(t, Tensor)] for of in both]
            if not all(
                torch.allclose(one, other, rtol=exactness, atol=exactness * float(other.abs().max()))
                for one, other in zip(*tensors, strict=True)
            ):
                deviating.append(f"{run.__name__} in {dtype}")
    return deviating


# ---------------------------------------------------------------- rows of the patches around


def sum_rows(rows: Tensor, around: Tensor, entries: Tensor, patches: int, outside: float) -> Tensor:
    from . import kernels

    rows = rows.contiguous()
    (results, most, _), channels = entries.shape, rows.shape[1]
    out = rows.new_empty(around.shape[0] * results, channels)
    if not out.numel():
        return out
    run: Any = kernels.sums
    at_once, side = _tile(channels, 4096)
    run[_ceil(len(out), at_once), _ceil(channels, side)](
        out, rows, around, entries.view(torch.int64),
        len(out), channels, patches, _positions(rows, patches), around.shape[1], results, most, float(outside),
        OUTSIDE=outside != 0, WIDE=_wide(rows), INDEX=_index(rows, out), ROWS=at_once, CHANNELS=side,
    )  # fmt: skip
    return out


# ---------------------------------------------------------------- depthwise convolutions


def depthwise(rows: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, *sizes: Sizes) -> Tensor:
    return _sums_along_lines(rows, weight, bias, around, _line(Plan.of(sizes), False, around.device))


def depthwise_input_gradient(grad: Tensor, weight: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    return _sums_along_lines(grad, weight, None, around, _line(Plan.of(sizes), True, around.device))


def depthwise_weight_gradient(grad: Tensor, rows: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    from . import depthwise as kernels

    plan, grad, rows = Plan.of(sizes), grad.contiguous(), rows.contiguous()
    line = _line(plan, False, around.device)
    patches, channels, (results, leading) = around.shape[0], rows.shape[1], line.lead.shape
    at_once, side = _blocks(channels, line.along["TAPS"])
    groups, beside = _ceil(patches, at_once), _ceil(channels, side) * leading
    size = _ceil(groups, max(1, _programs(rows.device) // beside))
    programs = _ceil(groups, max(1, size))
    sums = rows.new_empty(programs, leading * line.along["TAPS"], channels, dtype=wide(rows))
    if sums.numel():
        run: Any = kernels.products
        run[programs, _ceil(channels, side), leading](
            sums, grad, rows, around, line.lead,
            patches, channels, patches, _positions(rows, patches), around.shape[1], results, leading, size,
            **line.along, WIDE=_wide(rows), INDEX=_index(rows, grad), BLOCKS=at_once, CHANNELS=side,
        )  # fmt: skip
    return sums.sum(0).t().contiguous().view(-1, 1, *plan.kernel).to(rows.dtype)


class _Line(NamedTuple):
    """What a depthwise convolution, or its gradient, sees.

    Attributes:
        lead: int64 (results, taps), over all axes but the last, an entry of two int32 each.
        along: of the last axis, as the kernels in `depthwise.py` take it.
    """

    lead: Tensor
    along: dict[str, Any]


def _line(plan: Plan, turned: bool, device: torch.device) -> _Line:
    patch, kernel, stride, dilation, before, out, reach = (axis[-1] for axis in (*plan.sizes, plan.out, plan.reach))
    others = Plan(*[(start, *axis[:-1]) for start, axis in zip((1, 1, 1, 1, 0), plan.sizes, strict=True)])
    entries = (seeing_by_tap if turned else seen_by_tap)(others, device)
    steps = (1, -dilation, stride, -before) if turned else (stride, dilation, 1, before)
    side, results = (out, patch) if turned else (patch, out)
    along = {"STEPS": steps, "SIDE": side, "REACH": reach, "RESULTS": results, "TAPS": kernel}
    return _Line(entries.view(torch.int64)[..., 0], along)


def _sums_along_lines(rows: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, line: _Line) -> Tensor:
    from . import depthwise as kernels

    rows, taps = rows.contiguous(), weight.flatten(1).t().contiguous()
    patches, channels, (results, leading) = around.shape[0], rows.shape[1], line.lead.shape
    out = rows.new_empty(patches * results * line.along["RESULTS"], channels)
    if not out.numel():
        return out
    at_once, side = _blocks(channels, line.along["RESULTS"])
    run: Any = kernels.sums
    run[results * _ceil(patches, at_once), _ceil(channels, side)](
        out, rows, around, line.lead, taps, _parameter(bias, taps),
        patches, channels, patches, _positions(rows, patches), around.shape[1], results, leading, **line.along,
        BIASED=bias is not None, WIDE=_wide(rows), INDEX=_index(rows, out), BLOCKS=at_once, CHANNELS=side,
    )  # fmt: skip
    return out


def _blocks(channels: int, totals: int) -> tuple[int, int]:
    """Patches and channels of a program that keeps so many sums of each: as many as registers hold."""
    side = _tile(channels, 64)[1]
    return max(1, min(2048, 8192 // _power_of_2(totals)) // side), side


# ---------------------------------------------------------------- convolutions over all channels


def convolve(rows: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, *sizes: Sizes) -> Tensor:
    matrices = weight.flatten(2).permute(2, 1, 0)  # (taps, C, O)
    return _products_of_taps(rows, around, seen_by_tap(Plan.of(sizes), around.device), matrices, bias)


def convolve_input_gradient(grad: Tensor, weight: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    matrices = weight.flatten(2).permute(2, 0, 1)  # (taps, O, C)
    return _products_of_taps(grad, around, seeing_by_tap(Plan.of(sizes), around.device), matrices, None)


def _products_of_taps(rows: Tensor, around: Tensor, entries: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
    """rows (N * positions, ins), matrices (taps, ins, outs) -> (N * results, outs)"""
    from . import gemm

    rows = rows.contiguous()
    (results, most, _), (_, ins, outs), patches = entries.shape, matrices.shape, around.shape[0]
    out = rows.new_empty(patches * results, outs)
    if not out.numel():
        return out
    run: Any = gemm.convolve
    run[lambda tile: (_ceil(len(out), tile["ROWS"]), _ceil(outs, tile["OUTS"]))](
        out, rows, around, entries.view(torch.int64), matrices, _parameter(bias, rows),
        len(out), ins, outs, patches, _positions(rows, patches), around.shape[1], results, most, *matrices.stride(),
        BIASED=bias is not None, FACTOR=_factor(rows), WIDE=_wide(rows), INDEX=_index(rows, out, matrices),
    )  # fmt: skip
    return out


def convolve_weight_gradient(grad: Tensor, rows: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    from . import gemm

    plan, patches = Plan.of(sizes), around.shape[0]
    entries, grad, rows = seen_by_tap(plan, around.device), grad.contiguous(), rows.contiguous()
    (results, most, _), ins, outs = entries.shape, rows.shape[1], grad.shape[1]
    beside = most * _ceil(ins, 64) * _ceil(outs, 64)
    size = _ceil(_ceil(len(grad), 256), max(1, _programs(rows.device) // beside)) * 256  # whole tiles of any size
    parts = _ceil(len(grad), max(1, size))
    sums = rows.new_empty(parts, most, ins, outs, dtype=wide(rows))
    if sums.numel():
        run: Any = gemm.matrices
        run[lambda tile: (_ceil(ins, tile["INS"]) * _ceil(outs, tile["OUTS"]), parts, most)](
            sums, grad, rows, around, entries.view(torch.int64),
            len(grad), ins, outs, patches, _positions(rows, patches), around.shape[1], results, most, size,
            FACTOR=_factor(rows), WIDE=_wide(rows), INDEX=_index(rows, grad),
        )  # fmt: skip
    return sums.sum(0).permute(2, 1, 0).contiguous().unflatten(2, plan.kernel).to(rows.dtype)


# ---------------------------------------------------------------- max pooling


def max_pool(rows: Tensor, around: Tensor, *sizes_and_outside) -> tuple[Tensor, Tensor]:
    from . import pool

    *sizes, outside = sizes_and_outside
    plan, rows, patches, channels = Plan.of(sizes), rows.contiguous(), around.shape[0], rows.shape[1]
    out = rows.new_empty(patches * plan.outputs, channels)
    taken = torch.empty_like(out, dtype=torch.int8)
    _look(pool.largest, (out, taken, rows), around, seen_by_tap(plan, around.device), float(outside))
    return out, taken


def max_pool_gradient(grad: Tensor, taken: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    from . import pool

    plan = Plan.of(sizes)
    out = grad.new_empty(around.shape[0] * plan.positions, grad.shape[1])
    _look(pool.gradient, (out, grad.contiguous(), taken), around, seeing_by_tap(plan, around.device))
    return out


def _look(run: Any, tensors: tuple[Tensor, Tensor, Tensor], around: Tensor, entries: Tensor, *more: float) -> None:
    """Run a kernel of pooling, (out, ..., what is read)."""
    out, read = tensors[0], tensors[-1]
    (results, most, _), patches, channels = entries.shape, around.shape[0], out.shape[1]
    if not out.numel():
        return
    at_once, side = _tile(channels, 2048)
    run[_ceil(len(out), at_once), _ceil(channels, side)](
        *tensors, around, entries.view(torch.int64), len(out), channels, patches, _positions(read, patches),
        around.shape[1], results, most, *more,
        WIDE=_wide(out), INDEX=_index(read, out), ROWS=at_once, CHANNELS=side,
    )  # fmt: skip


# ---------------------------------------------------------------- batch norms


def batch_moments(
    rows: Tensor, running_mean: Tensor | None, running_variance: Tensor | None, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    from . import norms

    rows = rows.contiguous()
    (count, channels), kind = rows.shape, {"WIDE": _wide(rows), "INDEX": _index(rows)}
    parts, size, tile, beside = _parts(rows)
    of_parts = rows.new_empty(2, parts, channels, dtype=wide(rows))
    run: Any = norms.moments
    run[parts, beside](of_parts, rows, count, channels, size, **kind, **tile)
    mean, scale = rows.new_empty(2, channels, dtype=wide(rows))
    statistics = [t for t in (running_mean, running_variance) if t is not None]
    running = [t.contiguous() for t in statistics]
    run, side = norms.join, min(16, _power_of_2(channels))
    run[_ceil(channels, side),](
        mean, scale, *(running or (mean, scale)), of_parts, count, channels, size, parts, float(momentum), float(eps),
        RUNNING=bool(running), WIDE=_wide(rows), PARTS=64, CHANNELS=side,
    )  # fmt: skip
    for one, other in zip(statistics, running, strict=True):
        one.copy_(other)  # itself, unless it is a part of something larger
    return mean, scale


def normalise(rows: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    from . import norms

    rows = rows.contiguous()
    out, (count, channels) = torch.empty_like(rows), rows.shape
    at_once, side = _tile(channels, 4096)
    run: Any = norms.normalise
    run[_ceil(count, at_once), _ceil(channels, side)](
        out, rows, mean, scale, _parameter(weight, rows), _parameter(bias, rows), count, channels,
        WEIGHTED=weight is not None, BIASED=bias is not None, WIDE=_wide(rows), INDEX=_index(rows),
        ROWS=at_once, CHANNELS=side,
    )  # fmt: skip
    return out


def normalise_slopes(grad: Tensor, rows: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    from . import norms

    rows, grad = rows.contiguous(), grad.contiguous()
    (count, channels), kind = rows.shape, {"WIDE": _wide(rows), "INDEX": _index(rows)}
    parts, size, tile, beside = _parts(rows)
    sums = rows.new_empty(parts, 2, channels, dtype=wide(rows))
    run: Any = norms.slopes
    run[parts, beside](sums, grad, rows, mean, scale, count, channels, size, ALONG=True, **kind, **tile)
    return sums.sum(0)


def column_sums(rows: Tensor) -> Tensor:
    from . import norms

    rows = rows.contiguous()
    parts, size, tile, beside = _parts(rows)
    sums = rows.new_empty(parts, rows.shape[1], dtype=wide(rows))
    if sums.numel():
        run: Any = norms.slopes
        run[parts, beside](
            sums, rows, rows, sums, sums, *rows.shape, size,
            ALONG=False, WIDE=_wide(rows), INDEX=_index(rows), **tile,
        )  # fmt: skip
    return sums.sum(0).to(rows.dtype)


def normalise_gradient(
    grad: Tensor, rows: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None, sums: Tensor
) -> Tensor:
    from . import norms

    rows, grad = rows.contiguous(), grad.contiguous()
    out, (count, channels) = torch.empty_like(rows), rows.shape
    at_once, side = _tile(channels, 4096)
    run: Any = norms.gradient
    run[_ceil(count, at_once), _ceil(channels, side)](
        out, grad, rows, mean, scale, _parameter(weight, rows), sums, count, channels,
        WEIGHTED=weight is not None, WIDE=_wide(rows), INDEX=_index(rows), ROWS=at_once, CHANNELS=side,
    )  # fmt: skip
    return out


# ---------------------------------------------------------------- layer norms


def layer_norm(
    rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    from . import norms

    rows, (count, channels) = rows.contiguous(), rows.shape
    out = torch.empty_like(rows, dtype=dtype)
    mean, scale = (rows.new_empty(count, dtype=wide(rows)) for _ in range(2))
    if out.numel():
        at_once, side = _rows_at_once(channels)
        run: Any = norms.layer_norm
        run[_ceil(count, at_once),](
            out, mean, scale, rows, _parameter(weight, rows), _parameter(bias, rows), count, channels, float(eps),
            WEIGHTED=weight is not None, BIASED=bias is not None, WIDE=_wide(rows), INDEX=_index(rows),
            ROWS=at_once, CHANNELS=side,
        )  # fmt: skip
    return out, mean, scale


def layer_norm_gradient(
    grad: Tensor, rows: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    from . import norms

    rows, grad, (count, channels) = rows.contiguous(), grad.contiguous(), rows.shape
    at_once, side = _rows_at_once(channels)
    size = _ceil(_ceil(count, at_once), _programs(rows.device) // 4) * at_once
    parts = _ceil(count, max(1, size))
    out, sums = torch.empty_like(rows), rows.new_empty(parts, 2, channels, dtype=wide(rows))
    if out.numel():
        run: Any = norms.layer_norm_gradient
        run[parts,](
            out, sums, grad, rows, mean, scale, _parameter(weight, rows), count, channels, size,
            WEIGHTED=weight is not None, WIDE=_wide(rows), INDEX=_index(rows), ROWS=at_once, CHANNELS=side,
        )  # fmt: skip
    return out, sums.sum(0)


def _rows_at_once(channels: int) -> tuple[int, int]:
    """Rows of a program that has all channels of each, and their number rounded up."""
    side = _power_of_2(channels)
    return max(1, 2048 // side), side


def _parts(rows: Tensor) -> tuple[int, int, dict[str, int], int]:
    """Parts that rows are summed in, rows of each, the tile of a program, and programs beside each other."""
    count, channels = rows.shape
    at_once, side = _tile(channels, 2048)
    beside = _ceil(channels, side)
    size = _ceil(_ceil(count, at_once), max(1, _programs(rows.device) // 4 // beside)) * at_once
    return _ceil(count, max(1, size)), size, {"ROWS": at_once, "CHANNELS": side}, beside


# ---------------------------------------------------------------- how the work is cut


def _tile(channels: int, most: int) -> tuple[int, int]:
    """Rows and channels of a program, so many values together; as wide as leaves few channels idle."""
    widths = [side for side in (64, 32, 16) if _ceil(channels, side) * side <= 1.1 * channels]
    side = widths[0] if widths else min(64, _power_of_2(channels))
    return most // side, side


def _parameter(of_channels: Tensor | None, instead: Tensor) -> Tensor:
    """A parameter as kernels read it, one channel's number after the other's; where there is none, any tensor."""
    return instead if of_channels is None else of_channels.contiguous()


def _positions(rows: Tensor, patches: int) -> int:
    return rows.shape[0] // max(patches, 1)


@functools.cache
def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return _PROGRAMS
    return _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count


def _wide(rows: Tensor):
    import triton.language as tl

    return tl.float64 if wide(rows) == torch.float64 else tl.float32


def _factor(rows: Tensor):
    """The type of the factors of a matrix product: the rows' own."""
    import triton.language as tl

    types = {torch.float64: tl.float64, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    # Triton's interpreter would multiply bfloat16 as the whole numbers that it keeps it in.
    return types.get(rows.dtype, tl.float32) if rows.is_cuda else _wide(rows)


def _index(*tensors: Tensor):
    """The type of integers that are large enough for places within these tensors."""
    import triton.language as tl

    return tl.int64 if max(t.numel() for t in tensors) >= 2**31 else tl.int32


def _ceil(number: int, by: int) -> int:
    return -(-number // by)


def _power_of_2(least: int) -> int:
    """The smallest power of 2 that is at least `least`."""
    return 1 << max(0, least - 1).bit_length()


def _where_they_lie(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, launched on the device of its first tensor: Triton launches on the current one, and so on another
    where there are several."""

    @functools.wraps(kernel)
    def run(rows: Tensor, *arguments: Any) -> Any:
        with torch.cuda.device_of(rows):
            return kernel(rows, *arguments)

    return run


for _kernel in (
    sum_rows,
    depthwise,
    depthwise_input_gradient,
    depthwise_weight_gradient,
    convolve,
    convolve_input_gradient,
    convolve_weight_gradient,
    max_pool,
    max_pool_gradient,
    batch_moments,
    normalise,
    normalise_slopes,
    normalise_gradient,
    column_sums,
    layer_norm,
    layer_norm_gradient,
):
    _dtypes = torch.float32, torch.bfloat16, torch.float16, torch.float64
    run_on("cuda", _kernel.__name__, _where_they_lie(_kernel), _dtypes, kernels_run)
