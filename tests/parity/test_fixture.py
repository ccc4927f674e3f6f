"""Equal to an independent mask-and-multiply computation, kept in `fixture.safetensors`."""

from pathlib import Path

import make_fixture
import pytest
import torch
from golden import gradients, relative, statistics
from safetensors.torch import load_file
from torch import Tensor

from convspark import PatchGrid, SparK, scatter
from convspark.checkpoints import paper

FIXTURE = Path(__file__).with_name("fixture.safetensors")
TOLERANCE = 1e-9


@pytest.fixture(scope="module", params=["resnet", "convnext"])
def expected(request) -> dict[str, Tensor]:
    prefix = request.param + "."
    numbers = {k.removeprefix(prefix): v for k, v in load_file(FIXTURE).items() if k.startswith(prefix)}
    return numbers | {"kind": request.param}


@pytest.fixture(scope="module")
def model(expected) -> SparK:
    """After one forward and backward pass."""
    kind = expected["kind"]
    state = make_fixture.initial_state(kind)
    model = paper.load(state, make_fixture.build(kind), image_size=make_fixture.SIZE).train()
    model.out = model(make_fixture.images(), PatchGrid(make_fixture.VISIBLE))
    model.out.loss.backward()
    return model


def test_fixture_is_small():
    assert FIXTURE.stat().st_size < 200_000


def test_loss_and_prediction(model, expected):
    assert relative(model.out.loss, expected["loss"]) < TOLERANCE
    prediction = model.out.prediction
    assert relative(prediction[:, :, ::16, ::16], expected["prediction.corner"]) < TOLERANCE
    assert relative(make_fixture.two_sums(prediction), expected["prediction"]) < TOLERANCE


def test_features(model, expected):
    features = [scatter(stage) for stage in model.out.features]
    assert relative(features[-1], expected["features.deepest"]) < TOLERANCE
    for i, feature in enumerate(features):
        assert relative(make_fixture.two_sums(feature), expected[f"features.{i}"]) < TOLERANCE, f"stage {i}"


@pytest.mark.parametrize(("what", "prefix"), [(gradients, "grad."), (statistics, "after.")])
def test_gradients_and_running_statistics(model, expected, what, prefix):
    ours = what(model)
    theirs = {k.removeprefix(prefix): v for k, v in expected.items() if k.startswith(prefix)}
    assert len(theirs) >= 20 and ours.keys() == theirs.keys()
    for name, sums in theirs.items():
        assert relative(make_fixture.two_sums(ours[name]), sums) < TOLERANCE, name


def test_fixture_is_what_its_script_computes(expected):
    """On this machine and this version of torch, too."""
    for name, value in make_fixture.compute(expected["kind"]).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)
