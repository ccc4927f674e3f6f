"""What WEIGHTS may stand for."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from convspark.checkpoints.export import export_timm
from convspark.errors import UsageError
from convspark.transfer.weights import find_weights


def test_random_weights_follow_the_seed():
    origin = find_weights("random:resnet10t")
    assert origin.is_random and origin.model == "resnet10t" and len(origin.mean) == 3
    first, again, other = (origin.build(seed).conv1[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_export_tells_network_size_and_normalisation(tmp_path):
    network = timm.create_model("resnet10t", num_classes=0, in_chans=1)
    export_timm(network, tmp_path / "export", mean=(0.4,), std=(0.3,), image_size=(64, 96))
    origin = find_weights(str(tmp_path / "export"))
    assert (origin.model, origin.size, origin.channels) == ("resnet10t", "64x96", 1)
    assert tuple(origin.mean) == (0.4,) and tuple(origin.std) == (0.3,)
    built = origin.build(seed=5)
    assert all(
        torch.equal(a, b) for a, b in zip(built.state_dict().values(), network.state_dict().values(), strict=True)
    )


def test_a_file_needs_the_networks_name(tmp_path):
    network = timm.create_model("resnet10t", num_classes=0)
    file = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), file)
    with pytest.raises(UsageError, match="does not tell its network: add --model"):
        find_weights(str(file))
    built = find_weights(str(file), "resnet10t").build()
    assert torch.equal(built.conv1[0].weight, network.conv1[0].weight)
    with pytest.raises(UsageError, match=r"belongs to another network|none of the"):
        find_weights(str(file), "convnext_atto").build()


@pytest.mark.parametrize(("given", "message"), [(None, "weights are missing"), ("resnet5O", "did you mean")])
def test_nothing_of_that_name(given, message):
    with pytest.raises(UsageError, match=message):
        find_weights(given)
