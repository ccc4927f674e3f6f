"""What visible patches save: `bench` on several networks, one line of JSON each, and the README's table.

    python benchmarks/speed.py                      # all of them: about 15 minutes on two cores
    python benchmarks/speed.py --precision bf16 --device cuda --batch-size 128 convnext_base resnet50

A network whose line is there already, for the same settings and versions, is not measured again.
"""

import argparse
import datetime
import json
import platform
from pathlib import Path

from convspark.cli.main import keep_memory

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
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speed.jsonl")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--mask-ratio", type=float, default=0.6)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    given = vars(parser.parse_args())
    names, out = given.pop("networks"), given.pop("out")
    keep_memory()
    from convspark.trial.bench import bench

    out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    found = []
    for name in names:
        where = {"date": f"{datetime.date.today()}", "processor": _processor()}
        wanted = {"network": name, "batch_size": given["batch_size"], "precision": given["precision"]}
        wanted |= {"mask_ratio": given["mask_ratio"], "compiled": given["compile"], "processor": where["processor"]}
        line = next((k for k in known if all(k[key] == value for key, value in wanted.items())), None)
        if line is None:
            report = bench(name, **given)
            print(report, end="\n\n", flush=True)
            line = where | report.as_dict()
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        found.append(line)
    print(table(found))


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


def _processor() -> str:
    names = [n for n in _cpu_info() if n.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()


def _cpu_info() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    main()
