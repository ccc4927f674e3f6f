"""Operators that a step launches, bytes that they read and write, FLOPs: dense, mask-and-multiply, visible only.

    python -m benchmarks.traffic                       # ResNet-50, ConvNeXt-T, EfficientNet-B0: a minute
    python -m benchmarks.traffic --json resnet50       # a line: visible only as shares of dense
    python -m benchmarks.traffic --top 12 convnext_tiny
    python -m benchmarks.traffic --compiled --kernels  # launches of the encoder's step as TorchInductor writes it

Counted, not timed: exact, the same on every machine, and no GPU is needed. An eager step on a GPU is bound by the bytes
that its operators move and, at small batches, by how many it launches. A dispatch mode sees each operator of a forward
and a backward pass as PyTorch hands it to a device, by PyTorch's operations alone, without the kernels that are for
CPUs. **Operators**: all but views. **Bytes**: each tensor that an operator takes or returns, once. **FLOPs**: two for a
multiplication and addition of convolutions and matrix products; gradients of grouped convolutions by groups, which
PyTorch's own counter takes for dense ones. Tables for a new mask are within; what is the same for every mask is not.
**Launches**, of a compiled step: calls in the code that TorchInductor writes for CPUs, which is neither built nor run;
what it fuses for GPUs may differ. Both gradients of a convolution are two, and an operator of ours is as many as its
kernel for GPUs launches.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from convspark.kernels import implicit_gemm, ops
from convspark.kernels.cpu import build
from convspark.sparse.faster import registered

NETWORKS = ("resnet50", "convnext_tiny", "efficientnet_b0")

_MOVE_NOTHING = set(
    """
    _reshape_alias _unsafe_view alias as_strided chunk detach diagonal empty empty_like empty_strided expand
    expand_as lift_fresh narrow new_empty new_empty_strided permute real resize_ select slice split split_with_sizes
    squeeze t transpose unbind unflatten unfold unsqueeze view view_as
    """.split()
)


@dataclass
class Traffic:
    """What a step costs, `bytes_of` and `launched` by operator."""

    operators: int = 0
    bytes: int = 0
    flops: int = 0
    launched: collections.Counter[str] = field(default_factory=collections.Counter)
    bytes_of: collections.Counter[str] = field(default_factory=collections.Counter)


class Counting(TorchDispatchMode):
    """Within this context, operators are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in _MOVE_NOTHING:
            with torch._C.DisableTorchFunctionSubclass():
                tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
                moved = sum({(t.data_ptr(), t.shape): t.numel() * t.element_size() for t in tensors}.values())
            self.traffic.operators += 1
            self.traffic.bytes += moved
            self.traffic.launched[name] += 1
            self.traffic.bytes_of[name] += moved
        return out


def counted(step: Any) -> Traffic:
    """What calling `step()` costs."""
    counting = Counting()
    flops = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _of_gradients})
    with flops, counting:
        step()
    counting.traffic.flops = flops.get_total_flops()
    return counting.traffic


def _of_gradients(
    grad: torch.Size, x: torch.Size, weight: torch.Size, *rest: Any, out_val: Any = None, **_: Any
) -> int:
    """Of each gradient that is asked for, except the bias's, as many as of the convolution itself."""
    transposed, with_gradient = rest[4], rest[-1]
    positions = math.prod((x if transposed else grad)[2:])
    return sum(with_gradient[:2]) * 2 * grad[0] * positions * math.prod(weight)


@contextmanager
def generic(kernels: bool = False) -> Iterator[None]:
    """Without the kernels that are for CPUs: the way that runs on any device.

    Args:
        kernels: whether operators that have a kernel for GPUs are called, each counted as one that takes and returns
            its tensors, and carried out by what there is for CPUs. Batch norms stay PyTorch's two operators, as in the
            dense network: those launch several kernels each, ours one.
    """
    faster = registered()
    library, known = build.library, dict(ops._KERNELS)
    convolutions, batch_norms = list(faster.convolutions), list(faster.batch_norms)
    if kernels:
        of_gpus = {name: dtypes for (name, device), (dtypes, _) in known.items() if device == "cuda"}
        ops._KERNELS.clear()
        ops._KERNELS.update({(name, "cpu"): (dtypes, lambda: True) for name, dtypes in of_gpus.items()})
        faster.convolutions.insert(0, implicit_gemm.offer)
        faster.batch_norms.clear()
    else:
        build.library = lambda: None
    try:
        yield
    finally:
        build.library = library
        faster.convolutions[:], faster.batch_norms[:] = convolutions, batch_norms
        ops._KERNELS.clear()
        ops._KERNELS.update(known)


def trial_of(name: str, batch_size: int, size: int, precision: str = "fp32", compiled: bool = False) -> Any:
    """A network of timm's, to take steps with."""
    import timm

    from convspark import SparK
    from convspark.measure.bench import Trial

    torch.manual_seed(0)
    model = SparK(timm.create_model(name), size, prove=False).train().to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    return Trial(model, images, model.grid_shape((size, size)), precision, compiled)


