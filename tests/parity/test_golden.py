"""Equal to the paper's own implementation: one step of five networks, and twenty steps of two.

The golden networks ran in float32, with a noise of their own between thread counts (features 5e-6, gradients
6e-5 relative), the trajectories in float64.
"""

import math
from collections.abc import Iterator

import pytest
import torch
from golden import NETWORKS, TRAJECTORIES, Golden, gradients, relative, statistics, worst
from timm.optim import Lamb

from convspark import PatchGrid, SparK, scatter
from convspark.checkpoints import paper

FORWARD, GRADIENTS, TRAJECTORY = 1e-5, 1e-4, 1e-9
STATISTICS = 5e-5  # some of the decoder's running means are nearly 0


@pytest.fixture(params=NETWORKS)
def golden(request, golden_dir) -> Golden:
    return Golden(golden_dir, request.param)


def test_features_prediction_and_loss(golden):
    model = golden.model()
    out = model(golden["input.images"], PatchGrid(golden["input.visible"]))
    assert relative(out.loss, golden["output.loss"][0]) < FORWARD
    assert relative(out.prediction, golden["output.prediction"]) < FORWARD
    theirs = golden.under("output.features")
    assert len(out.features) == len(theirs) == 4
    for i, features in enumerate(out.features):
        assert relative(scatter(features), theirs[str(i)]) < FORWARD, f"stage {i}"


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, GRADIENTS),
        # In float32, one of the decoder's 140,000 ReLU6 inputs may round to the other side of 0: with one thread,
        # one does in one network, and changes the gradients computed from it by 9e-4. Without such an accident, 3e-5.
        (torch.float32, 2e-3),
    ],
    ids=["float64", "float32"],
)
def test_every_gradient(golden, dtype, tolerance):
    model = golden.model(dtype)
    model(golden["input.images"].to(dtype), PatchGrid(golden["input.visible"])).loss.backward()
    ours, theirs = gradients(model), golden.under("grad")
    assert theirs and ours.keys() == theirs.keys()
    difference, name = worst((name, ours[name], theirs[name]) for name in theirs)
    assert difference < tolerance, name


def test_running_statistics_and_reconstruction_after_a_step(golden):
    model = golden.model()
    images, grid = golden["input.images"], PatchGrid(golden["input.visible"])
    model(images, grid)
    ours, theirs = statistics(model), golden.under("buffer_after_one_step")
    theirs = {name: value for name, value in theirs.items() if "running_" in name}
    assert theirs and ours.keys() == theirs.keys()
    difference, name = worst((name, ours[name], theirs[name]) for name in theirs)
    assert difference < STATISTICS, name

    shown = model.reconstruct(images, grid)
    assert torch.equal(shown.masked, golden["output.eval_masked_image"])
    assert relative(shown.reconstruction, golden["output.eval_reconstruction"]) < FORWARD
    assert model.training and all(module.training for module in model.modules())
    for name, value in statistics(model).items():
        assert torch.equal(value, ours[name]), f"{name}: showing a reconstruction is no training"


def recipe(golden: Golden) -> Iterator[tuple[float, float]]:
    """Rate and weight decay of each step, by the formulas of the paper's code."""
    steps, warmup = int(golden.settings["steps"]), int(golden.settings["warmup_steps"])
    peak, start, end = (float(golden.settings[key]) for key in ("peak_lr", "wd", "wd_end"))
    for step in range(steps):
        if step < warmup:
            rate = peak * (0.005 + 0.995 * step / warmup)
        else:
            way = (step - warmup) / (steps - 1 - warmup)
            rate = peak * (0.001 + 0.999 * (0.5 + 0.5 * math.cos(math.pi * way)))
        yield rate, end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * step / (steps - 1)))


def optimizer_for(model: SparK, golden: Golden) -> Lamb:
    """timm's LAMB in two groups; those of one dimension, mask tokens and layer scales do not decay."""
    trained = {n: p for n, p in model.named_parameters() if n.removeprefix("backbone.") not in model.untrained}
    still = [n for n, p in trained.items() if p.ndim <= 1 or n.endswith(("bias", "mask_token", "gamma"))]
    groups = [
        {"params": [p for n, p in trained.items() if n not in still]},
        {"params": [trained[n] for n in still]},
    ]
    betas = float(golden.settings["beta1"]), float(golden.settings["beta2"])
    clip = float(golden.settings["max_grad_norm"])
    return Lamb(groups, betas=betas, eps=1e-6, weight_decay=0.0, max_grad_norm=clip)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectory_of_the_recipe(golden_dir, name):
    golden = Golden(golden_dir, name)
    assert golden.settings["dtype"] == "float64"
    model = golden.model(torch.float64)
    optimizer = optimizer_for(model, golden)
    images, visible = golden["input.images"], golden["input.visible"]
    for step, (rate, decay) in enumerate(recipe(golden)):
        assert rate == pytest.approx(golden["output.lr"][step].item(), rel=1e-12)
        assert decay == pytest.approx(golden["output.weight_decay"][step].item(), rel=1e-12)
        for group, weight_decay in zip(optimizer.param_groups, (decay, 0.0), strict=True):
            group.update(lr=rate, weight_decay=weight_decay)
        optimizer.zero_grad()
        out = model(images[step % len(images)], PatchGrid(visible[step]))
        assert relative(out.loss, golden["output.loss"][step]) < TRAJECTORY, f"step {step}"
        out.loss.backward()
        optimizer.step()
    ours, theirs = paper.state_dict(model), golden.under("state_after")
    difference, worst_name = worst((name, ours[name], theirs[name]) for name in theirs)
    assert difference < TRAJECTORY, worst_name
