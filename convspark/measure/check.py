"""`check`: whether a network runs exactly on visible patches, what each module does there, and what it costs."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..arguments import checked_arguments
from ..errors import NotExactError, UsageError
from ..model.find_stages import CallBackbone
from ..model.networks import check_module, find_network
from ..model.stages import Stages
from ..model.strides import Sides, as_setting, as_text, divides, sides_of, times
from ..names import many
from ..sparse import PatchGrid, gather
from ..sparse.proof.gradients import gradients
from ..sparse.proof.prove import Proof, examine
from .modules import ModuleRow, watch_modules
from .timing import Measured, compare

MASK_RATIO = 0.6
_PROOF_SIDES = (2, 4, 2)  # patches along each side: few, not square, and even for networks that halve once more
_BATCH, _REPEATS = 4, 3


@dataclass(frozen=True)
class Cost:
    """A step of the encoder, forward and backward, dense and on visible patches."""

    image_size: tuple[int, ...]
    batch_size: int
    mask_ratio: float
    visible_share: float
    """Visible patches over all patches, as near to 1 - `mask_ratio` as whole patches come."""
    threads: int
    device: str
    dense: Measured
    visible: Measured


@dataclass(frozen=True)
class CheckReport:
    """What `check` found out about a network; `str()` is a page to read."""

    network: str
    parameters: int
    stages: list[str]
    """Where the stages come from, finest first."""
    strides: list[Sides]
    channels: list[int]
    untrained: list[str]
    """What comes after the deepest stage: pre-training does not reach it."""
    patch_size: Sides | None
    proof: Proof | None
    """None where a function was refused, or no stages were found."""
    modules: list[ModuleRow]
    cost: Cost | None
    reason: str | None
    """Why the network is not exact; None if it is."""
    advice: str | None
    """A setting with which it is exact; None if none is known."""

    @property
    def exact(self) -> bool:
        return self.reason is None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON knows it."""
        return {"exact": self.exact, **asdict(self)}

    def __str__(self) -> str:
        return "\n".join(_page(self))


@checked_arguments
def check(
    network: "str | nn.Module",  # a text, which is not checked: `check_module` says what is missing
    *,
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    patch_size: int | Sequence[int] | None = None,
    stages: Sequence[str] | None = None,
    call: CallBackbone | None = None,
    measure: bool = True,
) -> CheckReport:
    """Prove a network, on this very machine and with its own weights; nothing of it is changed.

    Three proofs in float64 and training mode, with slightly changed parameters so that no factor of 0 hides an error:
    with every patch visible the features of the dense network, at `size` too; with some masked the features, gradients
    of all parameters and running statistics of mask-and-multiply, to a relative 1e-8; and no bit that depends on a
    masked pixel.

    Args:
        network: timm name, `torchvision:NAME`, `package.module:factory`, or the module itself.
        size: side of the images in pixels, or one a dimension, at which it is run; by default seven patches.
        channels: channels of the images.
        patch_size: side of a patch in pixels, or one a dimension; by default the total stride.
        stages: names of the modules to take as stages, as for `SparK`.
        call: how to call the network on images, as for `SparK`.
        measure: time a step and its memory as well.

    Raises:
        UsageError: an argument that cannot be used. A network that cannot be handled is no error: see `reason`.
    """
    name = network if isinstance(network, str) else type(network).__name__
    module = find_network(network, channels) if isinstance(network, str) else network
    check_module(module, "network")

    def report(network_stages: Stages | None, proof: Proof | None, reason: str | None, advice: str | None, **more: Any):
        return CheckReport(
            network=name,
            parameters=sum(p.numel() for p in module.parameters() if not is_lazy(p)),
            stages=network_stages.names if network_stages else [],
            strides=list(network_stages.strides) if network_stages else [],
            channels=list(network_stages.channels) if network_stages else [],
            untrained=network_stages.untrained_parts if network_stages else [],
            patch_size=network_stages.patch_size if network_stages else None,
            proof=proof,
            reason=reason,
            advice=advice,
            modules=more.get("modules", []),
            cost=more.get("cost"),
        )

    try:
        network_stages = Stages(module, stages, channels, size, patch_size, call)
    except UsageError as error:
        if stages is not None or patch_size is not None or (channels is not None and "in_chans" in str(error)):
            raise
        return report(None, None, str(error), None)
    image_size = _checked_size(size, network_stages)

    def with_patch(patch: Sides) -> Stages:
        return Stages(module, stages, channels, None, patch, call)

    try:
        proof = _proof(network_stages, image_size)
    except NotExactError as error:
        return report(network_stages, None, str(error), _advice(network_stages, with_patch))
    if not proof.exact:
        return report(
            network_stages, proof, f"{name} is not exact: {proof.reason}", _advice(network_stages, with_patch)
        )
    modules = watch_modules(network_stages, module, network_stages.in_chans, network_stages.patch_size)
    cost = _measured(network_stages, image_size) if measure else None
    return report(network_stages, proof, None, None, modules=modules, cost=cost)


