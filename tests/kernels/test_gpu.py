"""The kernels for GPUs: on a GPU where there is one, else by Triton's interpreter; and compiled for other GPUs."""

import copy
import functools
import json
import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from convspark import SparK
from convspark.data import IMAGENET_MEAN, IMAGENET_STD, Normalise
from convspark.kernels import batch_norm, depthwise, implicit_gemm, layer_norm, linear, max_pool, ops
from convspark.kernels.gpu import operators
from convspark.model.norms import BatchNorm
from convspark.sparse import PatchGrid, gather
from convspark.sparse.convolve import convolved
from convspark.sparse.faster import registered
from convspark.sparse.plans import Plan, cells_seeing, image_cells, seeing_by_tap, seen_by_cell, seen_by_tap

pytest.importorskip("triton", reason="Triton is not there")
from triton.runtime.jit import JITFunction

from convspark.kernels.gpu import gemm, kernels, norms, pool

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EXACTNESS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@st.composite
def cases(draw):
    """A plan, and a grid that it can be carried out on."""
    dims = draw(st.integers(1, 3))

    def along_axes(most):
        return draw(st.lists(st.integers(1, most), min_size=dims, max_size=dims))

    kernel, strides, dilations = along_axes(5 if dims < 3 else 3), along_axes(2), along_axes(2)
    patch = [stride * n for stride, n in zip(strides, along_axes(3 if dims < 3 else 2), strict=True)]
    before = [draw(st.integers(0, d * (k - 1))) for k, d in zip(kernel, dilations, strict=True)]
    plan, shape = Plan.of((patch, kernel, strides, dilations, before)), along_axes(3)
    masked = draw(st.sampled_from([0.0, 0.3, 0.6, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    visible = torch.rand(draw(st.integers(1, 3)), *shape, generator=generator) >= masked
    visible[-1] = False  # an image with nothing visible
    return plan, PatchGrid(visible.to(DEVICE)), draw(st.sampled_from([1, 3, 8, 21, 70])), generator


def equal(one, other, dtype):
    assert one.dtype == other.dtype and one.shape == other.shape
    scale = float(other.abs().max()) if other.numel() else 0.0
    torch.testing.assert_close(one, other, rtol=EXACTNESS[dtype], atol=EXACTNESS[dtype] * scale)


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from(list(EXACTNESS)))
def test_depthwise_kernels_equal_the_plain_versions(case, dtype):
    (plan, grid, channels, generator), run = case, operators
    around = grid.around(plan.reach).slots
    rows, grad = (
        torch.randn(grid.num_visible * n, channels, generator=generator).to(DEVICE, dtype)
        for n in (plan.positions, plan.outputs)
    )
    sizes = (channels, 1, *plan.kernel), (channels,)
    weight, bias = (torch.randn(size, generator=generator).to(DEVICE, dtype) for size in sizes)
    for name, arguments in (
        ("depthwise", (rows, weight, bias, around)),
        ("depthwise", (rows, weight, None, around)),
        ("depthwise_input_gradient", (grad, weight, around)),
        ("depthwise_weight_gradient", (grad, rows, around)),
    ):
        ours = getattr(run, name)(*arguments, *plan.sizes)
        equal(ours, ops.PLAIN[name](*arguments, *plan.sizes), dtype)


@settings(max_examples=15, deadline=None)
@given(cases(), st.sampled_from(list(EXACTNESS)), st.sampled_from([1, 5, 16, 80]))
def test_convolutions_over_all_channels_equal_the_plain_versions(case, dtype, outs):
    plan, grid, ins, generator = case
    around = grid.around(plan.reach).slots
    rows = torch.randn(grid.num_visible * plan.positions, ins, generator=generator).to(DEVICE, dtype)
    grad = torch.randn(grid.num_visible * plan.outputs, outs, generator=generator).to(DEVICE, dtype)
    weight, bias = (
        torch.randn(size, generator=generator).to(DEVICE, dtype) for size in ((outs, ins, *plan.kernel), (outs,))
    )
    if grid.num_visible % 2:  # in another order in memory
        weight = weight.movedim(1, -1).contiguous().movedim(-1, 1)
    for name, arguments in (
        ("convolve", (rows, weight, bias, around)),
        ("convolve", (rows, weight, None, around)),
        ("convolve_input_gradient", (grad, weight, around)),
        ("convolve_weight_gradient", (grad, rows, around)),
    ):
        ours = getattr(operators, name)(*arguments, *plan.sizes)
        equal(ours, ops.PLAIN[name](*arguments, *plan.sizes), dtype)


@pytest.mark.parametrize("bytes_each", [2, 4, 8])
@pytest.mark.parametrize(("ins", "outs"), [(1, 1), (3, 64), (64, 3), (48, 48), (64, 64), (512, 2048)])
def test_tiles_that_are_tried_fit_the_channels(ins, outs, bytes_each):
    rows = SimpleNamespace(is_cuda=True, element_size=lambda: bytes_each)
    tried = gemm.fitting(gemm.TILES, {"rows": rows, "ins": ins, "outs": outs})
    assert 1 <= len(tried) <= 5 and (len(tried) > 2 or bytes_each > 2 or min(ins, outs) < 16)
    for tile in tried:
        for side, channels in ((tile.kwargs["INS"], ins), (tile.kwargs["OUTS"], outs)):
            assert side <= max(16, 2 * channels - 1)


def test_kernels_of_many_channels_are_launched_in_grids_that_gpus_take(monkeypatch):
    """At most 65,535 along the second and the third axis."""
    launched, plan = [], Plan((1,), (3,), (1,), (1,), (1,))

    class Recorder:
        def __getitem__(self, grid):
            launched.extend(grid(tile.kwargs) for tile in gemm.TILES)
            return lambda *arguments, **constants: None

    monkeypatch.setattr(gemm, "matrices", Recorder())
    monkeypatch.setattr(gemm, "convolve", Recorder())
    with FakeTensorMode():
        rows, weight = torch.empty(2, 4096), torch.empty(4096, 4096, 3)
        around, grad = torch.zeros(2, 3, dtype=torch.int32), torch.empty(2, 4096)
        operators.convolve(rows, weight, None, around, *plan.sizes)
        operators.convolve_input_gradient(grad, weight, around, *plan.sizes)
        operators.convolve_weight_gradient(grad, rows, around, *plan.sizes)
    assert len(launched) == 3 * len(gemm.TILES)
    assert max(n for grid in launched for n in grid[1:]) < 2**16


@settings(max_examples=25, deadline=None)
@given(cases(), st.sampled_from(list(EXACTNESS)), st.sampled_from([0.0, -1.7, -torch.inf]))
def test_sums_of_rows_equal_the_plain_version(case, dtype, outside):
    plan, grid, channels, generator = case
    device, patches = grid.device, grid.num_visible
    positions, blocks = plan.positions, grid.around(plan.reach).slots
    images = grid.slots.to(torch.int32).view(grid.batch_size, -1)
    sides = tuple(h * p + 1 for h, p in zip(grid.shape, plan.patch, strict=True))
    for slots, entries, read in (
        (blocks, seen_by_cell(plan, device), positions),
        (blocks, cells_seeing(plan, device), plan.cells),
        (blocks, seen_by_tap(plan, device), positions),
        (blocks, seeing_by_tap(plan, device), plan.outputs),
        (images, image_cells(grid.shape, plan.patch, (0,) * len(sides), sides, device), positions),
    ):
        rows = torch.randn(patches * read, channels, generator=generator).to(DEVICE, dtype)
        beyond = outside if entries.shape[1] == 1 else 0.0
        ours = operators.sum_rows(rows, slots, entries, patches, beyond)
        equal(ours, ops.PLAIN["sum_rows"](rows, slots, entries, patches, beyond), dtype)


@settings(max_examples=25, deadline=None)
@given(cases(), st.sampled_from(list(EXACTNESS)), st.sampled_from([0.0, -1.5, -torch.inf]), st.booleans())
def test_max_pooling_equals_the_plain_version(case, dtype, outside, ties):
    plan, grid, channels, generator = case
    around = grid.around(plan.reach).slots
    rows, grad = (
        torch.randn(grid.num_visible * n, channels, generator=generator).to(DEVICE, dtype)
        for n in (plan.positions, plan.outputs)
    )
    if ties:
        rows = rows.round()
    pooled, taken = operators.max_pool(rows, around, *plan.sizes, outside)
    expected, first = ops.PLAIN["max_pool"](rows, around, *plan.sizes, outside)
    assert torch.equal(pooled, expected)
    if not rows.is_cuda:  # where PyTorch too names the first of several
        assert torch.equal(taken, first)
    ours = operators.max_pool_gradient(grad, taken, around, *plan.sizes)
    equal(ours, ops.PLAIN["max_pool_gradient"](grad, taken, around, *plan.sizes), dtype)


COMPILED = """
import json, pathlib, re, subprocess, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from convspark.kernels.gpu import depthwise, gemm, kernels, norms, pool

constants = {"ROWS": 64, "CHANNELS": 64, "WIDE": triton.language.float32, "INDEX": triton.language.int32}
affine = {"WEIGHTED": True, "BIASED": True}
product = {name: constants[name] for name in ("WIDE", "INDEX")} | {"FACTOR": triton.language.bfloat16}
asked = [
    (kernels.sums, constants | {"OUTSIDE": False}),
    (kernels.sums, constants | {"OUTSIDE": True}),
    (pool.largest, constants | {"ROWS": 32}),
    (pool.gradient, constants | {"ROWS": 32}),
    (norms.moments, constants | {"ROWS": 32}),
    (norms.join, {"PARTS": 64, "CHANNELS": 16, "WIDE": triton.language.float32, "RUNNING": True}),
    (norms.normalise, constants | affine),
    (norms.slopes, constants | {"ROWS": 32, "ALONG": True}),
    (norms.slopes, constants | {"ROWS": 32, "ALONG": False}),
    (norms.gradient, constants | {"WEIGHTED": True}),
]
for rows, channels in ((16, 128), (1, 2048)):
    whole = constants | {"ROWS": rows, "CHANNELS": channels}
    asked += [(norms.layer_norm, whole | affine), (norms.layer_norm_gradient, whole | {"WEIGHTED": True})]
of_line = {name: constants[name] for name in ("CHANNELS", "WIDE", "INDEX")}
for side, taps, stride, reach in ((1, 7, 1, 3), (2, 7, 1, 2), (8, 7, 1, 1), (16, 3, 2, 1), (4, 5, 1, 1)):
    line = of_line | {"STEPS": (stride, 1, 1, taps // 2), "SIDE": side, "REACH": reach, "TAPS": taps}
    results = side // stride
    asked += [
        (depthwise.sums, line | {"RESULTS": results, "BIASED": True, "BLOCKS": min(32, 128 // results)}),
        (depthwise.products, line | {"RESULTS": results, "BLOCKS": 32 if taps < 5 else 16}),
    ]
asked = [(kernel, fixed, {}) for kernel, fixed in asked]
for tile in gemm.TILES[int(sys.argv[3]) :]:
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    asked += [
        (gemm.convolve.fn, product | tile.kwargs | {"BIASED": True, "of_in": 1}, options),  # channels last
        (gemm.convolve.fn, product | tile.kwargs | {"BIASED": False, "of_out": 1}, options),  # its input's gradient
        (gemm.matrices.fn, product | tile.kwargs, options),
    ]
types = dict.fromkeys(("out", "rows", "grad", "weight", "bias"), "*bf16")
types |= dict.fromkeys("mean scale running_mean running_variance parts_of sums mean_out scale_out".split(), "*fp32")
types |= dict.fromkeys(("momentum", "eps"), "fp64")
types |= {"taken": "*i8", "around": "*i32", "entries": "*i64", "lead": "*i64", "outside": "fp64"}
cuobjdump = next(pathlib.Path(triton.__file__).parent.rglob("bin/cuobjdump"))
capability = int(sys.argv[2])
for kernel, fixed, options in asked:
    names = [name for name in kernel.arg_names if name not in fixed]
    signature = {name: types.get(name, "i32") for name in names}
    even = {*types, "channels", "ins", "outs", "of_tap", "of_in", "of_out"} - fixed.keys()
    even -= {name for name, kind in types.items() if kind.startswith("fp")}
    hints = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in even}
    source = ASTSource(kernel, signature | dict.fromkeys(fixed, "constexpr"), fixed, hints)
    file = pathlib.Path(sys.argv[1], "kernel.cubin")
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    file.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run([cuobjdump, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    counts = {what: int(n) for what, n in re.findall(r"(REG|STACK|LOCAL):(\\d+)", usage)}
    ahead = {"stages": options.get("num_stages", 0), "ahead": compiled.asm["ptx"].count("cp.async.commit_group")}
    print(json.dumps({"kernel": kernel.__name__} | ahead | counts))
"""


@pytest.mark.parametrize(
    ("capability", "tiles"), [*(pytest.param(of, 0, marks=pytest.mark.slow) for of in (80, 90)), (90, -2)]
)
def test_kernels_are_compiled_for_gpus_without_spilling_registers(tmp_path, capability, tiles):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", COMPILED, str(tmp_path), str(capability), str(tiles)],
        capture_output=True, text=True, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    compiled = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(compiled) == 24 + 3 * len(gemm.TILES[tiles:])
    for one in compiled:
        assert one["STACK"] + one["LOCAL"] <= 16 < one["REG"] <= 255, one
        assert one["stages"] < 4 or one["ahead"], one  # it loads while it multiplies


@settings(max_examples=15, deadline=None)
@given(
    st.integers(20, 700), st.sampled_from([1, 3, 16, 70]), st.sampled_from(list(EXACTNESS)), st.booleans(),
    st.sampled_from([0.0, 30.0]), st.integers(0, 99),
)  # fmt: skip
def test_batch_norms_equal_those_of_pytorch(count, channels, dtype, affine, mean, seed):
    draw = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rows, grad = (torch.randn(count, channels, generator=draw).add(mean).to(DEVICE, dtype) for _ in range(2))
    weight, bias, before, spread = (torch.rand(channels, generator=draw).to(DEVICE, wide) + 0.5 for _ in range(4))
    parameters = (weight, bias) if affine else (None, None)

    statistics = before.clone(), spread.clone()
    moments = operators.batch_moments(rows, *statistics, 0.1, 1e-5)
    normalised = operators.normalise(rows, *moments, *parameters)
    sums = operators.normalise_slopes(grad, rows, *moments)
    to_rows = operators.normalise_gradient(grad, rows, *moments, parameters[0], sums)

    expected = before.double(), spread.double()
    leaves = [t.double().requires_grad_() for t in (rows, weight, bias)]
    out = functional.batch_norm(leaves[0], *expected, *(leaves[1:] if affine else (None, None)), True, 0.1, 1e-5)
    slopes = torch.autograd.grad(out, leaves, grad.double(), allow_unused=True)
    exactness = max(EXACTNESS[dtype], EXACTNESS[wide]) * (10 if mean else 1)
    pairs = [(normalised, out.detach()), (to_rows, slopes[0]), *zip(statistics, expected, strict=True)]
    for one, other in [*pairs, *([(sums[0], slopes[2]), (sums[1], slopes[1])] if affine else [])]:
        scale = max(float(other.abs().max()), float(grad.abs().max()) * (count if other is slopes[1] else 1))
        torch.testing.assert_close(one.double(), other, rtol=exactness, atol=exactness * scale)


@pytest.mark.parametrize(
    "grad",
    [torch.randn(40, 12)[:, :6], torch.randn(6, 40).t(), torch.ones(1, 1).expand(40, 6)],
    ids=["part of a concatenation", "turned", "expanded"],
)
def test_gradients_of_batch_norms_may_lie_in_memory_in_any_order(grad):
    rows, grad = torch.randn(40, 6, device=DEVICE), grad.to(DEVICE)
    moments = ops.PLAIN["batch_moments"](rows, None, None, 0.1, 1e-5)
    sums = ops.PLAIN["normalise_slopes"](grad, rows, *moments)
    equal(operators.normalise_slopes(grad, rows, *moments), sums, rows.dtype)
    ours = operators.normalise_gradient(grad, rows, *moments, None, sums)
    equal(ours, ops.PLAIN["normalise_gradient"](grad, rows, *moments, None, sums), rows.dtype)


class _Apart(TorchDispatchMode):
    """No operator of the package gets rows that do not lie one after the other, and that it would copy."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "convspark":
            assert all(t.is_contiguous() for t in args if isinstance(t, torch.Tensor)), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, around, plan: convolved(x, torch.ones(8, 1, 3, 3), None, depthwise.Depthwise(around, plan)),
        lambda x, around, plan: convolved(x, torch.ones(8, 8, 3, 3), None, implicit_gemm.ImplicitGemm(around, plan)),
        lambda x, *_: batch_norm.batch_norm(x, None, None, None, None, 0.1, 1e-5),
    ],
    ids=["depthwise", "over all channels", "batch norm"],
)
def test_a_gradient_that_is_a_part_of_another_is_copied_once(function):
    """As those of results that are concatenated are; two operators read it."""
    plan, x = Plan(*[(n, n) for n in (2, 3, 1, 1, 1)]), torch.randn(4, 2, 2, 8).movedim(-1, 1).requires_grad_()
    around = PatchGrid.random(2, (2, 2), 0.5).around(plan.reach).slots
    joined = torch.cat([function(x, around, plan), x], 1)
    with _Apart():
        joined.sin().sum().backward()


@pytest.mark.parametrize(
    "parameters", [torch.rand(6, 2).unbind(1), torch.rand(2, 1).expand(2, 6).unbind()], ids=["columns", "expanded"]
)
def test_parameters_may_lie_in_memory_in_any_order(parameters):
    (weight, bias), rows, grad = (t.to(DEVICE) for t in parameters), torch.randn(8, 6).to(DEVICE), torch.randn(8, 6)
    grad, taps, plan = grad.to(DEVICE), torch.randn(6, 6, 3).to(DEVICE), Plan((2,), (3,), (1,), (1,), (1,))
    around = PatchGrid(torch.ones(2, 2, dtype=torch.bool, device=DEVICE)).around(plan.reach).slots
    moments, of_rows = torch.rand(2, 6).to(DEVICE), torch.rand(2, 8).to(DEVICE)
    for name, arguments in (
        ("normalise", (rows, *moments, weight, bias)),
        ("normalise_gradient", (grad, rows, *moments, weight, moments)),
        ("layer_norm", (rows, weight, bias, 1e-5, rows.dtype)),
        ("layer_norm_gradient", (grad, rows, *of_rows, weight)),
        ("depthwise", (rows, taps[:, :1], bias, around, *plan.sizes)),
        ("convolve", (rows, taps, bias, around, *plan.sizes)),
    ):
        ours, plain = (tree_leaves(run(*arguments)) for run in (getattr(operators, name), ops.PLAIN[name]))
        for one, other in zip(ours, plain, strict=True):
            equal(one, other, rows.dtype)


def test_running_statistics_may_be_a_part_of_something_larger():
    rows, ours, plain = torch.randn(8, 6, device=DEVICE), *torch.rand(6, 2).to(DEVICE).expand(2, 6, 2).clone()
    for run, statistics in ((operators.batch_moments, ours), (ops.PLAIN["batch_moments"], plain)):
        run(rows, *statistics.unbind(1), 0.1, 1e-5)
    equal(ours, plain, rows.dtype)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 90), st.sampled_from([1, 3, 16, 70, 384]), st.sampled_from(list(EXACTNESS)), st.booleans(),
    st.sampled_from([0.0, 30.0]), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_layer_norms_equal_those_of_pytorch(count, channels, dtype, affine, mean, casts, seed):
    draw = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    kind = wide if casts else dtype  # as autocast has it
    rows = torch.randn(count, channels, generator=draw).add(mean).to(DEVICE, dtype)
    grad = torch.randn(count, channels, generator=draw).to(DEVICE, kind)
    weight, bias = (torch.rand(channels, generator=draw).to(DEVICE, kind) + 0.5 for _ in range(2))
    parameters = (weight, bias) if affine else (None, None)
    out, *of_rows = operators.layer_norm(rows, *parameters, 1e-5, kind)
    to_rows, sums = operators.layer_norm_gradient(grad, rows, *of_rows, parameters[0])
    assert (out.dtype, to_rows.dtype, sums.dtype) == (kind, dtype, wide)

    leaves = [t.double().requires_grad_() for t in (rows, weight, bias)]
    expected = functional.layer_norm(leaves[0], (channels,), *(leaves[1:] if affine else (None, None)), 1e-5)
    slopes = torch.autograd.grad(expected, leaves, grad.double(), allow_unused=True)
    exactness = max(EXACTNESS[dtype], EXACTNESS[kind]) * (30 if mean else 1)
    pairs = [(out, expected.detach()), (to_rows, slopes[0]), *([(sums[0], slopes[2]), (sums[1], slopes[1])] * affine)]
    largest = max(1.0, float(grad.abs().max())) if count else 1.0
    steepest = largest * max(1.0, float(of_rows[1].max()) if count else 1.0)
    for one, other in pairs:
        scale = largest * count if other is slopes[1] else steepest
        torch.testing.assert_close(one.double(), other, rtol=exactness, atol=exactness * scale)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 700), st.sampled_from([1, 3, 16, 70]), st.sampled_from(list(EXACTNESS)))
def test_column_sums_equal_the_plain_version(count, channels, dtype):
    rows = torch.randn(count, channels, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    equal(operators.column_sums(rows), ops.PLAIN["column_sums"](rows), dtype)
    apart = rows.t().contiguous().t()  # in another order in memory
    equal(operators.column_sums(apart), ops.PLAIN["column_sums"](rows), dtype)


def test_results_lie_in_memory_as_compiled_graphs_are_told():
    """They check it as they run; what they are told is what an operator says of tensors without values."""
    plan, taps = Plan((2,), (3,), (1,), (1,), (1,)), torch.ones(2, 4, dtype=torch.int8, device=DEVICE)
    around = PatchGrid.random(1, (2,), 0.5, device=DEVICE).around(plan.reach).slots
    rows, slopes = torch.randn(2, 4, device=DEVICE), torch.randn(2, 5, device=DEVICE)
    apart, full, ones = torch.randn(4, 1, 3, device=DEVICE), torch.randn(5, 4, 3, device=DEVICE), rows[0]
    cases = {
        "sum_rows": (rows, around, seen_by_tap(plan, DEVICE), 1, 0.0),
        "depthwise": (rows, apart, ones, around, *plan.sizes),
        "depthwise_input_gradient": (rows, apart, around, *plan.sizes),
        "depthwise_weight_gradient": (rows, rows, around, *plan.sizes),
        "convolve": (rows, full, None, around, *plan.sizes),
        "convolve_input_gradient": (slopes, full, around, *plan.sizes),
        "convolve_weight_gradient": (slopes, rows, around, *plan.sizes),
        "max_pool": (rows, around, *plan.sizes, 0.0),
        "max_pool_gradient": (rows, taps, around, *plan.sizes),
        "batch_moments": (rows, None, None, 0.1, 1e-5),
        "normalise": (rows, ones, ones, None, None),
        "normalise_slopes": (rows, rows, ones, ones),
        "normalise_gradient": (rows, rows, ones, ones, None, rows),
        "column_sums": (rows,),
        "layer_norm": (rows.bfloat16(), ones, None, 1e-5, torch.float32),
        "layer_norm_gradient": (rows, rows, slopes[:, 0].contiguous(), slopes[:, 0].contiguous(), ones),
    }
    for name, arguments in cases.items():
        with FakeTensorMode() as mode:
            told = getattr(torch.ops.convspark, name)(*tree_map_only(torch.Tensor, mode.from_tensor, arguments))
        for run in (getattr(operators, name), ops.PLAIN[name]):
            for real, said in zip(tree_leaves(run(*arguments)), tree_leaves(told), strict=True):
                assert (real.shape, real.stride(), real.dtype) == (said.shape, said.stride(), said.dtype), name


@pytest.mark.parametrize(
    ("kernel", "floats"),
    [
        (norms.join, {"momentum", "eps"}), (norms.layer_norm, {"eps"}), (kernels.sums, {"outside"}),
        (pool.largest, {"outside"}),
    ],
)  # fmt: skip
def test_floats_reach_a_gpu_in_float64(kernel, floats):
    """Triton rounds Python's floats to float32, which its interpreter does not."""
    assert {p.name for p in JITFunction(kernel.fn).params if p.annotation_type == "fp64"} == floats


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there is a device to time on")
def test_tiles_are_not_timed_by_the_interpreter():
    """Triton 3.6 times a single one, too."""
    assert len(gemm.convolve.do_bench(lambda: None, quantiles=(0.5, 0.2, 0.8))) == 3


def test_kernels_are_launched_on_the_device_of_what_they_read(monkeypatch):
    current, rows = [], torch.ones(2, 3)

    @contextmanager
    def device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    run = operators._where_they_lie(lambda rows, number: (current[0] is rows, number))
    assert run(rows, 7) == (True, 7) and not current


@pytest.mark.parametrize(("side", "is_offered"), [(32, True), (64, False)])
def test_lines_that_would_take_a_compiler_minutes_are_left_to_pytorch(side, is_offered, monkeypatch):
    monkeypatch.setattr(operators, "can_run", lambda: True)
    grid, plan = PatchGrid(torch.ones(1, 1, 2, dtype=torch.bool)), Plan((side,) * 2, *[(n,) * 2 for n in (3, 1, 1, 1)])
    with FakeTensorMode():
        values, weight = torch.empty(2, 8, side, side, device="cuda"), torch.empty(8, 1, 3, 3, device="cuda")
    assert (depthwise.offer(values, weight, 8, grid, plan) is not None) == is_offered


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(8, 8, 5, 1, 2, groups=8), nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 16, 3, 1, 1),
            nn.BatchNorm2d(16, track_running_stats=False), nn.AvgPool2d(3, 1, 1), nn.Conv2d(16, 16, 1),
            Mixed(16), nn.Conv2d(16, 12, 2, 2), nn.ReLU(inplace=True), Mixed(12),
        )  # fmt: skip


