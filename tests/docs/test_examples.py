"""The examples of the README and the pages under docs/ run as they are printed."""

import re

import pytest
import timm
import torch
from pages import ROOT, meanings_forgotten, python_of
from PIL import Image


def test_example_of_the_readme():
    names = {}
    exec(next(block for block in python_of(ROOT / "README.md") if "SparK(" in block), names)
    assert names["patches"].shape == (40, 3, 32, 32) and names["features"].shape == (2, 768, 7, 7)
    assert torch.isfinite(names["out"].loss) and names["model"].backbone is names["backbone"]


@pytest.mark.slow
def test_examples_of_networks(capsys):
    names = {}
    for block in python_of(ROOT / "docs" / "networks.md"):
        if "torch.compile" not in block:
            exec(block, names)
    assert "exact on visible patches" in capsys.readouterr().out
    assert all(p.grad is not None for p in names["model"].parameters())


def test_example_of_figures(tmp_path, capsys, monkeypatch):
    Image.new("RGB", (80, 80), "teal").save(tmp_path / "PICTURE.jpg")
    monkeypatch.chdir(tmp_path)
    exec(*python_of(ROOT / "docs" / "figures.md"), {})
    output = capsys.readouterr().out
    for name in ("mask-pattern", "features"):
        assert name in output and (tmp_path / "figures" / f"{name}.pdf").is_file()


@pytest.mark.slow
def test_the_compiled_example_of_networks():
    names = {"timm": timm}
    exec(next(block for block in python_of(ROOT / "docs" / "networks.md") if "torch.compile" in block), names)
    untrained = {f"backbone.{name}" for name in names["model"].untrained}
    assert all(p.grad is not None for name, p in names["model"].named_parameters() if name not in untrained)


@pytest.fixture
def taught():
    """Runs an example of docs/meanings.md; what it taught is forgotten afterwards."""
    with meanings_forgotten():
        yield lambda number: exec(python_of(ROOT / "docs" / "meanings.md")[number], {})


def patches_and_images():
    from convspark import PatchGrid, gather

    torch.manual_seed(0)
    images = torch.randn(3, 4, 16, 24, dtype=torch.float64)
    visible = torch.rand(3, 2, 3) < 0.6
    visible[2] = False
    seen = visible[:, None].repeat_interleave(8, 2).repeat_interleave(8, 3)
    return gather(images, PatchGrid(visible)), images * seen, seen


def test_example_of_an_elementwise_meaning(taught):
    from convspark.errors import NotExactError

    x, _, _ = patches_and_images()
    with pytest.raises(NotExactError, match=r"torch\.special\.erfcx"):
        torch.special.erfcx(x)
    taught(0)
    torch.testing.assert_close(torch.special.erfcx(x).values, (x.values**2).exp() * x.values.erfc())


@pytest.mark.parametrize("with_mask", [False, True])
def test_example_of_an_operator_that_looks_around(taught, with_mask):
    from torchvision.ops import DeformConv2d

    from convspark import scatter
    from convspark.errors import NotExactError

    x, zeroed, seen = patches_and_images()
    offsets, masks = torch.nn.Conv2d(4, 18, 3, padding=1).double(), torch.nn.Conv2d(4, 9, 3, padding=1).double()
    deform = DeformConv2d(4, 6, 3, padding=1).double()

    def run(x):
        return deform(x, offsets(x), masks(x) if with_mask else None)

    with pytest.raises(NotExactError, match=r"torch\.ops\.torchvision\.deform_conv2d"):
        run(x)
    taught(1)
    ours, expected = scatter(run(x)), run(zeroed) * seen
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(y.square().sum(), list(deform.parameters())) for y in (ours, expected)]
    torch.testing.assert_close(*gradients)


def test_example_of_a_meaning_of_its_own(taught):
    taught(2)
    x, zeroed, seen = patches_and_images()
    pooled = torch.ops.mine.median_pool(x)
    for image in (0, 1):
        values = zeroed[image][:, seen[image, 0]]
        assert torch.equal(pooled.values[image], values.median(1).values)
    assert (pooled.values[2] == 0).all()
    assert (x * pooled[:, :, None, None]).shape == x.shape


def test_the_page_of_recipes_tells_what_the_recipes_do():
    from convspark.recipes import all_recipes

    page, known = ROOT / "docs" / "recipes.md", all_recipes()
    names = {}
    exec(python_of(page)[0], names)
    assert names["settings"]["epochs"] == 800
    text = page.read_text()
    assert all(name in text for name in known)
    rows = re.findall(r"^\| (.+?) \| `(\w+)` \| `(\w+)` \| ([\d.]+) \| ([\d.]*) ?\|$", text, re.MULTILINE)
    assert len(rows) == 8
    for network, first, second, top1, supervised in rows:
        assert network == known[first].network == known[second].network and known[first].then[0] == second
        assert known[second].result == f"{top1} % top-1" + (f" (supervised {supervised} %)" if supervised else "")


def test_the_masks_of_ablation(tmp_path, monkeypatch):
    from convspark.model.masks import masks_named

    (tmp_path / "masks_of_the_page.py").write_text(python_of(ROOT / "docs" / "ablation.md")[0])
    monkeypatch.chdir(tmp_path)
    grid = masks_named("masks_of_the_page:columns")(500, (4, 5), 0.9, torch.Generator().manual_seed(0))
    seen = grid.visible
    assert (seen == seen[:, :1]).all() and seen.any((1, 2)).all()