def _checked_size(size: int | Sequence[int] | None, stages: Stages) -> Sides:
    """The sides of the images to measure with."""
    patch = stages.patch_size
    if size is None:
        return tuple((3 if stages.dims == 3 else 7) * p for p in patch)
    sides = sides_of(size, stages.dims, "size")
    if min(sides) <= 0 or not divides(patch, sides):
        raise UsageError(
            f"size is {times(sides)}: expected sides that are multiples of the patch, {as_text(patch)} pixels"
        )
    return sides


def _proof(stages: Stages, image_size: Sides | None = None) -> Proof:
    sides = tuple(n * p for n, p in zip(_PROOF_SIDES, stages.patch_size, strict=False))
    return examine(stages, stages.backbone, stages.in_chans, sides, stages.patch_size, run_size=image_size)


def _advice(stages: Stages, with_patch: Callable[[Sides], Stages]) -> str | None:
    """A patch with which the network is exact: a coarser one, or a finer one that trains fewer stages."""
    coarser = tuple(2 * p for p in stages.patch_size)
    finer = [stride for stride in reversed(stages.strides[:-1]) if max(stride) >= 4]
    for patch in (coarser, *finer):
        try:
            fewer = with_patch(patch)
            if _proof(fewer).exact:
                what = f", which leaves out {', '.join(fewer.untrained_parts)}" if patch != coarser else ""
                return f"With --patch-size {str(as_setting(patch)).strip('[]').replace(' ', '')} it is exact{what}."
        except Exception:  # not with this patch either, whatever the reason
            continue
    return None


