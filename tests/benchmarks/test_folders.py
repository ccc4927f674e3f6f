"""Benchmarks go on where they were stopped only with what was asked for, or records would say something else."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import decoders, transfer


class Stop(Exception):
    """In the place of a training."""


@pytest.fixture
def begun(monkeypatch) -> list[str]:
    """The folders of the trainings that were begun, each of them stopped at once, with settings in it."""
    folders: list[str] = []

    def begin(*_, out, **__):
        folders.append(Path(out).relative_to(Path(out).parents[2]).as_posix())
        Path(out).mkdir(parents=True)
        Path(out, "config.yaml").touch()
        raise Stop

    monkeypatch.setattr("convspark.pretrain", begin)
    monkeypatch.setattr("convspark.finetune", begin)
    return folders


def test_decoders_of_other_epochs_or_labels_have_folders_of_their_own(tmp_path, begun, monkeypatch):
    monkeypatch.setattr(decoders, "add_candidates", lambda: None)
    usual = {"data": tmp_path, "name": "x", "out": tmp_path, "model": "resnet18", "size": 96}
    usual |= {"epochs": 10, "fraction": 0.1, "finetune_epochs": 50}
    others = [("lean", {}), ("lean", {"epochs": 20}), ("paper", {}), ("random", {}), ("random", {"fraction": 1.0})]
    for arm, own in [*others, ("random", {"finetune_epochs": 20})]:
        with pytest.raises(Stop):
            decoders.run(Namespace(**(usual | own)), arm, 0)
    assert len(set(begun)) == 6


@pytest.mark.parametrize("other", ["--model=resnet50", "--size=64", "--decoder=paper", "--pretrain-epochs=30"])
def test_transfer_from_another_pre_training_has_a_folder_of_its_own(tmp_path, begun, monkeypatch, other):
    usual = ["transfer", str(tmp_path), "--name=x", f"--out={tmp_path}"]
    for words in (usual, [*usual, other]):
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(Stop):
            transfer.main()
    assert len(set(begun)) == 2
