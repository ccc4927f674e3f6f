"""The commands as a user types them."""

import json

import numpy as np
import pytest
import timm
import yaml
from PIL import Image

from convspark.cli import demo as demo_module
from convspark.cli.main import main
from convspark.data import demo_photographs
from convspark.pretraining import estimate


def test_pretrain_prints_what_to_do_next_on_stdout(folder, quick, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["pretrain", str(folder), "--out", str(out), *quick]) == 0
    captured = capsys.readouterr()
    assert f'timm.create_model("local-dir:{out}/export", pretrained=True' in captured.out
    assert f"convspark reconstruct {out}" in captured.out
    assert "images/s" not in captured.out
    assert timm.create_model(f"local-dir:{out}/export", pretrained=True)


def test_pretrain_json_is_json_alone(folder, quick, tmp_path, capsys):
    assert main(["pretrain", str(folder), "--out", str(tmp_path / "run"), "--json", *quick]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 4 and result["export"] == str(tmp_path / "run" / "export")


def test_config_file_and_print_config_are_an_inverse_pair(folder, quick, tmp_path, capsys):
    assert main(["pretrain", str(folder), *quick, "--print_config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(printed)
    assert main(["pretrain", "--config", str(tmp_path / "c.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    config = yaml.safe_load(printed)
    assert config["batch_size"] == 8 and config["learning_rate"] and config["betas"] == [0.9, 0.95]


def test_dry_run_tells_settings_memory_and_time_and_leaves_nothing(folder, quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", str(folder), *quick, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for word in ("model: test_resnet", "M parameters", "memory", "GiB", "s a step", "total"):
        assert word in text
    assert main(["pretrain", str(folder), *quick, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4
    assert not list(tmp_path.iterdir())


def test_dry_run_of_several_processes_is_of_the_part_of_one(folder, quick, monkeypatch, capsys):
    sizes, drawn = [], estimate.counted_grid
    monkeypatch.setattr(estimate, "counted_grid", lambda *args: sizes.append(len(args[1])) or drawn(*args))
    assert main(["pretrain", str(folder), *quick, "--dry-run", "--json", "--devices", "2"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {*sizes} == {4} and plan["steps"] == 4 and "for each of 2 processes" in plan["device"]
    assert main(["pretrain", str(folder), *quick, "--dry-run", "--devices", "3"]) == 2
    assert "3 processes cannot share evenly" in capsys.readouterr().err


def test_resume_of_a_finished_run(finished, capsys):
    assert main(["pretrain", "--resume", str(finished)]) == 0
    assert "Done: 1 epoch," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "images are missing"),
        (["MISSING"], 3, "does not exist"),
        (["EMPTY"], 3, "no picture in folder"),
        (["UNREADABLE"], 3, "cannot be read"),
        (["FOLDER", "--model", "resnet5o"], 2, "did you mean resnet50"),
        (["FOLDER", "--model", "vit_base_patch16_224"], 2, "self-attention"),
        (["FOLDER", "--size", "100"], 2, "96x96 or 128x128"),
        (["FOLDER", "--mask-ratio", "0.95"], 2, "mask_ratio=0.95"),
        (["FOLDER", "--mask-ratio", "0.1"], 2, "mask_ratio=0.1"),
        (["FOLDER", "--batch-size", "1000"], 2, "only 25 images"),
        (["FOLDER", "--out", "FINISHED"], 2, "pretrain --resume"),
        (["FOLDER", "--bach-size", "8"], 2, "did you mean --batch-size"),
        (["FOLDER", "--config", "TYPO"], 2, "did you mean batch_size"),
        (["--resume", "MISSING"], 2, "no run folder"),
        (["FOLDER", "--device", "cuda:77"], 2, "device is 'cuda:77'"),
        (["FOLDER", "--init", "EMPTY"], 2, "holds no weights"),
    ],
)
def test_bad_input_of_pretrain(folder, finished, quick, tmp_path, capsys, arguments, code, words):
    places = {"FOLDER": folder, "FINISHED": finished, "MISSING": tmp_path / "missing"}
    for name in ("EMPTY", "UNREADABLE"):
        places[name] = tmp_path / name.lower()
        places[name].mkdir()
    (places["UNREADABLE"] / "a.jpg").write_bytes(b"")
    places["TYPO"] = tmp_path / "typo.yaml"
    places["TYPO"].write_text("batchsize: 8")
    line = [str(places.get(word, word)) for word in arguments]
    # Of two flags of one name the last counts: that of the case; with --resume there are no others.
    defaults = [] if "--resume" in line else quick
    assert main(["pretrain", *defaults, *line]) == code
    captured = capsys.readouterr()
    assert words in captured.err and "Traceback" not in captured.err and not captured.out


def size_of(path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_reconstruct(finished, folder, tmp_path, capsys):
    output = tmp_path / "deep" / "grid.png"
    pictures = sorted(map(str, folder.rglob("*.png")))
    assert main(["reconstruct", str(finished), *pictures[:2], "-o", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    two = size_of(output)
    assert main(["reconstruct", str(finished), str(folder), "-o", str(output), "--mask-ratio", "0.3"]) == 0
    assert size_of(output) != two


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["MISSING", "PICTURE"], 2, "no run folder"),
        (["FOLDER", "PICTURE"], 2, "not a run folder"),
        (["RUN", "MISSING"], 3, "missing' does not exist"),
        (["RUN", "BAD"], 3, "bad.png"),
        (["RUN", "PICTURE", "-o", "x.jpg"], 2, ".png"),
        (["RUN", "PICTURE", "--mask-ratio", "1"], 2, "mask_ratio=1"),
        (["RUN"], 2, "PICTURE"),
        (["RUN", "PICTURE", "--sed", "1"], 2, "did you mean --seed"),
    ],
)
def test_bad_input_of_reconstruct(finished, folder, tmp_path, monkeypatch, capsys, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    picture = next(folder.rglob("*.png"))
    places = {"RUN": finished, "PICTURE": picture, "FOLDER": folder, "BAD": bad, "MISSING": tmp_path / "missing"}
    assert main(["reconstruct", *(str(places.get(word, word)) for word in arguments)]) == code
    captured = capsys.readouterr()
    assert words in captured.err and not captured.out


def test_a_picture_is_not_replaced_by_what_is_made_of_it(finished, folder, tmp_path, capsys):
    picture = tmp_path / "picture.png"
    picture.write_bytes(content := next(folder.rglob("*.png")).read_bytes())
    for pictures in (picture, tmp_path):
        assert main(["reconstruct", str(finished), str(pictures), "-o", str(picture)]) == 2
        assert "one of the pictures" in capsys.readouterr().err
    array = tmp_path / "a" / "a.npz"
    array.parent.mkdir()
    np.savez(array, np.zeros((32, 32, 4), np.uint8))
    before = array.read_bytes()
    assert main(["embed", "random:test_resnet", str(array), "--out", str(array)]) == 2
    assert "one of the pictures" in capsys.readouterr().err
    (tmp_path / "README.md").write_text("mine")
    assert main(["figures", "test_resnet", str(picture), "-o", str(tmp_path)]) == 2
    assert "would be replaced" in capsys.readouterr().err
    assert (picture.read_bytes(), array.read_bytes()) == (content, before)


def test_demo_leaves_a_run_and_the_next_commands(tmp_path, monkeypatch, capsys):
    tiny = {"size": 64, "batch_size": 8, "crops_per_image": 1, "workers": 0, "device": "cpu", "precision": "fp32"}
    tiny |= {"decoder_width": 32, "model_args": None}
    monkeypatch.setattr(demo_module, "SETTINGS", {**demo_module.SETTINGS, **tiny})
    monkeypatch.setattr(demo_module, "_FEWEST_EPOCHS", 2)
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--model", "test_resnet", "--minutes", "0.001"]) == 0
    assert "2/2" in (out / "log.txt").read_text()
    text = capsys.readouterr().out
    assert "convspark pretrain FOLDER" in text and f"convspark reconstruct {out}" in text
    assert (out / "pictures" / "last.png").is_file()


def test_demo_holds_photographs_out_whole():
    names = [name for name, _ in demo_photographs()]
    assert set(demo_module._HELD_OUT) <= set(names)
    assert 2 <= len(demo_module._HELD_OUT) <= len(names) - 8


def test_several_images_as_a_shell_writes_them_out(monkeypatch):
    from convspark.cli import pretrain as command

    asked = []
    makers = [command.command(), command.command()]
    monkeypatch.setattr(command, "command", makers.pop)
    monkeypatch.setattr(command, "pretrain", lambda **values: asked.append(values))
    monkeypatch.setattr(command, "describe", str)
    command.run(["0.tar", "1.tar", "--epochs", "2"])
    command.run(["folder", "--epochs", "2"])
    assert [values["images"] for values in asked] == [["0.tar", "1.tar"], "folder"]
