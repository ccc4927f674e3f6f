"""The best weights of a run so far, by what it measures on validation pictures."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from ..errors import ConvsparkError
from ..files import written_whole
from ..model.networks import copied
from ..runs.folder import RunFolder


class KeepBest(Callback):
    """Keeps `checkpoints/best.safetensors`: of the module's `candidates`, (score, name, network), the best so far."""

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.checkpoints / "best.safetensors"
        self.best: dict[str, Any] = {"score": -1.0, "epoch": 0, "weights": "raw"}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for score, weights, network in pl_module.candidates():  # type: ignore[operator]
            if score > self.best["score"]:
                self.best = {"score": score, "epoch": trainer.current_epoch + 1, "weights": weights}
                if not trainer.is_global_zero:
                    continue
                tensors = {name: t.detach().cpu().contiguous().clone() for name, t in network.state_dict().items()}
                with written_whole(self.path) as temporary:
                    temporary.write_bytes(save(tensors, metadata={"format": "pt"}))

    def state_dict(self) -> dict[str, Any]:
        return dict(self.best)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = dict(state_dict)

    def restore(self, network: nn.Module) -> nn.Module:
        """The best weights, in a copy of the network on the CPU.

        Raises:
            ConvsparkError: their file is gone or damaged, or of another network.
        """
        best = copied(network).cpu()
        try:
            best.load_state_dict(load_file(self.path))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConvsparkError(
                f"{self.path}, the best weights of the run, cannot be read ({reason}): put the file back, or start a "
                "new run with its --config"
            ) from None
        return best.eval()
