"""Which of timm's networks run exactly on visible patches: tries every architecture name, one after the other.

    python -m benchmarks.coverage                    # all names; goes on where it was stopped
    python -m benchmarks.coverage --only 'resnet*' --fresh

Each network is proved as `convspark check` proves it: float64, training mode, features, gradients of all parameters,
running statistics, and no bit of its output depending on a masked pixel. Writes `convspark/measure/coverage.json`,
which `convspark models` shows, and `docs/coverage.md`.
"""

import argparse
import concurrent.futures
import datetime
import fnmatch
import json
import multiprocessing
import os
import re
from collections import Counter, defaultdict
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "convspark" / "measure" / "coverage.json"
PAGE = ROOT / "docs" / "coverage.md"

# What is not convolutional over space, by timm's module file or by name. Whatever is not listed here and has no
# attention heads counts as convolutional, so that a network which fails for another reason counts against us.
NOT_CONVOLUTIONAL = {
    "file:mlp_mixer": "mixes all positions by a matrix",
    "file:sequencer": "LSTM along rows and columns",
    "file:efficientvim": "state-space mixing of all positions",
    "file:swiftformer": "additive attention over positions",
    "file:vision_transformer": "attention",
    "file:hiera": "attention",
    "file:crossvit": "attention between tokens of two scales",
    "mobilevitv2*": "separable attention over positions",
    "bat_resnext*": "bilinear attention over positions",
}
_ATTENTION = re.compile(r"scaled_dot_product_attention|relates positions to each other|self-attention")
_BYTES_A_PARAMETER = 30  # float32, float64, and two sets of float64 gradients
_MEMORY_SHARE = 0.7


def try_network(name: str, memory: int) -> dict[str, Any]:
    """Prove one network; returns its row of the table."""
    import timm
    import torch

    from convspark.errors import ConvsparkError
    from convspark.model.stages import Stages, has_heads
    from convspark.sparse.proof.prove import examine

    torch.set_num_threads(1)
    with torch.device("meta"):
        shape_only = timm.create_model(name)
    row: dict[str, Any] = {
        "family": type(shape_only).__module__.rpartition(".")[2],
        "parameters": sum(p.numel() for p in shape_only.parameters()),
        "stride": None,
        "patch": None,
        "deviation": None,
        "amplified": False,
        "attention": next((name for name, module in shape_only.named_modules() if has_heads(module)), None),
        "reason": None,
    }
    if row["attention"] is not None:
        refusal = refused_without_weights(shape_only)
        if refusal is not None:
            return row | {"verdict": "refused", "reason": refusal}
    if row["parameters"] * _BYTES_A_PARAMETER > memory * _MEMORY_SHARE:
        return row | {"verdict": "too large", "reason": "its proof needs more memory than the machine has"}
    torch.manual_seed(0)
    network = timm.create_model(name)
    size = network.pretrained_cfg.get("input_size", (3, 224, 224))[1:]
    try:
        stages = Stages(network, image_size=size)
    except ConvsparkError as error:
        return row | {"verdict": "refused", "reason": str(error)}
    row["stride"] = max(stages.strides[-1])
    reason = None
    for factor in (1, 2):
        patch = tuple(side * factor for side in stages.strides[-1])
        try:
            proof = examine(stages, network, stages.in_chans, (2 * patch[0], 3 * patch[1]), patch)
        except ConvsparkError as error:
            foreign = error.__cause__ is not None  # images of one size only, say
            reason = reason or (refused_without_weights(shape_only) if foreign else None) or str(error)
            continue
        row |= {"patch": patch[0], "deviation": proof.largest, "amplified": proof.largest > proof.tolerance}
        return row | {"verdict": "exact" if proof.exact else "not exact", "reason": proof.reason}
    return row | {"verdict": "refused", "reason": reason}


