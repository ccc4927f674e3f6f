"""The settings that all tasks share, and checks of them; nothing here needs torch."""

import shlex
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Literal

from ..errors import UsageError
from ..runs.folder import check_processes
from ..runs.numbers import check_not_negative, check_positive, check_shares
from ..runs.settings import SpreadSettings


@dataclass(frozen=True)
class TaskSettings(SpreadSettings):
    """The arguments that all tasks share, described at their commands."""

    may_change: ClassVar[tuple[str, ...]] = ("device", "workers", "checkpoint_minutes")

    weights: str | None = None
    _: KW_ONLY
    model: str | None = None
    partial: bool = field(default=False, metadata={"before": True})
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 0.05
    layer_decay: float | None = None
    group_blocks: list[int] | None = field(default=None, metadata={"before": None})
    gradient_clip: float | None = field(default=None, metadata={"before": None})
    drop_path: float = 0.0
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_minutes: float = 10.0

    @classmethod
    def from_weights(cls, run: str) -> str | None:
        return f"convspark {cls.kind} {shlex.quote(run)} ..."

    def check(self) -> None:
        """Raise UsageError for what can be seen to be wrong without reading anything."""
        check_positive(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            layer_decay=self.layer_decay,
            checkpoint_minutes=self.checkpoint_minutes,
        )
        check_not_negative(weight_decay=self.weight_decay, gradient_clip=self.gradient_clip, seed=self.seed)
        check_processes(workers=self.workers)
        check_shares(drop_path=self.drop_path)
        if self.layer_decay is not None and self.layer_decay > 1:
            raise UsageError(f"layer_decay is {self.layer_decay}: expected a number above 0 and at most 1")