def _measured(stages: Stages, image_size: Sides) -> Cost:
    """A step of both kinds, side by side; parameters, gradients and statistics are put back."""
    module, device = stages.backbone, stages.device
    images = torch.randn(_BATCH, stages.in_chans, *image_size, generator=torch.Generator().manual_seed(0))
    formats = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
    images = images.to(device, stages.dtype).contiguous(memory_format=formats[stages.dims])
    shape = tuple(side // p for side, p in zip(image_size, stages.patch_size, strict=True))
    parameters = [p for p in module.parameters() if p.requires_grad]
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    modes = [(submodule, submodule.training) for submodule in module.modules()]

    def dense() -> None:
        _backward(stages(images), parameters)

    def visible() -> None:
        grid = PatchGrid.random(_BATCH, shape, MASK_RATIO, device=device)
        _backward([feature.values for feature in stages(gather(images, grid))], parameters)  # type: ignore[attr-defined]

    module.train()
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            costs = compare({"dense": dense, "visible": visible}, _REPEATS, device)
    finally:
        for submodule, training in modes:
            submodule.training = training
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(before[name])
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    visible_share = float(PatchGrid.random(1, shape, MASK_RATIO, torch.Generator()).visible.double().mean())
    return Cost(image_size, _BATCH, MASK_RATIO, visible_share, threads, str(device), costs["dense"], costs["visible"])


def _backward(features: Sequence[torch.Tensor], parameters: Sequence[nn.Parameter]) -> None:
    """From gradients as a decoder would send them: in the features' own memory format, which a mean's are not.

    Where all parameters are frozen there is no way back.
    """
    trained = [feature for feature in features if feature.requires_grad]
    if trained:
        gradients(trained, parameters, [torch.full_like(feature.detach(), 1e-3) for feature in trained])


# ------------------------------------------------------------------------------------------------ the page


def _page(report: CheckReport) -> list[str]:
    lines = [f"{report.network}: {'exact' if report.exact else 'NOT exact'} on visible patches", ""]
    lines.append(f"parameters  {report.parameters / 1e6:.1f} million")
    for name, stride, channels in zip(report.stages, report.strides, report.channels, strict=True):
        lines.append(f"stage       stride {as_text(stride)}, {channels} channels: {name}")
    if report.untrained:
        lines.append(f"left out    {', '.join(report.untrained)} (after the deepest stage)")
    if report.patch_size:
        lines.append(f"patch       {as_text(report.patch_size)} pixels")
    if report.reason:
        lines += ["", "Why: " + report.reason]
        if report.advice:
            lines += ["", report.advice]
        return lines
    assert report.proof is not None
    lines += ["", *_proof_lines(report.proof), "", *_module_lines(report.modules)]
    return lines + (["", *_cost_lines(report.cost)] if report.cost else [])


def _proof_lines(proof: Proof) -> list[str]:
    rows = [
        ("every patch visible, against the dense network", f"{proof.dense:.1e}"),
        ("some masked, against mask-and-multiply: features", f"{proof.features:.1e}"),
        ("  gradients of all parameters", f"{proof.gradients:.1e}"),
        ("  running statistics", f"{proof.statistics:.1e}"),
        ("bits that depend on masked pixels", "some" if proof.leak else "none"),
    ]
    mode = "evaluation" if proof.unmatched else "training"
    lines = [f"Largest deviations in float64, {mode} mode (allowed: {proof.tolerance:.0e})"]
    lines += [f"  {what:52}{value}" for what, value in rows]
    if proof.unmatched:
        lines.append(f"  In training, the two runs could not draw the same random numbers: {proof.unmatched}.")
    if proof.sensitivity is not None:
        lines.append(f"  This network turns a change of its input by 1e-15 into one of {proof.sensitivity:.0e} itself.")
    return lines


def _module_lines(rows: Sequence[ModuleRow]) -> list[str]:
    width = max((len(row.kind) for row in rows), default=0)
    lines = ["What its modules do on visible patches"]
    action = None
    for row in rows:
        if row.action != action:
            action = row.action
            lines.append(f"  {action}")
        lines.append(f"    {row.kind:{width}}  x{row.count:<4} {row.first}{' …' if row.count > 1 else ''}")
    return lines


def _cost_lines(cost: Cost) -> list[str]:
    size = times(cost.image_size)
    where = many(cost.threads, "thread") if cost.threads else cost.device
    lines = [
        f"Encoder step, forward and backward: {many(cost.batch_size, 'image')} of {size}, "
        f"{cost.mask_ratio:.0%} masked, {where}"
    ]
    for name, one in (("dense", cost.dense), ("visible only", cost.visible)):
        lines.append(f"  {name:14}{one.seconds:8.3f} s {one.peak_bytes / 2**20:8.0f} MiB")
    seconds = cost.visible.seconds / cost.dense.seconds
    memory = cost.visible.peak_bytes / max(1, cost.dense.peak_bytes)
    share = cost.visible_share
    return [*lines, f"  {'share':14}{seconds:8.2f}   {memory:8.2f}       (visible share: {share:.2f})"]