def traffic(
    name: str,
    part: str,
    ways: Any,
    batch_size: int = 8,
    size: int = 224,
    precision: str = "fp32",
    kernels: bool = False,
) -> dict[str, Traffic]:
    """Of each way of `bench`, what a step of a network (timm's name) costs.

    Args:
        part: "encoder" or "step", the whole step of pre-training.
        precision: fp32 or bf16, by autocast.
        kernels: see `generic`.
    """
    with generic(kernels):
        trial = trial_of(name, batch_size, size, precision)
        for group in trial.optimizer.param_groups:
            group["foreach"] = True  # as it is on a GPU
        steps = {way: (trial.encoder_step if part == "encoder" else trial.whole_step)(way) for way in ways}
        costs = {}
        for way, step in steps.items():
            step()  # plans are made, and kept
            costs[way] = counted(step)
        return costs


class _Written(Exception):
    """The code of a step has been written."""


_LAUNCH = re.compile(r"^\s+(?:\w+ = )?(cpp_fused|(?:extern_kernels|torch\.ops)[\w.]+)\w*\((.*)", re.MULTILINE)
_TWICE = {"convolve_weight_gradient", "depthwise_weight_gradient"}  # what programs have summed is summed


def launches(name: str, ways: Any, batch_size: int, size: int, kernels: bool) -> dict[str, collections.Counter[str]]:
    """Of each way of `bench`, what a compiled encoder's step launches; arguments as for `traffic`."""
    from torch._functorch import config
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.graph import GraphLowering

    def stop(*_: Any) -> None:
        raise _Written

    costs: dict[str, collections.Counter[str]] = {}
    with generic(kernels), config.patch(force_non_lazy_backward_lowering=True):
        trial = trial_of(name, batch_size, size, compiled=True)
        for way in ways:
            torch._dynamo.reset()
            codes: list[str] = []
            write = mock.patch.object(GraphLowering, "save_output_code", codes.append)
            with write, mock.patch.object(AsyncCompile, "cpp_pybinding", return_value=stop), suppress(_Written):
                trial.encoder_step(way)()
            costs[way] = collections.Counter()
            for code in codes:
                for function, arguments in _LAUNCH.findall(code):
                    of_both = "convolution_backward" in function and "[True, True" in arguments
                    operator = function.removesuffix(".default").rpartition(".")[2]
                    costs[way][operator] += 2 if of_both or operator in _TWICE else 1
    return costs


def shares(cost: Traffic, dense: Traffic) -> dict[str, float]:
    """Of dense."""
    return {key: getattr(cost, key) / getattr(dense, key) for key in ("bytes", "flops", "operators")}


def main() -> None:
    from convspark.measure.bench import DENSE, IMITATED, VISIBLE

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--kernels", action="store_true", help="count operators that have a kernel for GPUs as such")
    parser.add_argument("--parts", default="encoder,step", help="what to count: encoder, step, or both")
    parser.add_argument("--top", type=int, default=0, help="also the operators that move most")
    parser.add_argument("--compiled", action="store_true", help="count launches of the encoder's compiled step")
    parser.add_argument("--json", action="store_true", help="a line a network: the encoder's shares of dense")
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("batch_size", "size", "precision", "kernels")}
    if options.compiled:
        for name in options.networks:
            counts = launches(name, (DENSE, VISIBLE), options.batch_size, options.size, options.kernels)
            dense, visible = (sum(counts[way].values()) for way in (DENSE, VISIBLE))
            print(json.dumps({"network": name, "dense": dense, "visible only": visible, "share": visible / dense}))
            print(f"    {dict(counts[DENSE])}\n    {dict(counts[VISIBLE])}", flush=True)
        return
    if options.json:
        for name in options.networks:
            costs = traffic(name, "encoder", (DENSE, VISIBLE), **sizes)
            rounded = {key: round(share, 4) for key, share in shares(costs[VISIBLE], costs[DENSE]).items()}
            print(json.dumps({"network": name} | rounded), flush=True)
        return
    print("| network | part | way | operators | GB | GFLOP | of dense: operators | bytes | FLOPs |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.networks:
        for part in options.parts.split(","):
            ways = traffic(name, part, (DENSE, IMITATED, VISIBLE), **sizes)
            for way, cost in ways.items():
                of = shares(cost, ways[DENSE])
                print(
                    f"| {name} | {part} | {way} | {cost.operators} | {cost.bytes / 1e9:.2f} | "
                    f"{cost.flops / 1e9:.1f} | {of['operators']:.2f} | {of['bytes']:.2f} | {of['flops']:.2f} |",
                    flush=True,
                )
            for operator, moved in ways[VISIBLE].bytes_of.most_common(options.top):
                counts = f"{ways[VISIBLE].launched[operator]} ({ways[DENSE].launched[operator]} dense)"
                print(
                    f"    {operator:36}{counts:>20}{moved / 1e9:8.3f} GB ({ways[DENSE].bytes_of[operator] / 1e9:.3f})"
                )


if __name__ == "__main__":
    main()
