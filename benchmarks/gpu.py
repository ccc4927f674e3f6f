"""What is to be measured on a GPU, part by part; `benchmarks/gpu.sh` runs them all within its minutes.

    python3 -m benchmarks.gpu correctness
    python3 -m benchmarks.gpu encoder resnet50 --batch-sizes 128,512 --modes eager,graph
    python3 -m benchmarks.gpu encoder resnet50 --batch-sizes 128 --modes compiled
    python3 -m benchmarks.gpu step resnet50 --batch-sizes 128
    python3 -m benchmarks.gpu feeding
    python3 -m benchmarks.gpu decoding resnet50
    python3 -m benchmarks.gpu pretrain resnet50
    python3 -m benchmarks.gpu profile resnet50
    python3 -m benchmarks.gpu table

Each figure is written as it comes, a line of JSON in `--out` (benchmarks/results/gpu.jsonl), with device, versions and
date: where a part is stopped, the others are not lost. Nothing but PyTorch, torchvision and timm is needed from
`correctness` to `step`. `--device cpu --size 64` rehearses all of it, graphs excepted, where there is no GPU.

Ways of a step are timed in turn, medians count; a way that runs out of memory, or cannot run, has a line that says so.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import records

PARTS = ("correctness", "encoder", "step", "feeding", "decoding", "pretrain", "profile", "table")
SMALL = ("resnet10t", "convnext_atto", "regnety_002", "efficientnet_b0")
WITHOUT = "visible only, without kernels"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("networks", nargs="*", default=["resnet50"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=records.RESULTS / "gpu.jsonl")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-sizes", default="128")
    parser.add_argument("--modes", default="eager,graph", help="of eager, graph and compiled")
    parser.add_argument("--ways", help="of `encoder`, divided by commas; all unless given")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--pictures", type=int, default=2048, help="of `feeding`, made for it")
    parser.add_argument("--decode", choices=("workers", "device"), default="workers", help="of `pretrain`")
    parser.add_argument("--traces", type=Path, help="a folder: `profile` leaves NETWORK.json.gz there, for Perfetto")
    parser.add_argument("--whole", action="store_true", help="`profile` whole steps instead of the encoder's")
    parser.add_argument("--rows", type=int, default=60, help="of `table`, the newest")
    options = parser.parse_args()
    if options.out.is_dir():
        parser.error(
            f"--out {options.out} is a folder: name the file of the figures, {options.out / 'gpu.jsonl'} perhaps"
        )
    if options.part == "table":
        lines = records.read(options.out)
        if not lines:
            parser.error(f"--out {options.out} holds no figures yet")
        print(table(lines, options.rows))
        return
    batches = [int(n) for n in options.batch_sizes.split(",")]
    device, write = torch.device(options.device), Writer(options.out, options.device)
    if options.part == "correctness":
        correctness(device, write)
    elif options.part == "feeding":
        feeding(options.size, options.pictures, batches[0], write)
    for name in options.networks:
        for batch_size in batches:
            what = Workload(name, batch_size, options.size, options.precision, device)
            if options.part == "encoder":
                encoder(what, options.modes.split(","), options.ways, options.repeats, write)
            elif options.part == "step":
                whole_steps(what, options.modes.split(","), options.repeats, write)
            elif options.part == "decoding":
                decoding(what, options.pictures, write)
            elif options.part == "pretrain":
                pretraining(what, options.pictures, options.decode, write)
            elif options.part == "profile":
                profile(what, write, options.whole, options.traces)


class Writer:
    """Appends lines, and prints them."""

    def __init__(self, path: Path, device: str) -> None:
        self.path = path
        name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
        self.where = {"device": name, "cuda": torch.version.cuda, "commit": records.commit()}
        self.where["kernels"] = os.environ.get("CONVSPARK_KERNELS", "")  # besides those that are always used

    def __call__(self, **line: Any) -> None:
        records.append(self.path, self.where | line)
        print({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in line.items()}, flush=True)


class Workload:
    """A network, its images and how they are computed; made anew for each measurement, so that nothing is shared."""

    def __init__(self, name: str, batch_size: int, size: int, precision: str, device: torch.device) -> None:
        self.name, self.batch_size, self.size, self.precision, self.device = name, batch_size, size, precision, device

    def keys(self) -> dict[str, Any]:
        """What a line of the record says of it."""
        return {
            "network": self.name,
            "batch_size": self.batch_size,
            "size": self.size,
            "precision": self.precision,
        }

    def trial(
        self, decoder: str = "lean", compiled: bool = False, precision: str | None = None, graphed: bool = False
    ) -> Any:
        """The steps of `bench`."""
        import timm

        from convspark import SparK
        from convspark.measure.bench import Trial

        torch.manual_seed(0)
        model = SparK(timm.create_model(self.name), self.size, decoder=decoder, prove=False)
        model = model.to(self.device, memory_format=torch.channels_last).train()
        images = torch.randn(self.batch_size, 3, self.size, self.size, device=self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        return Trial(model, images, model.grid_shape((self.size,) * 2), precision or self.precision, compiled, graphed)


# ---------------------------------------------------------------- correctness


def correctness(device: torch.device, write: Writer) -> None:
    """Loss and gradients beside float64 on the CPU; the same bits twice; whether the host waits."""
    for name in SMALL:
        for kind in ("float64", "float32", "bfloat16"):
            errors = step_beside_float64(name, device, kind)
            write(part="correctness", network=name, precision=kind, **errors)
        if device.type == "cuda":
            write(part="correctness", network=name, precision="bfloat16", host_waits=host_waits(name, device))


def small_model(name: str) -> Any:
    import timm

    from convspark import SparK

    torch.manual_seed(0)
    return SparK(timm.create_model(name), image_size=64, mask_ratio=0.5, decoder_width=64, prove=False)


def step_beside_float64(name: str, device: torch.device, kind: str) -> dict[str, Any]:
    """Largest error of loss and gradients, of each its largest value, and whether two steps have the same bits."""
    from convspark import PatchGrid

    model, images = small_model(name).double(), torch.randn(4, 3, 64, 64, dtype=torch.float64)
    visible = torch.tensor([[[1, 0], [0, 1]], [[1, 1], [1, 0]], [[0, 0], [1, 0]], [[0, 0], [0, 0]]]).bool()

    def gradients(of: Any, x: Tensor, grid: PatchGrid) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=kind == "bfloat16" and of is not model):
            loss = of(x, grid).loss
        loss.backward()
        slopes = {key: p.grad for key, p in of.named_parameters() if p.grad is not None}
        of.zero_grad()
        return {"loss": loss.detach()} | slopes

    expected = gradients(model, images, PatchGrid(visible))
    number = torch.float64 if kind == "float64" else torch.float32
    there = copy.deepcopy(model).to(device, number)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False):
            args = images.to(device, number), PatchGrid(visible.to(device))
            actual, again = gradients(there, *args), gradients(there, *args)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    largest = max(float(value.abs().max()) for key, value in expected.items() if key != "loss")
    errors = {
        key: float((actual[key].cpu().double() - value).abs().max()) / max(float(value.abs().max()), 1e-3 * largest)
        for key, value in expected.items()
    }
    worst = max(errors, key=lambda key: errors[key])
    one, other = (torch.cat([of[key].cpu().double().flatten() for key in expected]) for of in (expected, actual))
    return {
        "loss_error": errors["loss"],
        "cosine": float(one @ other / (one.norm() * other.norm())),  # bfloat16 in a network of few positions is rough
        "worst_error": errors[worst],
        "worst": worst,
        "median_error": statistics.median(errors.values()),
        "same_bits": all(torch.equal(actual[key], again[key]) for key in actual),
    }


def host_waits(name: str, device: torch.device) -> str:
    """What made the host wait within a second step; empty if nothing did."""
    from convspark import PatchGrid
    from convspark.runs.optimizer import build_optimizer, parameter_groups

    model = small_model(name).to(device, memory_format=torch.channels_last)
    images = torch.randn(4, 3, 64, 64, device=device).contiguous(memory_format=torch.channels_last)
    optimizer = build_optimizer(parameter_groups(model, frozenset(f"backbone.{n}" for n in model.untrained)))

    def step(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        grid = PatchGrid.random(4, (2, 2), mask_ratio=0.5, generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(images, grid).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step(0)  # libraries are loaded and plans made here
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


# ---------------------------------------------------------------- time


def encoder(what: Workload, modes: list[str], ways: str | None, repeats: int, write: Writer) -> None:
    """Forward and backward passes: dense, mask-and-multiply, visible only; eager, compiled, as a graph."""
    from convspark.measure.bench import DENSE, IMITATED, VISIBLE
    from convspark.measure.timing import peak_memory

    speed = copy_speed(what.device)
    for mode in modes:
        steps: dict[str, Callable[[], object]] = {}
        peaks: dict[str, int] = {}
        trial = what.trial(compiled=mode == "compiled")
        for way in ways.split(",") if ways else (VISIBLE, DENSE, WITHOUT, IMITATED):
            # Mask-and-multiply asks which positions are visible: the host waits.
            if (way == IMITATED and mode != "eager") or (mode == "graph" and what.device.type != "cuda"):
                continue
            if way == WITHOUT and mode == "compiled":
                continue
            started = time.monotonic()
            line = {"part": "encoder", "mode": mode, "way": way} | what.keys()
            try:
                step = without_kernels(trial.encoder_step(VISIBLE)) if way == WITHOUT else trial.encoder_step(way)
                step()
                peak = peak_memory(step, what.device)  # as it is: a graph's replay allocates nothing
                steps[way], peaks[way] = as_graph(step) if mode == "graph" else step, peak
            except Exception as error:  # a line that says so, and on to the next
                write(**line, failed=_first_line(error))
                continue
            write(**line, first_step_seconds=time.monotonic() - started)
        for way, times in _timed(steps, repeats, what.device).items():
            line = {"part": "encoder", "mode": mode, "way": way} | what.keys() | times | {"peak_bytes": peaks[way]}
            if mode == "eager":
                line |= _beside_bandwidth(steps[way], times["seconds"], speed)
            write(**line)
        del trial, steps
        _forget(what.device)


def whole_steps(what: Workload, modes: list[str], repeats: int, write: Writer) -> None:
    """Whole steps of pre-training, and the paper's own way: fp32, not compiled, its decoder, mask-and-multiply."""
    from convspark.measure.bench import IMITATED, VISIBLE
    from convspark.measure.timing import peak_memory

    variants = [
        ("lean", VISIBLE, what.precision, "graph"),
        ("paper", VISIBLE, what.precision, "graph"),
        ("paper", IMITATED, "fp32", "eager"),
        ("lean", VISIBLE, what.precision, "eager"),
        ("lean", VISIBLE, what.precision, "compiled"),
    ]
    variants = [variant for variant in variants if variant[-1] in modes]
    for decoder, way, precision, mode in variants:  # one after the other: their models together are large
        line = {"part": "step", "mode": mode, "way": way, "decoder": decoder}
        line |= what.keys() | {"precision": precision}
        try:
            trial = what.trial(decoder, mode == "compiled", precision, mode == "graph")
            step = trial.whole_step(way)
            step()
            peak = peak_memory(step, what.device)  # as it is: a graph's replay allocates little
            step()  # the third is recorded
            if mode == "graph" and not trial.losses[way].is_recorded:
                raise RuntimeError(f"not recorded: {trial.losses[way].why_not or 'no GPU'}")
            write(**line, **_timed({way: step}, repeats, what.device)[way], peak_bytes=peak)
        except Exception as error:
            write(**line, failed=_first_line(error))
        trial = step = None  # before the next model is made
        _forget(what.device)


