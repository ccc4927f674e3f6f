"""A whole step of pre-training with each decoder, in fp32 and bf16, beside mask-and-multiply's, in turn.

    python -m benchmarks.steps [resnet50 convnext_tiny ...] [--device cuda --batch-size 128]

Encoder, decoder, loss, backward passes and optimiser, 224 pixels, 60 % masked; medians. A line of
benchmarks/results/steps.jsonl for each network. The slowest, mask-and-multiply in fp32 with the paper's decoder, is how
the method's authors' code runs. For networks of which `convspark bench` measures mask-and-multiply.
"""

import argparse
from typing import Any

from convspark.cli.main import keep_memory

from . import records

PRECISIONS = ("fp32", "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["resnet50"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    options = vars(parser.parse_args())
    keep_memory()
    for name in options.pop("networks"):
        line = records.append(records.RESULTS / "steps.jsonl", {"network": name} | measure(name, **options))
        print(f"{name}\n{table(line)}\n", flush=True)


def measure(name: str, size: int, batch_size: int, device: str, repeats: int) -> dict[str, Any]:
    """Seconds of a step for each decoder, way and precision."""
    import timm
    import torch

    from convspark import SparK
    from convspark.measure.bench import IMITATED, VISIBLE, Trial
    from convspark.measure.timing import compare
    from convspark.runs.device import choose_device, describe_device

    where = choose_device(device)
    images = torch.randn(batch_size, 3, size, size).to(where, memory_format=torch.channels_last)
    steps = {}
    for decoder in ("lean", "paper"):
        model = SparK(timm.create_model(name), size, decoder=decoder, prove=False)
        model.to(where, memory_format=torch.channels_last).train()
        for precision in PRECISIONS:
            trial = Trial(model, images, model.grid_shape((size, size)), precision, compiled=False)
            for way in (VISIBLE, IMITATED):
                steps[f"{decoder}, {way}, {precision}"] = trial.whole_step(way)
    timings = compare(steps, repeats, where)
    return {
        "size": size,
        "batch_size": batch_size,
        "device": describe_device(where),
        "threads": torch.get_num_threads(),
        "seconds": {step: measured.seconds for step, measured in timings.items()},
        "peak_bytes": {step: measured.peak_bytes for step, measured in timings.items()},
    }


def table(line: dict[str, Any]) -> str:
    """Seconds of each step, and how many times as fast as mask-and-multiply with the paper's decoder it is."""
    seconds = line["seconds"]
    bases = {p: seconds[f"paper, mask-and-multiply, {p}"] for p in PRECISIONS}
    titles = [f"times as fast as paper, mask-and-multiply, {p}" for p in bases]
    rows = [f"| step | seconds | {' | '.join(titles)} |", "|---|---|---|---|"]
    for step, took in sorted(seconds.items(), key=lambda pair: pair[1]):
        rows.append(f"| {step} | {took:.2f} | {' | '.join(f'{base / took:.2f}' for base in bases.values())} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
