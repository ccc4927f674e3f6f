"""Out of memory: what would fit, found by trying."""

import gc
from collections.abc import Callable
from contextlib import nullcontext

import torch

from ..errors import ConvsparkError
from .loading import TrainLoader
from .module import TrainingModule
from .optimizer import set_rates

_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def out_of_memory(
    module: TrainingModule, train: TrainLoader, device: torch.device, precision: str, can_accumulate: bool = True
) -> ConvsparkError:
    """The error for a run whose pass did not fit into the device's memory.

    Takes steps with fewer and fewer images until one fits; where the module kept something only to be quicker, first
    one with as many images, without that. With several processes, whose steps need each other, it does not try. Call it
    outside of the `except` clause: its exception holds what the pass had computed. The module is of no use afterwards.

    Args:
        can_accumulate: whether the command can divide a batch into passes.
    """
    batch, a_pass = train.order.batch_size, train.order.images_a_pass
    if train.here.are_several:
        return _with_several(batch, a_pass, train.here.count, device, precision, can_accumulate)
    flag = module.let_go()

    def step(count: int) -> None:
        _take_step(module, train, device, precision, count)

    if flag is not None and _fits(step, a_pass):
        return ConvsparkError(
            f"out of memory on {device} with {a_pass} images a pass in {precision}{_total(device)}: they fit, as tried "
            f"just now, with {flag}, which is slower; or take a smaller --batch-size"
        )
    fits = most_that_fits(step, a_pass)
    passes = next((k for k in range(1, batch + 1) if batch % k == 0 and batch // k <= fits), 0)
    what = f"out of memory on {device} with {a_pass} images a pass in {precision}{_total(device)}: "
    if not fits:
        return ConvsparkError(what + "not even one image fits: try a smaller --size or a smaller network")
    advice = f"--accumulate {passes} (the same batch of {batch} in {passes} passes) or " if can_accumulate else ""
    return ConvsparkError(f"{what}{fits} fit, as tried just now: {advice}--batch-size {fits}")


def _with_several(
    batch: int, a_pass: int, processes: int, device: torch.device, precision: str, can_accumulate: bool
) -> ConvsparkError:
    what = f"out of memory on {device} with {a_pass} images a pass of each process in {precision}{_total(device)}: "
    if a_pass == 1:
        return ConvsparkError(what + "try a smaller --size, a smaller network, or --devices fewer of them")
    passes = next(k for k in range(batch // processes // a_pass + 1, batch + 1) if batch % (k * processes) == 0)
    advice = f"--accumulate {passes} (the same batch of {batch} in {passes} passes) or " if can_accumulate else ""
    return ConvsparkError(f"{what}try {advice}--batch-size {batch // 2}")


def most_that_fits(step: Callable[[int], None], count: int) -> int:
    """The largest of count / 2, count / 4, ... for which `step` does not run out of memory; 0 if there is none."""
    while count > 1:
        count //= 2
        if _fits(step, count):
            return count
    return 0


def _fits(step: Callable[[int], None], count: int) -> bool:
    collect()
    try:
        step(count)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def collect() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no memory left; of a CPU's and that of NVIDIA's libraries PyTorch has no type of error."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _NO_MEMORY)


def _take_step(module: TrainingModule, train: TrainLoader, device: torch.device, precision: str, count: int) -> None:
    """A step with the first images of an epoch, which changes no parameter."""
    keys = [key for _, key in zip(range(count), train.order, strict=False)]
    collate = train.collate_fn
    batch = module.transfer_batch_to_device(collate([train.dataset[key] for key in keys]), device, 0)
    module.to(device).train()
    module.zero_grad(set_to_none=True)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    set_rates(optimizer, 0.0, 0.0)
    with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
        loss = module.loss_of(batch, 0)
    loss.backward()
    optimizer.step()
    module.zero_grad(set_to_none=True)


def _total(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    note = f", of which other processes hold {others / 2**30:.1f}" if others > total / 20 else ""
    return f" ({total / 2**30:.1f} GiB{note})"
