"""A run whose pictures lie elsewhere when it goes on."""

import shutil

import pytest
import yaml
from safetensors.torch import load_file

from convspark.cli.main import main
from convspark.errors import DataError, UsageError
from convspark.pretraining.command import pretrain
from convspark.runs import run as runs


@pytest.fixture(scope="module")
def stopped(pictures, stop_in_second_epoch, tmp_path_factory):
    """A run that was stopped in its second epoch, its pictures, and the weights that it ends with."""
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(pictures, root / "old")
    stop_in_second_epoch(root / "old", root / "stopped")
    shutil.copytree(root / "stopped", root / "whole")
    return root, load_file(pretrain(resume=str(root / "whole")).export.folder / "model.safetensors")


@pytest.fixture
def moved(stopped, tmp_path):
    """The run, the place where its pictures are no more, and where they are now."""
    root, _ = stopped
    run, old, new = tmp_path / "run", root / "old", tmp_path / "new"
    shutil.copytree(root / "stopped", run)
    shutil.copytree(old, new)
    old.rename(root / "hidden")
    yield run, old, new
    (root / "hidden").rename(old)


def same(run, weights):
    ours = load_file(run / "export" / "model.safetensors")
    return all(ours[name].equal(value) for name, value in weights.items())


def lists(run):
    return [(run / name).read_text() for name in ("train_files.txt", "held_out_files.txt", "file_sizes.txt")]


def test_it_goes_on_to_the_very_same_weights(moved, stopped, capsys):
    run, old, new = moved
    before = lists(run)
    assert main(["pretrain", "--resume", str(run)]) == 3
    assert f"are no longer where they were, for example {old}" in capsys.readouterr().err
    assert lists(run) == before
    assert main(["pretrain", "--resume", str(run), "--images", str(new)]) == 0
    assert same(run, stopped[1])
    assert lists(run) == [*(text.replace(str(old), str(new)) for text in before[:2]), before[2]]
    assert yaml.safe_load((run / "config.yaml").read_text())["images"] == str(new)
    assert f"26 pictures are taken from {new}, where they were in {old}" in (run / "log.txt").read_text()
    assert main(["pretrain", "--resume", str(run)]) == 0  # and from now on without a word
    assert main(["pretrain", str(new), "--resume", str(run)]) == 0


def test_other_pictures_are_refused_and_nothing_is_written(moved):
    run, _, new = moved
    before = [*lists(run), (run / "config.yaml").read_text()]
    path = sorted(new.iterdir())[7]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"1 of the 26 pictures of the run are others"):
        pretrain(str(new), resume=str(run))
    with pytest.raises(UsageError, match=r"leave out --epochs .*place of data that were moved"):
        pretrain(str(new), resume=str(run), epochs=7)
    assert [*lists(run), (run / "config.yaml").read_text()] == before


@pytest.mark.parametrize("at", ["held_out_files.txt", "file_sizes.txt", "config.yaml"])
def test_a_move_that_was_cut_short_is_done_again(at, moved, stopped, monkeypatch):
    from convspark.runs import images

    run, _, new = moved

    def write(path, text, **options):
        if path.name == at:
            raise ConnectionAbortedError
        written(path, text, **options)

    written = images.write_text
    with monkeypatch.context() as patched:
        for module in (images, runs):
            patched.setattr(module, "write_text", write)
        with pytest.raises(ConnectionAbortedError):
            pretrain(str(new), resume=str(run))
    pretrain(str(new), resume=str(run))
    assert same(run, stopped[1]) and yaml.safe_load((run / "config.yaml").read_text())["images"] == str(new)


def test_a_run_that_kept_no_sizes_can_move_too(moved, stopped):
    run, _, new = moved
    (run / "file_sizes.txt").unlink()
    pretrain(str(new), resume=str(run))
    assert same(run, stopped[1]) and "of 26 the size is not known" in (run / "log.txt").read_text()


def test_held_out_images_of_their_own_move_by_themselves(pictures, small, tmp_path):
    shutil.copytree(pictures, tmp_path / "kept")
    settings = small | {"size": 32, "epochs": 1, "picture_epochs": 0, "mask_ratio": 0.5, "patch_size": 8}
    run = tmp_path / "run"
    first = pretrain(str(pictures), held_out=str(tmp_path / "kept"), out=str(run), **settings)
    (tmp_path / "kept").rename(tmp_path / "new")
    again = pretrain(resume=str(run), held_out=str(tmp_path / "new"))
    assert again.held_out_loss == first.held_out_loss
    assert str(tmp_path / "new") in (run / "held_out_files.txt").read_text()
    assert str(pictures) in (run / "train_files.txt").read_text()
