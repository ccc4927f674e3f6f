"""`convspark check` and `convspark models` from the shell."""

import json

import pytest

from convspark.cli.main import main

OWN = """
import torch
from torch import nn


class Shift(nn.Module):
    def forward(self, x):
        return x.roll(1, 2)


def good():
    return nn.Sequential(nn.Conv2d(5, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, 2, 1))


def bad():
    return nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 8, 2, 2), Shift())


built = good()
number = 7
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "mynets_of_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["good", "built"])
def test_a_network_of_ones_own(own, capsys, name):
    assert main(["check", f"mynets_of_test:{name}", "--size", "16x24"]) == 0
    out = capsys.readouterr().out
    assert "exact on visible patches" in out and "4 images of 16x24, 60% masked" in out


def test_a_refused_one_says_what_stops_it(own, capsys):
    assert main(["check", "mynets_of_test:bad", "--no-measure"]) == 1
    out = capsys.readouterr().out
    assert "NOT exact" in out and "roll (in 2 (Shift))" in out and "convspark.sparse.meaning" in out


def test_json(own, capsys):
    assert main(["check", "mynets_of_test:bad", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["exact"] is False and report["proof"] is None and "roll" in report["reason"]
    assert main(["check", "test_resnet", "--no-measure", "--channels", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["exact"] and report["proof"]["gradients"] < 1e-8 and report["patch_size"] == report["strides"][-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "network is missing"),
        (["resnet1"], "did you mean"),
        (["torchvision:resnet19"], "did you mean"),
        (["mynets_of_test:god"], "has no 'god'; did you mean good"),
        (["mynets_of_test:number"], "cannot be called|gives a"),
        (["no_such_package:net"], "cannot be imported"),
        (["test_resnet", "--size", "12by3"], "--size '12by3'"),
    ],
)
def test_wrong_usage(own, capsys, arguments, message):
    assert main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|")), error


def test_models(capsys):
    assert main(["models", "resnet1[08]*"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["network", "family", "parameters", "stride", "verdict"]
    assert any(line.split() == ["resnet18", "resnet", "11.7", "M", "32", "exact"] for line in out)
    assert main(["models", "test_vit*"]) == 0  # a family of a long name among them
    *lines, _ = capsys.readouterr().out.splitlines()
    starts = {line.index(word) for line, word in zip(lines, ["verdict", *["refused"] * 5], strict=True)}
    assert len(starts) == 1
    assert main(["models", "resnet18", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resnet18"]["verdict"] == "exact"
    assert main(["models", "nothing_like_this_zz"]) == 2
