"""The golden networks: how to build them, how to read their files, how to compare."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from convspark.checkpoints import paper
from convspark.model.spark import SparK

NETWORKS = (
    "resnet_basic",
    "resnet_bottleneck",
    "resnet_bottleneck_d",
    "convnext",
    "convnext_identity_projection",
)
TRAJECTORIES = ("trajectory_resnet", "trajectory_convnext")


def build(kind: str) -> nn.Module:
    """A backbone as the golden files name it."""
    if kind == "convnext":
        return ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 32, 64), num_classes=0)
    block, depths, options = {
        "resnet_basic": (BasicBlock, (1, 1, 1, 1), {}),
        "resnet_bottleneck": (Bottleneck, (1, 2, 1, 1), {}),
        "resnet_bottleneck_d": (Bottleneck, (1, 1, 2, 1), {"stem_type": "deep", "avg_down": True}),
    }[kind]
    return ResNet(block, depths, channels=(8, 16, 32, 64), stem_width=8, num_classes=0, global_pool="", **options)


class Golden:
    """One golden file: `golden["output.loss"]`, its settings, and the parts under a prefix."""

    def __init__(self, folder: Path, name: str):
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            self.settings = file.metadata()
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The entries whose names begin with `prefix.`, by the rest of their names."""
        start = prefix + "."
        return {key.removeprefix(start): t for key, t in self.tensors.items() if key.startswith(start)}

    def model(self, dtype: torch.dtype = torch.float32) -> SparK:
        """The model before its step, in training mode."""
        backbone = build(self.settings["kind"]).to(dtype)
        model = paper.load(
            self.under("state"),
            backbone,
            image_size=int(self.settings["size"]),
            mask_ratio=float(self.settings["mask_ratio"]),
        )
        return model.train()


def relative(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, as Euclidean norms."""
    difference = (ours.detach().double() - theirs.double()).norm()
    return (difference / theirs.double().norm().clamp_min(1e-30)).item()


def worst(pairs: Iterable[tuple[str, Tensor, Tensor]]) -> tuple[float, str]:
    """The largest relative difference among (name, ours, theirs), and whose it is."""
    return max((relative(ours, theirs), name) for name, ours, theirs in pairs)


def gradients(model: SparK) -> dict[str, Tensor]:
    """Gradients under the paper's names; those of parameters after the deepest stage must be absent."""
    names = paper.model_names(model)
    untrained = {f"backbone.{name}" for name in model.untrained}
    by_name = {}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in untrained), name
        if parameter.grad is not None:
            by_name[names[name]] = parameter.grad
    return by_name


def statistics(model: SparK) -> dict[str, Tensor]:
    """Running statistics under the paper's names."""
    return {key: value for key, value in paper.state_dict(model).items() if "running_" in key}