class Mixed(nn.Sequential):
    """A norm and a product of each position's channels, as in ConvNeXt."""

    def __init__(self, channels):
        super().__init__(nn.LayerNorm(channels), nn.Linear(channels, channels), nn.ReLU(inplace=True))

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "reached",
    [
        ("sum_rows",), ("batch_moments",), ("depthwise",), ("convolve",), ("max_pool",), ("layer_norm",),
        ("column_sums",), ("depthwise", "column_sums"),
    ],
)  # fmt: skip
def test_what_kernels_are_offered_the_engine_computes_without_them(reached, monkeypatch):
    """By the operators' plain versions, on a device that says that it has kernels."""
    called = []
    monkeypatch.setattr(registered(), "batch_norms", [batch_norm.offer])
    monkeypatch.setattr(registered(), "max_pools", [max_pool.offer])
    monkeypatch.setattr(registered(), "convolutions", [implicit_gemm.offer, *registered().convolutions])
    monkeypatch.setattr(registered(), "layer_norms", [layer_norm.offer])
    monkeypatch.setattr(registered(), "linears", [linear.offer])
    monkeypatch.setattr(registered(), "product_devices", {"cpu"} if "column_sums" in reached else set())
    monkeypatch.setenv("CONVSPARK_KERNELS", "column_sums" if "column_sums" in reached else "")

    def train(kernels):
        known = {key: value for key, value in ops._KERNELS.items() if key[1] != "cpu"}
        everything = (torch.float32, torch.float64), lambda: True
        monkeypatch.setattr(ops, "_KERNELS", known | {(name, "cpu"): everything for name in kernels})
        torch.manual_seed(0)
        network = Small().double().to(memory_format=torch.channels_last)
        images = torch.randn(3, 3, 32, 32, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
        grid = PatchGrid(torch.rand(3, 4, 4) < 0.5)
        images.requires_grad_()
        with _Called(called):
            out = network(gather(images, grid)).values
            gradients = torch.autograd.grad(out.sin().sum(), [images, *network.parameters()])
        return [out.detach(), *gradients, *network.buffers()]

    without = train(())
    assert not called
    for one, other in zip(train(reached), without, strict=True):
        torch.testing.assert_close(one, other)
    assert set(reached) <= set(called)


def test_products_have_gradients_of_gradients(monkeypatch):
    monkeypatch.setenv("CONVSPARK_KERNELS", "column_sums")
    sizes = (5, 2, 3), (4, 3), (4,)
    leaves = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    assert torch.autograd.gradgradcheck(linear.linear, leaves)
    ours, theirs = (torch.autograd.grad(run(*leaves).sin().sum(), leaves) for run in (linear.linear, functional.linear))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_norms_of_the_decoder_have_kernels_too(monkeypatch):
    monkeypatch.setattr(registered(), "batch_norms", [batch_norm.offer])
    torch.manual_seed(0)
    model = SparK(timm.create_model("resnet10t"), image_size=64, decoder_width=32, prove=False).double()
    model = model.to(memory_format=torch.channels_last).train()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    grid = PatchGrid(torch.rand(4, 2, 2) < 0.5)

    def train(kernels):
        known = {key: value for key, value in ops._KERNELS.items() if key[1] != "cpu"}
        monkeypatch.setattr(
            ops, "_KERNELS", known | {(name, "cpu"): ((torch.float64,), lambda: True) for name in kernels}
        )
        here, called = copy.deepcopy(model), []
        with _Called(called):
            loss = here(images, grid).loss
        loss.backward()
        return called, [loss.detach(), *(p.grad for p in here.parameters() if p.grad is not None), *here.buffers()]

    (_, without), (called, by_kernels) = train(()), train(("batch_moments",))
    for one, other in zip(by_kernels, without, strict=True):
        torch.testing.assert_close(one, other)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert called.count("batch_moments") == len(norms) > len(list(model.backbone.modules())) // 8


def test_norms_that_are_not_usual_stay_those_of_pytorch(monkeypatch):
    monkeypatch.setattr(registered(), "batch_norms", [batch_norm.offer])
    everything = {(name, "cpu"): ((torch.float32,), lambda: True) for name in ("batch_moments",)}
    monkeypatch.setattr(ops, "_KERNELS", everything)
    images = torch.randn(4, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    for change in ({"momentum": None}, {"running_mean": None, "running_var": None}, {}):
        ours, theirs = BatchNorm(8), nn.BatchNorm2d(8)
        for norm in (ours, theirs):
            for name, value in change.items():
                setattr(norm, name, value)
        torch.testing.assert_close(ours(images), theirs(images))
        for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="more than 1 value"):
        BatchNorm(8)(images[:1, :, :1, :1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_pictures_are_normalised_to_the_same_bits(dtype):
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
    images = torch.randint(256, (2, 3, 40, 40), generator=torch.Generator().manual_seed(0)).to(dtype)
    on_cpu = normalise(images)
    assert torch.equal(normalise.cuda()(images.cuda()).cpu(), on_cpu)


class _Called(TorchDispatchMode):
    """Names of the package's operators that are called."""

    def __init__(self, names):
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "convspark":
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_kernels_that_compute_what_they_should_are_found_right(monkeypatch):
    monkeypatch.setenv("CONVSPARK_KERNELS", "implicit_gemm")
    # As in a step, which asks, and whatever tensors are made on otherwise.
    with torch.autocast(DEVICE.type, torch.bfloat16), torch.device("meta"):
        assert not operators._wrong(DEVICE)


def one_result_is_wrong(number):
    return lambda plain, *arguments: tuple(one + (at == number) for at, one in enumerate(plain(*arguments)))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("depthwise", lambda plain, *arguments: plain(*arguments) * 1.05),
        ("batch_moments", one_result_is_wrong(1)),
        ("batch_moments", lambda plain, rows, mean, variance, *more: plain(rows, mean, variance.clone(), *more)),
        ("layer_norm", one_result_is_wrong(2)),
        ("layer_norm_gradient", one_result_is_wrong(1)),
        ("max_pool", one_result_is_wrong(1)),
    ],
)
def test_kernels_that_compute_something_else_are_found(name, wrong, monkeypatch):
    """All others are plain versions, which takes less time. A running variance that stays as it was is wrong, too."""
    for other in [other for other, device in ops._KERNELS if device == "cuda"]:
        run = functools.partial(wrong, ops.PLAIN[other]) if other == name else ops.PLAIN[other]
        monkeypatch.setattr(
            operators, other, functools.update_wrapper(functools.partial(run), getattr(operators, other))
        )
    assert operators._wrong(DEVICE) == [f"{name} in torch.float32", f"{name} in torch.bfloat16"]


def test_kernels_that_do_not_run_leave_the_work_to_pytorch(monkeypatch, caplog):
    def breaks(device):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(operators, "_wrong", breaks)
    with caplog.at_level(logging.WARNING, logger=operators.__name__):
        assert not operators.can_run.__wrapped__()
    assert "no C compiler" in caplog.text
    monkeypatch.setenv("CONVSPARK_COMPILE", "0")
    assert not operators.can_run.__wrapped__()


def test_whether_kernels_run_is_asked_while_a_graph_is_traced(monkeypatch):
    monkeypatch.setattr(
        operators, "can_run", lambda: bool((operators.column_sums(torch.ones(3, 2, device=DEVICE)) == 3).all())
    )
    compiled = torch.compile(lambda x: x + 1 if operators.kernels_run() else x, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(2)), torch.ones(2))
