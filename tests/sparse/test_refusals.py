"""What has no known meaning is refused: by name, place in the network, and with what to do."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convspark import PatchGrid, VisiblePatches, gather, scatter
from convspark.errors import NotExactError, UsageError
from convspark.sparse.proof.prove import prove


def patches(channels=4, p=4):
    visible = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]]).bool().view(2, 2, 2)
    return gather(torch.randn(2, channels, 2 * p, 2 * p), PatchGrid(visible))


class Attention(nn.Module):
    def forward(self, x):
        rows = x.flatten(2)
        return (rows.transpose(1, 2) @ rows).softmax(-1)


REFUSED = {
    "unfold": (lambda x: x.unfold(2, 2, 2), "Tensor.unfold", "no known meaning"),
    "windows without padding": (lambda x: F.unfold(x, 3), "nn.functional.unfold", "line up"),
    "cumsum": (lambda x: x.cumsum(2), "cumsum", "patches or positions"),
    "roll over positions": (lambda x: x.roll(1, 2), "roll", "patches or positions"),
    "sort": (lambda x: x.sort(2), "sort", "patches or positions"),
    "roll over all": (lambda x: x.roll(1), "roll", "no dims are given"),
    "attention by broadcasting": (
        lambda x: x.flatten(2)[..., None] - x.flatten(2)[..., None, :],
        "sub",
        "relates positions to each other",
    ),
    "attention": (Attention(), "matmul", "attention"),
    "positions of one patch": (lambda x: x[:, :, 0], "__getitem__", "single patches or positions"),
    "one row": (lambda x: x.mean(2) + 1, "add", "some spatial axes and not others"),
    "patches alone": (lambda x: x.mean(0), "mean", "but not over their positions"),
    "softmax over a row": (lambda x: x.softmax(-1), "softmax", "some spatial axes and not others"),
    "bilinear to no whole patch": (
        lambda x: F.interpolate(x, scale_factor=1.1, mode="bilinear"),
        "interpolate",
        "no whole number of positions",
    ),
    "transposed conv that shifts": (nn.ConvTranspose2d(4, 4, 3, 2), "conv_transpose2d", "cannot be cut into"),
    "transposed conv of another size": (nn.ConvTranspose2d(4, 4, 4, 2, 0), "conv_transpose2d", "expected (8, 8)"),
    "pool to rows": (lambda x: F.adaptive_avg_pool2d(x, (None, 1)), "adaptive_avg_pool2d", "rows or columns"),
    "pool to a size or to bins": (
        lambda x: F.adaptive_avg_pool2d(x, (2, 2)),
        "adaptive_avg_pool2d",
        "write x.shape[2:] for the former, 2 for the latter",
    ),
    "positions of the largest": (
        lambda x: x.flatten(2).max(-1)[1] // 2,
        "floordiv|floor_divide",
        "not known among visible patches",
    ),
    "position of the largest of all": (lambda x: x.flatten().max(0), "max", "without an axis"),
    "pooled by the height and width": (
        lambda x: x * F.avg_pool2d(x, (x.shape[2], x.shape[3])),
        "mul",
        "write x.mean((2, 3))",
    ),
    "a vector from what was pooled so": (
        lambda x: F.linear(F.avg_pool2d(x, (x.shape[2], x.shape[3])).flatten(1), torch.ones(1, 4)),
        "linear",
        "write x.mean((2, 3))",
    ),
    "zeros of the shape": (lambda x: x + torch.zeros(x.shape), "add", "torch.zeros_like(x)"),
    "expanded positions": (lambda x: F.max_pool2d(x, 4).expand(-1, -1, 4, 4), "expand", "repeats patches or positions"),
    "channels dropped by hand, of one position": (
        lambda x: (lambda y: y * F.dropout(y.new_ones(len(y), 4, 1, 1)))(F.max_pool2d(x, 4)),
        "new_ones",
        "F.dropout2d for channels",
    ),
    "half of a position": (lambda x: F.max_pool2d(x, 4).reshape(len(x), 4, 0, 2, 0, 2), "reshape", "larger patches"),
    "einsum over rows": (lambda x: torch.einsum("bchw,bdhw->bcdw", x, x), "einsum", "some patches or positions"),
    "einsum over the patches": (lambda x: torch.einsum("bchw->chw", x), "einsum", "some patches or positions"),
    "einsum of two sums over positions": (
        lambda x: torch.einsum("bci,bdj->bcd", x.flatten(2), x.flatten(2)),
        "einsum",
        "some patches or positions",
    ),
    "patches as channels": (
        lambda x: F.conv2d(x.view(1, -1, 4, 4), torch.ones(16, 1, 3, 3), padding=1, groups=16),
        "conv2d",
        "made for this number of patches",
    ),
    "einsum of positions and positions": (
        lambda x: torch.einsum("bchw,bcij->bhwij", x, x),
        "einsum",
        "relates positions to each other",
    ),
    "einsum of positions and channels": (lambda x: torch.einsum("bchw,bhdw->bdw", x, x), "einsum", "in one operand"),
    "vmap": (lambda x: torch.vmap(lambda row: row * 2)(x), "dim|size", "torch.vmap runs a function on each row"),
    "positional embedding": (lambda x: x + torch.randn(1, 4, 4, 4), "add", "spatial extent"),
    "columns of its own beside channels": (
        lambda x: torch.cat((x, torch.arange(4.0).expand(4, 1, 4, 4)), 1),
        "cat",
        "a tensor without patches",
    ),
    "a row for each patch": (lambda x: x * torch.arange(4.0).view(4, 1, 1, 1), "mul", "more than one row"),
    "conv of rows": (
        lambda x: F.conv2d(x.flatten(2).unsqueeze(1), torch.ones(1, 1, 3, 3), padding=1),
        "conv2d",
        "but (patches, 1, channels, positions·positions)",
    ),
    "unpadded conv": (nn.Conv2d(4, 4, 3), "conv2d", "line up"),
    "stride too wide": (nn.Conv2d(4, 4, 8, 8), "conv2d", "does not divide"),
    "flatten to a vector": (lambda x: F.linear(x.flatten(1), torch.ones(1, 64)), "linear", "patches or positions"),
    "result written elsewhere": (lambda x: torch.add(x.mean((2, 3)), 1, out=torch.zeros(0)), "add", "out="),
    "read after pad": (lambda x: F.pad(x, (1, 1, 1, 1)) + 1, "add", "padded"),
    "mean after pad": (lambda x: F.pad(x, (1, 1, 1, 1)).mean((2, 3)), "mean", "padded"),
    "conv of conv weights": (lambda x: F.conv2d(x, x[:, :, :1]), "__getitem__|conv2d", ""),
    "indices of a pool": (
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        "max_unpool2d",
        "no known meaning",
    ),
    "indices of a pool, read": (
        lambda x: F.max_pool2d(x, 2, return_indices=True)[1] + 1,
        "add",
        "not known among visible patches",
    ),
    "transposed conv whose taps lie apart": (
        nn.ConvTranspose2d(4, 4, 2, 2, dilation=2),
        "conv_transpose2d",
        "cannot be cut into",
    ),
    "conv of complex values": (
        lambda x: F.conv2d(x * 1j, torch.ones(4, 4, 3, 3) * 1j, padding=1),
        "conv2d",
        "complex",
    ),
    "rows of a table": (lambda x: torch.ones(4, 8)[x.argmax(1)], "__getitem__", "on a plain tensor"),
    "rows of a table, chosen": (
        lambda x: torch.ones(4, 8).index_select(0, x.argmax(1).flatten()),
        "index_select",
        "computed from single patches",
    ),
    "channels chosen by patches": (
        lambda x: x.index_select(1, x.argmax(1).flatten()),
        "index_select",
        "computed from single patches",
    ),
    "a plain tensor of the shape": (lambda x: torch.ones(2 * 4 * 8 * 8).view_as(x), "view_as", "on a plain tensor"),
    "a plain tensor repeated": (
        lambda x: torch.ones(4).repeat_interleave(x.argmax(1).flatten(), 0),
        "repeat_interleave",
        "on a plain tensor",
    ),
    "where something is": (lambda x: torch.where(x > 0), "where", "places among all visible positions"),
    "values replaced": (lambda x: setattr(x, "data", 2 * x), "Tensor.data = …", "no known meaning"),
    "two grids": (lambda x: x + patches(), "add", "different grids"),
    "split of patches": (lambda x: x.view(2, 2, 4, 4, 4), "view", "cuts through the patch axis"),
    "joined patches": (lambda x: torch.cat([x, x], 0), "cat", "patches or positions"),
    "image by image": (lambda x: torch.cat([x[i : i + 1] for i in range(len(x))]), "__getitem__", "a row is a patch"),
    "one image": (lambda x: x[0], "__getitem__", "a row is a patch"),
    "images in a loop": (lambda x: [image for image in x], "unbind", "a row is a patch"),
    "half of the images": (lambda x: x.chunk(2), "chunk", "a row is a patch"),
    "reversed map": (lambda x: x.flip(3), "flip", "patches or positions"),
    "first half of the map": (lambda x: x[:, :, :2], "__getitem__", "part of the patches or positions"),
}


class Wrapped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_by_name_and_place(name):
    function, called, reason = REFUSED[name]
    network = nn.Sequential(nn.Identity(), Wrapped(function))
    with pytest.raises(NotExactError, match=called) as caught:
        network(patches())
    message = str(caught.value)
    assert "in 1" in message and "convspark.sparse.meaning" in message
    if reason:
        assert any(part in message for part in reason.split("|")), message


def test_proof_names_the_module_that_acts_by_size():
    class Coordinates(nn.Module):
        def forward(self, x):
            return x * torch.linspace(0, 1, x.shape[-1], dtype=x.dtype).sum()

    network = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU(), Coordinates())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(NotExactError, match=r"2 \(Coordinates\)"):
        prove(lambda x: [network(x)], network, 3, (64, 64), (16, 16))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training


def test_proof_finds_what_is_wrong_only_with_masked_patches():
    """With everything visible, this meaning of the mean would pass: it forgets to count visible positions only."""

    class FixedDivisor(nn.Module):
        def forward(self, x):
            return x + x.sum((2, 3), keepdim=True) / self.positions

    module = FixedDivisor()
    module.positions = 48 * 48
    assert prove(lambda x: [module(x)], module, 3, (48, 48), (16, 16)).largest < 1e-12  # sums agree with the oracle

    class WrongMean(nn.Module):
        def forward(self, x):
            some_masked = isinstance(x, VisiblePatches) and not x.grid.visible.all()
            return x + x.mean((2, 3), keepdim=True) * (0.9 if some_masked else 1.0)

    wrong = WrongMean()
    with pytest.raises(NotExactError, match="mask-and-multiply"):
        prove(lambda x: [wrong(x)], wrong, 3, (48, 48), (16, 16))


def test_proof_passes_an_exact_network_and_restores_it():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)).bfloat16()
    assert prove(lambda x: [network(x)], network, 3, (64, 64), (16, 16)).largest < 1e-8
    assert all(p.dtype == torch.bfloat16 for p in network.parameters()) and network.training


def test_pooling_a_single_position_by_the_height_and_width_is_refused():
    with pytest.raises(NotExactError, match="pools nothing"):
        F.avg_pool2d(patches(p=1), (1, 1))
    assert F.max_pool2d(patches(p=4), 1, 2).shape[2:] == (2, 2)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_compiled_module_in_a_network_is_refused():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), torch.compile(nn.Conv2d(4, 4, 1), backend="eager"))
    with pytest.raises(NotExactError, match="Compile the whole step"):
        network(patches())


def swish(x: torch.Tensor):
    return x * torch.sigmoid(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(1, 4, 2, 2))])
def test_modules_compiled_by_torchscript_are_refused(compiled):
    network = nn.Sequential(nn.Identity(), compiled(nn.Conv2d(4, 4, 1)))
    with pytest.raises(NotExactError, match=r"TorchScript's forward \(in 1 .* use the module that it was made from"):
        network(patches())


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("leaving", [lambda x: torch.jit.script(swish)(x), torch.Tensor, torch.autograd.Variable])
def test_what_left_the_patches_unseen_is_refused_beside_them_and_by_scatter(leaving):
    with pytest.raises(NotExactError, match="more than one row"):
        patches() + leaving(patches())
    with pytest.raises(UsageError, match="not visible patches"):
        scatter(leaving(patches()))


def test_values_of_images_are_not_put_back():
    with pytest.raises(UsageError, match="not visible patches"):
        scatter(patches().mean((2, 3), keepdim=True))


def test_gradients_that_a_network_asks_for_are_patches():
    x = patches().requires_grad_()
    (slope,) = torch.autograd.grad((x * x).sum(), x)
    torch.testing.assert_close((slope / 2 + x).values, 2 * x.values)