def refused_without_weights(network: Any) -> str | None:
    """What refuses a network on visible patches that have a shape and no values; None if nothing does."""
    import torch

    from convspark.errors import NotExactError, UsageError
    from convspark.model.stages import Stages
    from convspark.sparse import PatchGrid, gather

    size = network.pretrained_cfg.get("input_size", (3, 224, 224))
    strides = [info["reduction"] for info in getattr(network, "feature_info", [])] or [32]
    patch = max(int(stride) for stride in strides)
    grid_shape = tuple(max(1, side // patch) for side in size[1:])
    images = torch.zeros(2, size[0], *(n * patch for n in grid_shape), device="meta")
    cells = torch.zeros(4, dtype=torch.int64, device="meta")
    try:
        with torch.no_grad():
            network.eval().forward_features(gather(images, PatchGrid.from_cells(cells, 2, grid_shape, 2)))
    except NotExactError as refusal:
        return str(refusal)
    except Exception:  # a network that checks the size of its images reads that of a patch
        pass
    try:
        Stages(network, image_size=size[1:])
    except UsageError as refusal:
        return str(refusal)
    except Exception:  # whatever a network does without values; it is then tried with weights
        pass
    return None


def mixes_positions(name: str, row: dict[str, Any]) -> str | None:
    """What makes a network something else than convolutional over space, or None."""
    for pattern, what in NOT_CONVOLUTIONAL.items():
        if pattern == f"file:{row['family']}" or fnmatch.fnmatch(name, pattern):
            return what
    refused = row["verdict"] != "exact"  # a convnet may end in a head that pools by attention
    by_reason = row["reason"] and _ATTENTION.search(row["reason"])
    return "attention" if refused and (row["attention"] is not None or by_reason) else None


# ---------------------------------------------------------------------------------------------- the sweep


def sweep(names: list[str], table: dict[str, Any], workers: int, measured: str) -> None:
    """Try the names that the table lacks, saving after each; `measured` says when and with what."""
    from rich.progress import Progress

    memory = total_memory() // workers
    waiting = [name for name in names if name not in table["networks"]]
    with Progress() as bar:
        task = bar.add_task("", total=len(names), completed=len(names) - len(waiting))
        while waiting:
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(workers, context, max_tasks_per_child=20) as pool:
                running: dict[concurrent.futures.Future, str] = {}
                try:
                    while waiting or running:
                        while waiting and len(running) < workers:
                            name = waiting.pop(0)
                            running[pool.submit(try_network, name, memory)] = name
                        bar.update(task, description=", ".join(running.values()))
                        done, _ = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
                        for future in done:
                            name = running[future]
                            try:
                                row = future.result()
                            except BrokenProcessPool:
                                raise
                            except Exception as error:
                                row = failure("failed", f"{type(error).__name__}: {error}")
                            del running[future]
                            table["networks"][name] = row | {"measured": measured}
                            save(table)
                            bar.advance(task)
                except BrokenProcessPool:  # out of memory, most likely: one at a time shows which
                    for name in running.values():
                        if workers == 1:
                            row = failure("too large", "its proof was killed, out of memory")
                            table["networks"][name] = row | {"measured": measured}
                            save(table)
                            bar.advance(task)
                        else:
                            waiting.append(name)
                    workers = 1


def failure(verdict: str, reason: str) -> dict[str, Any]:
    return {
        "family": "",
        "parameters": None,
        "stride": None,
        "patch": None,
        "deviation": None,
        "amplified": False,
        "attention": None,
        "verdict": verdict,
        "reason": reason,
    }


def total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def save(table: dict[str, Any]) -> None:
    from convspark.files import written_whole

    table["networks"] = dict(sorted(table["networks"].items()))
    with written_whole(TABLE) as path:
        path.write_text(json.dumps(table, indent=1), encoding="utf-8")


# ---------------------------------------------------------------------------------------------- the page


def page(table: dict[str, Any]) -> str:
    """docs/coverage.md."""
    rows = table["networks"]
    other = {name: what for name, row in rows.items() if (what := mixes_positions(name, row))}
    convolutional = {name: row for name, row in rows.items() if name not in other}
    exact = [name for name, row in convolutional.items() if row["verdict"] == "exact"]
    counts = Counter(row["measured"] for row in rows.values())
    measured = ", ".join(f"{how} ({count} names)" for how, count in sorted(counts.items()))
    families: dict[str, list[str]] = defaultdict(list)
    for name, row in convolutional.items():
        families[row["family"]].append(name)
    lines = [
        "# Which of timm's networks run exactly",
        "",
        f"**{len(exact)} of the {len(convolutional)} architecture names of timm {table['timm']} that are convolutional "
        f"over space are exact ({100 * len(exact) / max(1, len(convolutional)):.1f} %)**: on visible patches they "
        "give the features, the gradients of all parameters and the running statistics of mask-and-multiply, with "
        "every patch visible the features of the dense network, all to a relative 1e-8 in float64 and in "
        "training mode, and no bit of their output depends on a masked pixel. The exceptions are listed below with "
        "their reasons; "
        f"{len(other)} further names relate positions to each other (attention and the like) and are no convnets.",
        "",
        f"Measured {measured}; `python -m benchmarks.coverage` makes this page. "
        "Random weights, three images of two by three patches.",
        "",
        "| family (timm's file) | names | exact | largest deviation | patch |",
        "|---|---|---|---|---|",
    ]
    for family, names in sorted(families.items()):
        good = [rows[name] for name in names if rows[name]["verdict"] == "exact"]
        plain = [row["deviation"] for row in good if not row["amplified"]]
        patches = ", ".join(str(p) for p in sorted({row["patch"] for row in good}))
        worst = f"{max(plain):.0e}" if plain else ""
        lines.append(f"| {family} | {len(names)} | {len(good)} | {worst} | {patches} |")
    amplified = [name for name in exact if rows[name]["amplified"]]
    if amplified:
        lines += [
            "",
            "Some networks with random weights amplify rounding: a change of their input by 1e-15 moves their features "
            "or gradients by more than 1e-11. For these a deviation above 1e-8 counts as exact if it is within "
            "a thousand times that reaction (and below 1e-4): "
            + ", ".join(f"{name} ({rows[name]['deviation']:.0e})" for name in amplified)
            + ".",
        ]
    lines += ["", "## Exceptions", "", "| name | verdict | why |", "|---|---|---|"]
    for name, row in convolutional.items():
        if row["verdict"] != "exact":
            lines.append(f"| {name} | {row['verdict']} | {why(row['reason'])} |")
    lines += [
        "",
        "## Not convolutional over space",
        "",
        "| family | names | verdicts | what stops the first |",
        "|---|---|---|---|",
    ]
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, what in other.items():
        kinds[(rows[name]["family"], what)].append(name)
    for (family, what), names in sorted(kinds.items()):
        verdicts = ", ".join(
            f"{count} {verdict}" for verdict, count in Counter(rows[n]["verdict"] for n in names).items()
        )
        reason = why(rows[names[0]]["reason"]) if rows[names[0]]["reason"] else what
        lines.append(f"| {family} | {len(names)} | {verdicts} | {names[0]}: {reason} |")
    return "\n".join(lines) + "\n"


def why(reason: str) -> str:
    from convspark.measure.coverage import brief

    return brief(reason).replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names to try, with * and ?")
    parser.add_argument("--fresh", action="store_true", help="try names again that have been tried")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    options = parser.parse_args()
    import timm
    import torch

    table: dict[str, Any] = json.loads(TABLE.read_text()) if TABLE.exists() else {"networks": {}}
    if table.get("timm", timm.__version__) != timm.__version__:
        table = {"networks": {}}  # another version: other networks
    table = {"timm": timm.__version__, "command": "python -m benchmarks.coverage", "networks": table["networks"]}
    measured = f"{datetime.date.today().isoformat()} with torch {torch.__version__.partition('+')[0]}"
    names = [name for name in timm.list_models() if fnmatch.fnmatch(name, options.only)]
    if options.fresh:
        table["networks"] = {name: row for name, row in table["networks"].items() if name not in names}
    sweep(names, table, options.workers, measured)
    PAGE.write_text(page(table), encoding="utf-8")
    print(f"{TABLE.relative_to(ROOT)} and {PAGE.relative_to(ROOT)} written: {len(table['networks'])} names")


if __name__ == "__main__":
    main()
