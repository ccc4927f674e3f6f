"""A demo that is stopped says how it goes on, and does."""

import pytest

from convspark.cli.demo import SETTINGS, demo
from convspark.cli.main import main
from convspark.runs.callbacks import Checkpoints


def test_a_stopped_demo_goes_on(tmp_path, monkeypatch, capsys):
    pytest.importorskip("skimage")
    small = {"size": 64, "crops_per_image": 2, "workers": 0, "decoder_width": 32, "precision": "fp32"}
    monkeypatch.setattr("convspark.cli.demo.SETTINGS", {**SETTINGS, **small})
    before = Checkpoints.on_train_batch_end

    def stop(self, trainer, *rest):
        if trainer.global_step == 1:
            self.stop()
        before(self, trainer, *rest)

    out = str(tmp_path / "demo")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", stop)
        with pytest.raises(KeyboardInterrupt, match="convspark demo --resume"):
            demo(out=out, epochs=1, model="test_resnet")
    assert main(["demo", "--resume", out, "--epochs", "2"]) == 2  # it goes on with its own
    assert "leave out --epochs" in capsys.readouterr().err
    assert main(["demo", "--resume", out]) == 0
    assert "Done: 1 epoch," in capsys.readouterr().out
