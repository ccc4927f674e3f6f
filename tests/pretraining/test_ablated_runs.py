"""Runs with a part of the method taken away: trained, kept in the config, gone on with, drawn, used as weights."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from convspark import pretrain, reconstruct
from convspark.checkpoints.whole import load_whole
from convspark.cli.main import main
from convspark.errors import UsageError

ABLATED = [
    {"encoding": "zero"},
    {"levels": 1},
    {"mask_token": "zero"},
    {"target": "raw"},
    {"loss_on": "all"},
    {"masks": "blocks"},
]


@pytest.mark.parametrize("option", ABLATED, ids=str)
def test_run(option, pictures, small, tmp_path):
    out = tmp_path / "run"
    result = pretrain(str(pictures), out=str(out), **small | {"epochs": 1}, **option)
    assert np.isfinite(result.train_loss) and result.picture is not None
    assert option.items() <= yaml.safe_load((out / "config.yaml").read_text()).items()
    name, value = next(iter(option.items()))
    assert f"{name} {value}" in (out / "log.txt").read_text() or f"drawn by {value}" in (out / "log.txt").read_text()
    whole = load_whole(str(out)).model
    assert len(whole.densify) == option.get("levels", 4)
    kept = {"encoding": whole.encoding, "target": whole.target, "loss_on": whole.loss_on}
    assert all(value == kept.get(name, value) for name, value in option.items())
    assert reconstruct(str(out), [str(pictures)], output=str(tmp_path / "shown.png")).is_file()


def test_masks_of_a_file_and_of_a_function(pictures, small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("convspark.trust._trusted", set())  # whatever was typed before
    np.save("left.npy", np.array([[[1, 0], [1, 0]], [[1, 0], [0, 0]]]))
    pretrain(str(pictures), out="of-file", masks="left.npy", **small | {"epochs": 1})
    (tmp_path / "my_masks.py").write_text(
        "import torch\n"
        "def rows(images, shape, mask_ratio, generator):\n"
        "    seen = torch.arange(shape[0]) == torch.randint(shape[0], (images, 1), generator=generator)\n"
        "    return seen[:, :, None].expand(images, *shape)\n"
    )
    pretrain(str(pictures), out="of-function", masks="my_masks:rows", **small | {"epochs": 1})
    for run in ("of-file", "of-function"):  # which may show other shares than the mask ratio
        log = Path(run, "log.txt").read_text()
        assert "4 a picture, drawn by" in log and "of 4 visible" not in log
    # The masks belong to the run, wherever it goes on and whatever becomes of their file.
    np.save("left.npy", np.array([[[1, 1], [0, 1]]]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_whole("../of-file").model.draw_masks(9, (2, 2), 0.6).visible[:, :, 1].logical_not().all()
    pretrain(resume=str(tmp_path / "of-file"))
    assert main(["reconstruct", "../of-file", str(pictures), "--mask-ratio", "0.5"]) == 2
    assert "masks are those of a file" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    # Somebody else's run may name any code: going on with it asks first.
    assert main(["pretrain", "--resume", "of-function"]) == 2
    assert "names 'my_masks:rows': Python code" in capsys.readouterr().err
    assert main(["reconstruct", "of-function", str(pictures), "-o", "shown.png"]) == 2
    assert main(["reconstruct", "of-function", str(pictures), "-o", "shown.png", "--trust-code"]) == 0
    with pytest.raises(UsageError, match="leave out compile, which needs the same number of visible patches"):
        pretrain(str(pictures), out="compiled", masks="left.npy", compile=True, **small)
