"""How the cost of an encoder's step grows with image size, batch, mask ratio and depth; and the start's, with pictures.

    python -m benchmarks.scaling [--device cuda --precision bf16 --model resnet50 --batch-size 64]

One thing is varied at a time, from a ResNet-18, 8 images of 224 pixels, 60 % masked. A point that was measured already,
on the same processor, is measured again with --again only. How long the start takes is measured by feeding.py. Draws
docs/images/scaling.png.
"""

import argparse
from pathlib import Path
from typing import Any

from convspark.cli.main import keep_memory

from . import records

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "scaling.png"
VARIED: dict[str, list[Any]] = {
    "size": [96, 160, 224, 320, 448],
    "batch_size": [2, 4, 8, 16, 32],
    "mask_ratio": [0.0, 0.2, 0.4, 0.6, 0.75, 0.9],
    "model": ["resnet18", "resnet34", "resnet50", "resnet101"],
}
TITLES = {"size": "side of the images, pixels", "batch_size": "images", "mask_ratio": "masked share", "model": ""}
START = {
    "list_seconds": ("listing the files", "#72675b"),
    "list_look_split_seconds": ("listing, looking into each, splitting", "#4c78a8"),
    "dataset_and_order_seconds": ("the data set and an order", "#59a14f"),
}
WAYS = {"dense": "#72675b", "mask-and-multiply": "#e45756", "visible only": "#4c78a8"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--mask-ratio", type=float, default=0.6)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path, default=records.RESULTS / "scaling.jsonl")
    parser.add_argument("--again", action="store_true", help="measure what is there already as well")
    options = vars(parser.parse_args())
    record, repeats, again = options.pop("record"), options.pop("repeats"), options.pop("again")
    keep_memory()
    from convspark.measure.bench import bench

    curves: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIED}
    measured: dict[str, dict[str, Any]] = {}  # the point in common belongs to every curve
    for name, values in VARIED.items():
        for value in values:
            point = options | {name: value}
            key = {"point": point, "processor": records.processor()}
            line = measured.get(str(point)) if again else records.find(record, key)
            if line is None:
                settings = {k: v for k, v in point.items() if k != "model"}
                report = bench(point["model"], **settings, parts=("encoder",), repeats=repeats)
                line = records.append(record, key | report.as_dict())
                print(f"{name} {value}: {line['encoder']['visible only']['share_of_dense']:.2f} of dense", flush=True)
            measured[str(point)] = line
            curves[name].append(line)
    draw(curves)


def draw(curves: dict[str, list[dict[str, Any]]]) -> None:
    """Milliseconds an image, one panel for each thing varied; the dashed line is the visible share of dense."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(2, 3).flat)
    for axes, (name, lines) in zip(panels, curves.items(), strict=False):
        values = [line["point"][name] for line in lines]
        for way, colour in WAYS.items():
            costs = [1000 * line["encoder"][way]["seconds"] / line["batch_size"] for line in lines]
            axes.plot(values, costs, "o-", color=colour, label=way)
        limit = [1000 * e["visible_share"] * e["encoder"]["dense"]["seconds"] / e["batch_size"] for e in lines]
        axes.plot(values, limit, "--", color="#4c78a8", alpha=0.6, label="limit: visible share of dense")
        axes.set_xlabel(TITLES[name])
        axes.set_ylabel("ms an image, forward and backward")
        axes.set_ylim(bottom=0)
        if name == "batch_size":
            axes.set_xscale("log", base=2)
            axes.set_xticks(values, [str(v) for v in values])
    draw_start(panels[4])
    for axes in panels[:5]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    panels[5].set_axis_off()
    panels[5].legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="center")
    first = curves["size"][0]
    title = f"Encoder step of {first['point']['model']}, {first['device']}, {first['precision']}, {first['date']}"
    figure.suptitle(title)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE)
    print(f"drawn: {PICTURE.name}")


def draw_start(axes: Any) -> None:
    """Seconds from a folder of pictures to the first step, by their number; lines of feeding.py."""
    starts = [line for line in records.read(records.RESULTS / "feeding.jsonl") if line.get("what") == "start"]
    latest = {line["paths"]: line for line in starts}
    paths = sorted(latest)
    for key, (label, colour) in START.items():
        axes.plot(paths, [latest[n][key] for n in paths], "o-", color=colour, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("pictures in the folder")
    axes.set_ylabel("seconds, once at the start")
    axes.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main()
