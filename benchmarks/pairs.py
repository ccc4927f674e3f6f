"""What multiplying pairs of visible positions saves: convolutions and encoders with it and without, beside dense.

    python -m benchmarks.pairs

Forward and backward passes on the CPU in fp32, 16 images of 7 x 7 patches, 60 % masked, in turn, medians; encoders on
224 pixels. Without pairs, taps or windows are gathered by our other kernels. A line of benchmarks/results/pairs.jsonl
each.
"""

import argparse
from collections.abc import Callable

from convspark.cli.main import keep_memory

from . import records
from .encoders import encoder_step

# Positions of a patch's side, channels, groups, stride.
CONVOLUTIONS = (
    (1, 512, 1, 1),
    (2, 256, 1, 1),
    (4, 128, 1, 1),
    (8, 64, 1, 1),
    (2, 512, 1, 2),
    (4, 256, 1, 2),
    (8, 128, 1, 2),
    (1, 888, 37, 1),
    (2, 336, 14, 1),
    (4, 120, 5, 1),
    (8, 128, 32, 1),
)
ENCODERS = ("resnet18", "resnet50", "resnext50_32x4d", "regnety_016")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="*", default=ENCODERS)
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    keep_memory()
    print("| what | dense, ms | without pairs, of dense | with pairs, of dense |\n|---|---|---|---|")
    for patch, channels, groups, stride in CONVOLUTIONS:
        what = f"3x3, {channels} channels in {groups} groups, stride {stride}, patches of {patch}x{patch}"
        show(what, asked.repeats, *convolution(patch, channels, groups, stride))
    for name in asked.encoders:
        show(name, asked.repeats, *encoder(name))


def show(what: str, repeats: int, dense: Callable[[], None], visible: Callable[[], None]) -> None:
    """Measure, write the line, print a row."""
    import torch

    from convspark.measure.timing import compare
    from convspark.sparse.meanings import conv

    def without() -> None:
        chosen, conv._pairs_pay = conv._pairs_pay, lambda *_: False
        try:
            visible()
        finally:
            conv._pairs_pay = chosen

    found = compare({"dense": dense, "without": without, "with": visible}, repeats, torch.device("cpu"))
    seconds = {way: one.seconds for way, one in found.items()}
    records.append(records.RESULTS / "pairs.jsonl", {"what": what, "repeats": repeats} | seconds)
    shares = " | ".join(f"{seconds[way] / seconds['dense']:.2f}" for way in ("without", "with"))
    print(f"| {what} | {1000 * seconds['dense']:.1f} | {shares} |", flush=True)


def convolution(patch: int, channels: int, groups: int, stride: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """One convolution, dense and on visible patches."""
    import torch

    from convspark.sparse import PatchGrid, as_patches, gather

    conv = torch.nn.Conv2d(channels, channels, 3, stride, 1, groups=groups, bias=False)
    conv = conv.to(memory_format=torch.channels_last)
    maps = torch.randn(16, channels, 7 * patch, 7 * patch).to(memory_format=torch.channels_last).requires_grad_()
    grid = PatchGrid.random(16, (7, 7))
    patches = gather(maps.detach(), grid)
    values = patches.values.requires_grad_()
    slopes, sparse_slopes = torch.randn_like(conv(maps)), torch.randn_like(conv(patches).values)

    def dense() -> None:
        torch.autograd.grad(conv(maps), [maps, conv.weight], slopes)

    def visible() -> None:
        result = conv(as_patches(values, grid, patches.axes)).values
        torch.autograd.grad(result, [values, conv.weight], sparse_slopes)

    return dense, visible


def encoder(name: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """A network's stages, dense and on visible patches with a new mask each time."""
    import torch

    from convspark import PatchGrid

    step, images = encoder_step(name), torch.randn(16, 3, 224, 224).to(memory_format=torch.channels_last)
    return lambda: step(images, None), lambda: step(images, PatchGrid.random(16, (7, 7)))


if __name__ == "__main__":
    main()