def without_kernels(step: Callable[[], object]) -> Callable[[], object]:
    from .kernels import switched_off

    def run() -> None:
        with switched_off("all"):
            step()

    return run


def as_graph(step: Callable[[], object]) -> Callable[[], object]:
    """The step as a CUDA graph, which draws a new mask each time."""
    from convspark.runs.graphs import recording

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with recording(graph, torch.device("cuda")):
        step()
    return graph.replay


def _timed(steps: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Median seconds of each, in turn."""
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(repeats):
        for way in seconds:
            _wait_for(device)
            started = time.perf_counter()
            steps[way]()
            _wait_for(device)
            seconds[way].append(time.perf_counter() - started)
    return {
        way: {"seconds": statistics.median(times), "slowest": max(times), "fastest": min(times)}
        for way, times in seconds.items()
    }


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget(device: torch.device) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'nothing said').splitlines()[0][:300]}"


def copy_speed(device: torch.device) -> float:
    """Bytes a second that a copy on the device reads and writes."""
    count = 2**30 if device.type == "cuda" else 2**26
    source = torch.ones(count // 4, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        _wait_for(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait_for(device)
        seconds.append(time.perf_counter() - started)
    return 2 * count / min(seconds)


def _beside_bandwidth(step: Callable[[], object], seconds: float, speed: float) -> dict[str, Any]:
    """Operators and bytes of a step on this device, and the share of a copy's speed that it reaches."""
    from .traffic import counted

    cost = counted(step)
    shares = {"bandwidth": cost.bytes / seconds / speed, "copy_bytes_a_second": speed}
    return {"operators": cost.operators, "bytes": cost.bytes, "flops": cost.flops} | shares


# ---------------------------------------------------------------- feeding


def feeding(size: int, pictures: int, batch_size: int, write: Writer) -> None:
    """Images a second that the loader delivers from JPEGs of 500 x 375, each decoded for one crop, by as many workers
    as there are cores: crops that travel as bytes, as in pre-training, and as normalised numbers.
    """
    from convspark.data import IMAGENET_MEAN, IMAGENET_STD
    from convspark.runs.folder import available_cores
    from convspark.runs.images import find_images, train_dataset
    from convspark.runs.loading import TrainLoader, end_workers

    cores = available_cores()
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder), pictures)
        images = find_images(folder, held_out=0, held_out_most=0, seed=0)
        batch_size = min(batch_size, pictures)
        for in_bytes in (True, False):
            dataset = train_dataset(
                images,
                (size, size),
                IMAGENET_MEAN,
                IMAGENET_STD,
                crop_scale=(0.67, 1.0),
                flip=True,
                crops_per_image=1,
                seed=0,
                in_bytes=in_bytes,
            )
            loader = TrainLoader(dataset, batch_size, 1, 0, cores, torch.cuda.is_available())
            batches = itertools.chain.from_iterable(loader for _ in itertools.count())  # epoch after epoch
            next(batches)  # workers start
            started, delivered = time.perf_counter(), 0
            for batch in batches:
                delivered += len(batch)
                if time.perf_counter() - started > 7:
                    break
            line = {"workers": cores, "size": size, "batch_size": batch_size, "pictures": pictures, "crops": 1}
            rate = delivered / (time.perf_counter() - started)
            write(part="feeding", in_bytes=in_bytes, images_a_second=rate, **line)
            end_workers(loader)


