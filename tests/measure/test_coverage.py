"""The table of verdicts is about networks that exist, and is not out of date where it can be told."""

import pytest
import timm

from convspark.errors import UsageError
from convspark.measure import coverage


def test_patterns():
    names = [row.name for row in coverage.list_networks("convnextv2_*")]
    assert names == timm.list_models("convnextv2_*") and names
    assert {"resnet18", "seresnet18"} <= {row.name for row in coverage.list_networks("ResNet18")}
    assert [row.name for row in coverage.list_networks()] == timm.list_models()
    with pytest.raises(UsageError, match="did you mean resnet18"):
        coverage.list_networks("resnet81")


def test_rows_tell_what_the_table_has(monkeypatch):
    known = {"family": "resnet", "parameters": 7, "stride": 32, "verdict": "refused", "reason": "x. Expected y"}
    monkeypatch.setattr(coverage, "table", lambda: {"networks": {"resnet18": known}})
    rows = {row.name: row for row in coverage.list_networks("resnet18*")}
    assert (rows["resnet18"].parameters, rows["resnet18"].verdict, rows["resnet18"].brief) == (7, "refused", "x")
    assert rows["resnet18d"].verdict == coverage.NOT_TRIED and rows["resnet18d"].family == "resnet"
    text = coverage.summary(list(rows.values()))
    assert text.startswith("2 networks: 1 refused, 1 not tried. `convspark check NAME`")


def test_the_table_agrees_with_the_networks():
    if coverage.table()["timm"] != timm.__version__:
        pytest.skip("the table is of another version of timm")
    networks = coverage.table()["networks"]
    assert set(networks) <= set(timm.list_models())
    network = timm.create_model("resnet18")
    row = networks["resnet18"]
    assert row["parameters"] == sum(p.numel() for p in network.parameters())
    assert (row["family"], row["stride"], row["verdict"]) == ("resnet", 32, "exact")
