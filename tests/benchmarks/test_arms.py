"""Experiments in arms: pre-trained and fine-tuned once, recorded, compared in pairs."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import arms, records, scaling_laws
from benchmarks.arms import RANDOM, Arm, Budget
from convspark.runs.numbers import count
from tests.labelled_pictures import write_pictures


def line(arm: str, seed: int, right: str) -> dict:
    bits = [digit == "1" for digit in right]
    key = Budget(Path("x"), "x", "resnet18", 64, 1, 1, (1.0,)).key(arm, seed, 1.0)
    rest = {"labels": 10, "pictures": len(right), "split": "val", "right": arms._as_hex(bits)}
    return key | rest | {"top1": statistics.mean(bits)}


def test_arms_are_compared_in_pairs():
    lines = [line("a", 0, "0111"), line("a", 1, "0111"), line("b", 0, "0011"), line("b", 1, "1001"), line("a", 2, "0")]
    gain = arms.compared(lines, "a", "b")
    assert gain is not None and gain.points == [25.0, 25.0] and gain.low is not None and gain.low < 25
    assert arms.compared(lines, "a", "c") is None
    table = arms.table(lines[:4], ["a", "b", "c"], "b")
    assert "| a | 2 | 75.0 ± 0.0 % | +25.0 ± 0.0 |" in table and "| b | 2 | 50.0 ± 0.0 % | | |" in table
    assert "| c |" not in table


@pytest.mark.parametrize("bits", ["0", "0001", "10", "1" * 37])
def test_who_was_right_is_kept(bits):
    seen = [digit == "1" for digit in bits]
    assert arms._of_hex(arms._as_hex(seen)) == seen


@pytest.mark.parametrize("words", [[], ["nowhere"]])
def test_data_are_missing(words):
    with pytest.raises(SystemExit, match=r"data is (None|nowhere): expected a folder with train/ and val/"):
        arms.budget_of(arms.arguments("").parse_args(words))


def test_an_experiment_runs_once(tmp_path, monkeypatch):
    data = tmp_path / "data"
    write_pictures(data / "train", 12)
    write_pictures(data / "val", 4, seed=1)
    small = {"decoder_width": 32, "batch_size": 8, "workers": 0, "precision": "fp32", "mask_ratio": 0.5}
    budget = Budget(data, "colours", "test_resnet", 64, 1, 1, (0.5, 1.0), small, {"workers": 0, "precision": "fp32"})
    file, planned = tmp_path / "record.jsonl", [Arm("all of it"), Arm(RANDOM), Arm("1 level", {"levels": 1})]
    arms.run_all(file, budget, planned, 1, tmp_path / "runs")
    lines = records.read(file)
    assert [(one["arm"], one["fraction"]) for one in lines] == [(a.name, f) for a in planned for f in (0.5, 1.0)]
    assert all(one["pictures"] == 12 and len(arms._of_hex(one["right"])) == 12 for one in lines)
    assert [one["labels"] for one in lines[:2]] == [18, 36]
    assert lines[0]["loss"] != lines[4]["loss"] and "loss" not in lines[2]

    def refuse(*_, **__):
        raise AssertionError("run again")

    monkeypatch.setattr("convspark.pretrain", refuse)
    monkeypatch.setattr("convspark.finetune", refuse)
    arms.run_all(file, budget, planned, 1, tmp_path / "runs")
    assert records.read(file) == lines and json.dumps(lines)
    shown = arms.report(lines, [arm.name for arm in planned], "all of it")
    assert shown.count("| 1 level | 1 |") == 2 and "12 val pictures" in shown


@pytest.mark.parametrize("pictures", [250, 500, 1000, 2000, 4000])
def test_fewer_pictures_take_as_many_steps(tmp_path, monkeypatch, pictures):
    monkeypatch.setattr(scaling_laws, "list_pictures", lambda folder: [f"{n}.jpg" for n in range(3068)])
    settings = scaling_laws.fewer(Budget(tmp_path, "x", "resnet18", 96, 10, 8, (1.0,)), pictures, tmp_path).settings
    shown = len(Path(settings["images"]).read_text().splitlines())
    assert shown == min(pictures, 3068)
    steps = count(shown * settings["crops_per_image"], 64, settings.get("epochs", 10), None).steps
    assert steps == pytest.approx(count(3007, 64, 10, None).steps, rel=0.05)  # 2 % of all pictures are held out


def test_batches_of_another_size_are_another_experiment(tmp_path, monkeypatch):
    trained: list[str] = []

    class Stop(Exception):
        pass

    def pretrain(out, **settings):
        trained.append(out)
        raise Stop

    monkeypatch.setattr("convspark.pretrain", pretrain)
    file, usual = tmp_path / "record.jsonl", Budget(tmp_path, "x", "resnet18", 64, 1, 1, (1.0,))
    old = {key: value for key, value in line("a", 0, "01").items() if key != "batch_size"}
    records.append(file, old)
    arms.run(file, usual, Arm("a"), 0, tmp_path)  # is known
    for seed, own in ((0, {"batch_size": 16}), (0, {"batch_size": 32}), (1, {})):
        with pytest.raises(Stop):
            arms.run(file, replace(usual, pretrain=own), Arm("a"), seed, tmp_path)
    assert len(set(trained)) == 3
    small = line("a", 0, "11") | {"batch_size": 16}
    shown = arms.report([small, old, line("b", 0, "11") | {"batch_size": 16}, line("b", 0, "00")], None, "a")
    assert shown.count("| b | 1 | 100.0 % | +0.0 |") == 1 and shown.count("| b | 1 | 0.0 % | -50.0 |") == 1
    assert shown.count("in batches of 16") == 1


def test_a_folder_is_no_record(tmp_path):
    assert records.read(tmp_path / "none.jsonl") == []
    with pytest.raises(IsADirectoryError):
        records.read(tmp_path)
