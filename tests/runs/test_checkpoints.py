"""Which checkpoint a run goes on from, and what is said of those that are damaged or of something else."""

import logging
import zipfile

import pytest
import torch
from torch import nn

from convspark.errors import ConvsparkError
from convspark.runs.checkpoints import check_content, damage, whole_checkpoint
from convspark.runs.folder import RunFolder


def content(step=0):
    state = nn.Linear(300, 300).state_dict()
    parts = {"optimizer_states": [], "convspark_epoch": {}, "loops": {}, "callbacks": {}}
    return {"state_dict": state, "global_step": step, **parts}


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    torch.save(content(1), run.previous_checkpoint)
    torch.save(content(2), run.last_checkpoint)
    return run


def zeroed(path, at, count=64):
    data = bytearray(path.read_bytes())
    data[at : at + count] = bytes(count)
    path.write_bytes(data)


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def other_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello\n" * 1000),
    "another archive": other_archive,
    **{f"cut to {share}": lambda path, share=share: cut(path, share) for share in (0.01, 0.3, 0.999)},
    **{f"zeros at {at}": lambda path, at=at: zeroed(path, at) for at in (5_000, 60_000, 180_000, 300_000)},
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_noticed_and_the_checkpoint_before_is_taken(name, folder, caplog):
    assert damage(folder.last_checkpoint) is None and whole_checkpoint(folder) == folder.last_checkpoint
    DAMAGES[name](folder.last_checkpoint)
    assert damage(folder.last_checkpoint)
    with caplog.at_level(logging.WARNING):
        assert whole_checkpoint(folder) == folder.previous_checkpoint
    assert f"{folder.last_checkpoint} is damaged (" in caplog.text and "going on from previous.ckpt" in caplog.text
    DAMAGES[name](folder.previous_checkpoint)
    with pytest.raises(ConvsparkError, match="start a new one"):
        whole_checkpoint(folder)


def test_without_a_last_checkpoint_the_one_before_is_taken(folder):
    """A process may have been killed between the two moves."""
    folder.last_checkpoint.unlink()
    assert whole_checkpoint(folder) == folder.previous_checkpoint
    folder.previous_checkpoint.unlink()
    assert whole_checkpoint(folder) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("optimizer_states"), "not a checkpoint of a run"),
        (lambda c: c["state_dict"].pop("weight"), "another network than this run's: 1 of 2"),
        (lambda c: c["state_dict"].update(more=torch.ones(1)), "another network"),
        (lambda c: c["state_dict"].update(weight=torch.ones(3, 300)), "weight among them"),
        (lambda c: c.update(hook=zipfile.ZipFile), "cannot be read"),
        (lambda c: c.update(state_dict=[]), "not a checkpoint of a run"),
        (lambda c: c.pop("loops"), "not a checkpoint of a run"),
        (lambda c: c.pop("callbacks"), "not a checkpoint of a run"),
        (lambda c: c.update(convspark_epoch=None), "not a checkpoint of a run"),
        (lambda c: c["state_dict"].update(weight="words"), "weight among them"),
        (lambda c: c.update(optimizer_states=[]), "another optimiser"),
        (lambda c: c["optimizer_states"][0].pop("param_groups"), "another optimiser"),
        (lambda c: c["optimizer_states"][0]["param_groups"].append({"params": [7]}), "another optimiser"),
        (lambda c: c["optimizer_states"][0]["state"][0].pop("exp_avg"), "another optimiser"),
        (lambda c: c["optimizer_states"][0]["state"][1].update(exp_avg=torch.ones(3)), "another optimiser"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(change, said, tmp_path):
    path, checkpoint = tmp_path / "last.ckpt", content()
    expected = dict(checkpoint["state_dict"])
    parameters = [nn.Parameter(tensor) for tensor in expected.values()]
    optimizer = torch.optim.AdamW(parameters)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    checkpoint["optimizer_states"] = [optimizer.state_dict()]
    torch.save(checkpoint, path)
    check_content(path, expected, torch.optim.AdamW(parameters))
    change(checkpoint)
    torch.save(checkpoint, path)
    with pytest.raises(ConvsparkError, match=said):
        check_content(path, expected, torch.optim.AdamW(parameters))
