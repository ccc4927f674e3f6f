"""What visible patches save: `bench` on several networks, one line of JSON each, and the README's table.

    python -m benchmarks.speed                      # all of them: about 15 minutes on two cores
    python -m benchmarks.speed --precision bf16 --device cuda --batch-size 128 convnext_base resnet50

A network whose line is there already, for the same settings and processor, is measured again with --again only.
"""

import argparse
from pathlib import Path

from convspark.cli.main import keep_memory

from . import records

NETWORKS = (
    "resnet50",
    "convnext_tiny",
    "convnextv2_tiny",
    "efficientnet_b0",
    "regnety_016",
    "mobilenetv3_large_100",
    "resnext50_32x4d",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--out", type=Path, default=records.RESULTS / "speed.jsonl")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--mask-ratio", type=float, default=0.6)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--decoder", default="lean", help="of the whole step")
    parser.add_argument("--parts", default="encoder,step", help="what to measure: encoder, or encoder,step")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="measure what is there already as well")
    options = vars(parser.parse_args())
    names, out, again = options.pop("networks"), options.pop("out"), options.pop("again")
    keep_memory()
    from convspark.measure.bench import bench

    lines = []
    for name in names:
        compared = ("size", "batch_size", "mask_ratio", "precision", "device", "compile", "decoder", "parts")
        fields = {"network": name, "asked": {key: options[key] for key in compared}, "processor": records.processor()}
        line = None if again else records.find(out, fields)
        if line is None:
            report = bench(name, **options | {"parts": options["parts"].split(",")})
            print(report, end="\n\n", flush=True)
            line = records.append(out, fields | report.as_dict())
        lines.append(line)
    print(table(lines))


def table(lines: list[dict]) -> str:
    """The lines as Markdown: encoder and whole step, as shares of dense and of mask-and-multiply."""
    rows = [
        "| network | encoder, of dense | memory, of dense | encoder, times as fast as mask-and-multiply | whole step, "
        "times as fast |",
        "|---|---|---|---|---|",
    ]
    for line in lines:
        encoder, step = line["encoder"], line["step"]
        ours = encoder["visible only"]
        gains = [
            f"{part['mask-and-multiply']['seconds'] / part['visible only']['seconds']:.2f}"
            if "mask-and-multiply" in part
            else "not measured"
            for part in (encoder, step)
        ]
        rows.append(
            f"| {line['network']} | {ours['share_of_dense']:.2f} | {ours['memory_share_of_dense']:.2f} | "
            f"{gains[0]} | {gains[1]} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