def decoding(what: Workload, pictures: int, write: Writer, seconds: float = 5) -> None:
    """Pictures that torchvision decodes on the device in a thread beside whole steps, and what that costs the steps."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    from convspark.measure.bench import VISIBLE

    step = what.trial(graphed=True).whole_step(VISIBLE)
    for _ in range(4):
        step()  # the third is recorded
    decoded, ends = 0, threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder), pictures)
        files = [read_file(str(path)) for path in Path(folder).iterdir()]
    batches = itertools.cycle([files[n : n + what.batch_size] for n in range(0, len(files), what.batch_size)])

    def decode() -> None:
        nonlocal decoded
        stream = torch.cuda.Stream() if what.device.type == "cuda" else None
        with torch.cuda.stream(stream):
            while not ends.is_set():
                decoded += len(decode_jpeg(next(batches), ImageReadMode.RGB, device=what.device.type))

    def steps_a_second() -> float:
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            step()
            if what.device.type == "cuda":
                torch.cuda.synchronize()
            count += 1
        return count / (time.perf_counter() - started)

    alone, started = steps_a_second(), time.perf_counter()
    thread = threading.Thread(target=decode, daemon=True)
    thread.start()
    beside = steps_a_second()
    rate = decoded / (time.perf_counter() - started)
    ends.set()
    thread.join()
    figures = {"images_a_second": rate, "steps_a_second": alone, "steps_a_second_beside": beside}
    write(part="decoding", pictures=pictures, **figures, **what.keys())


def pretraining(what: Workload, pictures: int, decode: str, write: Writer) -> None:
    """A whole run of three epochs, from files to a checkpoint, as `pretrain` does it: the figures of its last epoch.

    Each picture lies there eight times, by links: how an epoch begins and ends should not count.
    """
    import csv

    from convspark import pretrain

    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder, "pictures"), pictures)
        for path, copy in itertools.product([*Path(folder, "pictures").iterdir()], range(7)):
            path.with_stem(f"{path.stem}-{copy}").hardlink_to(path)
        result = pretrain(
            str(Path(folder, "pictures")),
            out=str(Path(folder, "run")),
            model=what.name,
            size=what.size,
            epochs=3,
            batch_size=min(what.batch_size, pictures // 2),
            device=what.device.type,
            precision=what.precision,
            decode=decode,
        )
        with (result.folder / "metrics.csv").open() as file:
            last = list(csv.DictReader(file))[-1]
        replayed = what.device.type == "cuda" and "not replayed" not in (result.folder / "log.txt").read_text()
    figures = {name: float(last[name]) for name in ("train_loss", "held_out_loss", "data_wait_share")}
    figures |= {"pictures": 8 * pictures, "images_a_second": float(last["images_per_second"])}
    write(part="pretrain", decode=decode, replayed=replayed, **figures, **what.keys())


def make_pictures(folder: Path, count: int) -> None:
    """JPEGs of 500 x 375, crops of the photographs that come with scikit-learn."""
    import multiprocessing

    folder.mkdir(exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(min(16, os.cpu_count() or 1)) as pool:
        pool.starmap(_make_picture, [(str(folder / f"{i}.jpg"), i) for i in range(count)], chunksize=64)


def _make_picture(path: str, seed: int) -> None:
    import random

    from PIL import Image
    from sklearn.datasets import load_sample_images

    if not _PHOTOGRAPHS:
        _PHOTOGRAPHS.extend(Image.fromarray(pixels) for pixels in load_sample_images().images)
    draw = random.Random(seed)
    picture = draw.choice(_PHOTOGRAPHS)
    width = draw.uniform(0.5, 1) * min(picture.width, picture.height * 4 / 3)
    left, top = draw.uniform(0, picture.width - width), draw.uniform(0, picture.height - width * 0.75)
    crop = picture.resize((500, 375), box=(left, top, left + width, top + width * 0.75))
    crop.save(path, quality=90)


_PHOTOGRAPHS: list[Any] = []  # of each worker, decoded once


# ---------------------------------------------------------------- profile


def profile(what: Workload, write: Writer, whole: bool, traces: Path | None, top: int = 20) -> None:
    """The operators that take longest on the device, and the gaps between: of an encoder step of visible patches, one
    launched after the other, or of a whole step, replayed.
    """
    from convspark.measure.bench import VISIBLE

    trial = what.trial(graphed=whole)
    step, keys = trial.whole_step(VISIBLE) if whole else trial.encoder_step(VISIBLE), what.keys() | {"whole": whole}
    for _ in range(4):  # the third is recorded
        step()
    _wait_for(what.device)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = what.device.type == "cuda"
    if on_gpu:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds, record_shapes=True, acc_events=True) as recorded:
        step()
        _wait_for(what.device)
    if traces is not None:
        recorded.export_chrome_trace(str(traces / f"{what.name}{'-whole' * whole}.json.gz"))
    time_of = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    averages = sorted(recorded.key_averages(), key=lambda one: -getattr(one, time_of))
    for one in averages[:top]:
        milliseconds = getattr(one, time_of) / 1e3
        write(part="profile", operator=one.key[:120], milliseconds=milliseconds, calls=one.count, **keys)
    if not on_gpu:
        return
    device_type = torch.autograd.DeviceType.CUDA
    spans = sorted((e.time_range.start, e.time_range.end) for e in recorded.events() if e.device_type == device_type)
    busy, gaps, until = 0.0, [], spans[0][0]
    for start, end in spans:
        if start > until:
            gaps.append(start - until)
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    write(
        part="profile",
        operator="(all)",
        milliseconds=(until - spans[0][0]) / 1e3,
        busy_share=busy / (until - spans[0][0]),
        launches=len(spans),
        longest_gaps_microseconds=sorted(gaps, reverse=True)[:10],
        **keys,
    )


# ---------------------------------------------------------------- table


def table(lines: list[dict[str, Any]], most: int) -> str:
    """The newest lines of each kind, as Markdown; under a hundred rows."""
    newest: dict[Any, dict[str, Any]] = {}
    for line in lines:
        if "first_step_seconds" not in line:
            kind = "part network batch_size size precision mode way decoder decode device kernels commit".split()
            newest[tuple(line.get(key) for key in (*kind, "operator", "whole", "in_bytes", "host_waits"))] = line
    latest = list(newest.values())
    rows = [
        "| part | what | ms | images/s | of dense | memory, GiB | of a copy's speed |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in [one for one in latest if one["part"] in ("encoder", "step")][-most:]:
        what = f"{line['network']} {line['way']}, {line['mode']}, {line['precision']}, batch {line['batch_size']}"
        what += f", {line['decoder']} decoder" if "decoder" in line else ""
        what += f", {line['kernels']}" if line.get("kernels") else ""
        if "failed" in line:
            rows.append(f"| {line['part']} | {what} | {line['failed'][:100]} |||||")
            continue
        same = {
            key: line.get(key)
            for key in ("part", "network", "batch_size", "size", "precision", "mode", "device", "commit")
        }
        base = next(
            (o for o in latest if o.get("way") == "dense" and same.items() <= o.items() and "seconds" in o), None
        )
        share = f"{line['seconds'] / base['seconds']:.2f}" if base and line["part"] == "encoder" else ""
        memory, bandwidth = line["peak_bytes"] / 2**30, line.get("bandwidth")
        rows.append(
            f"| {line['part']} | {what} | {1000 * line['seconds']:.1f} | {line['batch_size'] / line['seconds']:.0f} | "
            f"{share} | {memory:.1f} | {'' if bandwidth is None else f'{bandwidth:.2f}'} |"
        )
    for line in latest:
        if line["part"] == "feeding":
            rate = f"{line['images_a_second']:.0f}"
            kind = "bytes" if line.get("in_bytes") else "numbers"
            rows.append(f"| feeding | JPEGs as {kind}, {line['workers']} workers, {line['size']} px || {rate} ||||")
        elif line["part"] == "decoding" and "steps_a_second" in line:
            beside = f"{line['steps_a_second_beside']:.1f} steps a second beside it, {line['steps_a_second']:.1f} alone"
            what = f"on the device, {line['network']}: {beside}"
            rows.append(f"| decoding | {what} || {line['images_a_second']:.0f} ||||")
        elif line["part"] == "pretrain":
            rate, waited = line["images_a_second"], 100 * line["data_wait_share"]
            finding = f"decoded by {line.get('decode', 'workers')}, loss {line['train_loss']:.3f}, "
            finding += f"{waited:.0f} % of the time waiting, replayed: {line['replayed']}"
            rows.append(f"| pretrain | {line['network']}, batch {line['batch_size']}, {finding} || {rate:.0f} ||||")
        elif line["part"] == "correctness":
            if "host_waits" in line:
                finding = f"host waits: {line['host_waits'] or 'never'}"
            else:
                finding = f"{line['precision']}: loss off by {line['loss_error']:.1e}"
                finding += f", gradients by {line['median_error']:.1e}"
                finding += (
                    f" (worst {line['worst_error']:.1e}), cosine {line['cosine']:.6f}, same bits: {line['same_bits']}"
                )
            rows.append(f"| correctness | {line['network']}, {finding} ||||||")
    profiled = [one for one in latest if one["part"] == "profile"]
    for line in sorted(profiled, key=lambda one: -one["milliseconds"])[:12]:
        more = f", busy {line['busy_share']:.2f}, {line['launches']} launches" if "busy_share" in line else ""
        what = f"{line['network']}{', whole step' if line.get('whole') else ''}: {line['operator'][:70]}{more}"
        rows.append(f"| profile | {what} | {line['milliseconds']:.2f} |||||")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
