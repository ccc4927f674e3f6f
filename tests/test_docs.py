"""The examples of the README and the pages under docs/ run as they are printed."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_example_of_the_readme():
    names = {}
    exec(next(block for block in blocks(ROOT / "README.md") if "SparK(" in block), names)
    assert names["patches"].shape == (40, 3, 32, 32) and names["features"].shape == (2, 768, 7, 7)
    assert torch.isfinite(names["out"].loss) and names["model"].backbone is names["backbone"]


def test_example_of_an_elementwise_meaning():
    from convspark import PatchGrid, gather
    from convspark.errors import NotExactError
    from convspark.sparse.registry import MEANINGS

    x = gather(torch.randn(1, 2, 4, 4), PatchGrid(torch.tensor([[[True, False], [True, True]]])))
    with pytest.raises(NotExactError, match="expit"):
        torch.special.expit(x)
    try:
        exec(blocks(ROOT / "docs" / "meanings.md")[0], {})
        assert torch.equal(torch.special.expit(x).values, x.values.sigmoid())
    finally:
        MEANINGS.pop(torch.special.expit, None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
