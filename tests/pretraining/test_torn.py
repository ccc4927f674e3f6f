"""Run folders whose files were cut, overwritten or lost: a run goes on as it would have, or says what is wrong."""

import shutil

import pytest
import torch

from convspark.errors import ConvsparkError
from convspark.pretraining.command import pretrain

pytestmark = pytest.mark.robust("torn run folders")

FILES = ("config.yaml", "environment.json", "metrics.csv", "train_files.txt", "held_out_files.txt", "log.txt")
DAMAGES = {
    "empty": lambda data: b"",
    "cut to a third": lambda data: data[: len(data) // 3],
    "its end cut off": lambda data: data[:-5],
    "zeros": lambda data: bytes(len(data)),
    "bytes": lambda data: bytes(range(256)),
    "a list": lambda data: b"[1, 2]\n",
    "text": lambda data: b"hello world\n",
    "gone": None,
}


@pytest.fixture(scope="module")
def stopped(pictures, stop_in_second_epoch, tmp_path_factory):
    """A run that was stopped in its second epoch, and the loss that it ends with."""
    folder = tmp_path_factory.mktemp("runs")
    stop_in_second_epoch(pictures, folder / "stopped")
    shutil.copytree(folder / "stopped", folder / "whole")
    return folder / "stopped", pretrain(resume=str(folder / "whole")).train_loss


def goes_on_or_says_why(stopped, tmp_path, file, damage):
    folder, loss = stopped
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / file
    if DAMAGES[damage] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    try:
        assert pretrain(resume=str(tmp_path / "run")).train_loss == loss
    except ConvsparkError as error:
        said = str(error)
    else:
        return True
    assert str(path.parent) in said or "images" in said
    return False


@pytest.mark.parametrize(
    ("file", "damage", "goes_on"),
    [
        ("config.yaml", "bytes", False),
        ("environment.json", "cut to a third", True),
        ("metrics.csv", "bytes", True),
        ("train_files.txt", "its end cut off", False),
        ("train_files.txt", "gone", True),
    ],
)
def test_a_torn_file(file, damage, goes_on, stopped, tmp_path):
    assert goes_on_or_says_why(stopped, tmp_path, file, damage) == goes_on


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_every_torn_file(file, damage, stopped, tmp_path):
    goes_on_or_says_why(stopped, tmp_path, file, damage)


def test_other_images_than_a_run_was_begun_with_are_noticed(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    listed = tmp_path / "run" / "train_files.txt"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConvsparkError, match="begun with 21 images to train on, and there are 20 now"):
        pretrain(resume=str(tmp_path / "run"))


@pytest.mark.parametrize("key", ["of_steps", "seed", "optimizer"])
def test_the_checkpoint_of_another_run_of_the_same_network_is_refused(key, stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(file)
    content["convspark_epoch"][key] += "W" if key == "optimizer" else 1
    torch.save(content, file)
    with pytest.raises(ConvsparkError, match="the checkpoint is of another run, one of"):
        pretrain(resume=str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("part", "key"), [("convspark_epoch", "sum"), pytest.param("loops", "fit_loop", marks=pytest.mark.slow)]
)
def test_a_checkpoint_without_a_part_is_refused(part, key, stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(file)
    del content[part][key]
    torch.save(content, file)
    with pytest.raises(ConvsparkError, match=r"last.ckpt cannot be gone on from \(KeyError: .*was it changed"):
        pretrain(resume=str(tmp_path / "run"))


def test_a_complete_run_without_its_metrics_says_so(stopped, tmp_path):
    shutil.copytree(stopped[0].parent / "whole", tmp_path / "run")
    (tmp_path / "run" / "metrics.csv").unlink()
    with pytest.raises(ConvsparkError, match=r"complete, but its metrics.csv is gone"):
        pretrain(resume=str(tmp_path / "run"))
    (tmp_path / "run" / "metrics.csv").write_text("foo,bar\n1,2\n")
    with pytest.raises(ConvsparkError, match=r"complete, but its metrics.csv is gone or torn"):
        pretrain(resume=str(tmp_path / "run"))
