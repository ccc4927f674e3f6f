"""The proof: a verdict on what the engine runs, at the size and in the mode of the run, with the culprit's name."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from convspark import SparK
from convspark.errors import NotExactError
from convspark.sparse.proof.prove import examine, prove


class Wrapped(nn.Module):
    """A convolution, a function, another convolution."""

    def __init__(self, function, channels=8):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.function = function
        self.head = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x):
        return self.head(self.function(self.stem(x)))


class Gate(nn.Module):
    """Attention over channels and space, as CBAM has it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x):
        both = torch.cat([torch.max(x, 1, keepdim=True)[0], torch.mean(x, 1, keepdim=True)], 1)
        return x * torch.sigmoid(self.conv(both))


EXACT = {
    "CBAM": Gate(),
    "norm along channels": lambda x: x / (1 + x.norm(dim=1, keepdim=True)),
    "linalg norm": lambda x: x / (1 + torch.linalg.norm(x, dim=1, keepdim=True)),
    "cat with zeros": lambda x: torch.cat([x[:, :6], x.new_zeros(x.shape[0], 2, *x.shape[2:])], 1),
    "largest of all": lambda x: x / (1 + x.max().abs()),
    "logsumexp": lambda x: x + x.logsumexp(1, keepdim=True),
    "index_select": lambda x: x.index_select(1, torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])),
    "instance norm with statistics": nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "topk": lambda x: x + x.topk(2, dim=1).values.sum(1, keepdim=True),
    "flip of channels": lambda x: x.flip(1),
    "stack and maximum": lambda x: torch.stack([x, -x], 1).amax(1),
    "slice assignment": lambda x: _assigned(x),
    "dropout of channels": nn.Dropout2d(0.3),
    "alpha dropout": nn.AlphaDropout(0.3),
}


def _assigned(x):
    y = x.clone()
    y[:, :2] = 2 * y[:, 2:4]
    return y


@pytest.mark.parametrize("name", EXACT)
def test_what_the_engine_runs_exactly_is_proved(name):
    network = Wrapped(EXACT[name])
    proof = examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8))
    assert proof.exact, proof.reason
    assert prove(lambda x: [network(x)], network, 3, (32, 32), (8, 8)).largest < 1e-8


def test_gated_linear_units():
    network = Wrapped(nn.GLU(1), channels=4)
    assert examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8)).exact


def test_a_network_that_branches_on_the_size_of_the_run_is_found_out():
    network = Wrapped(lambda x: x * 2 if x.shape[-1] >= 12 else x)
    assert prove(lambda x: [network(x)], network, 3, (32, 32), (8, 8)).largest < 1e-8
    with pytest.raises(NotExactError, match="at 64x64 pixels"):
        prove(lambda x: [network(x)], network, 3, (64, 64), (8, 8))


def test_a_network_that_is_wrong_in_training_alone_is_found_out():
    class InTraining(nn.Module):
        def forward(self, x):
            return F.adaptive_avg_pool2d(x, 1) + x * x.shape[-1] if self.training else x

    network = Wrapped(InTraining())
    with pytest.raises(NotExactError, match="dense network gives other features"):
        prove(lambda x: [network(x)], network, 3, (32, 32), (8, 8))


def test_what_a_training_step_would_refuse_is_refused_at_the_start():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn(x.shape) if self.training else x

    network = Wrapped(Noise())
    with pytest.raises(NotExactError, match="add"):
        prove(lambda x: [network(x)], network, 3, (32, 32), (8, 8))


def scripted():
    """A function that TorchScript compiled."""

    def swish(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)

    return torch.jit.script(swish)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [scripted, lambda: torch.vmap(lambda x: x * 2), lambda: lambda x: torch.Tensor(x)])
def test_what_leaves_visible_patches_is_named(make):
    function = make()

    class Leaves(nn.Module):
        def forward(self, x):
            return function(x).to(torch.float64)

    network = Wrapped(nn.Identity())
    network.function = Leaves()
    with pytest.raises(NotExactError, match=r"module function \(Leaves\) returned a plain tensor"):
        prove(lambda x: [network(x)], network, 3, (32, 32), (8, 8))


def test_what_mask_and_multiply_does_not_know_is_a_verdict():
    network = Wrapped(lambda x: x + x.sort(1).values.cumsum(1).logcumsumexp(1))
    proof = examine(lambda x: [network(x)], network, 3, (32, 32), (8, 8))
    assert proof.exact or "nothing is known" in (proof.reason or "")


def test_a_network_is_left_as_it_was():
    network = timm.create_model("resnet10t").eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    SparK(network, image_size=160, decoder_width=32)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training and all(p.grad is None for p in network.parameters())
    assert before.keys() == network.state_dict().keys() and state.shape == torch.get_rng_state().shape
