"""Which peak learning rate fits a batch size: pre-train a small network with each and compare held-out losses.

    python -m benchmarks.learning_rate FOLDER --out benchmarks/results/learning_rate.jsonl

Every run sees the same images for the same number of epochs; only batch size, peak rate and seed differ. One line of
JSON a run; runs that the file holds already are not repeated, so that it can be stopped and started again.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from convspark import PatchGrid, SparK
from convspark.data import hold_out, list_pictures
from convspark.runs.optimizer import build_optimizer, parameter_groups, set_rates
from convspark.runs.schedule import Schedule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--channels", type=int, nargs=4, default=[32, 64, 128, 256])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 256, 1024])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0001, 0.0004, 0.0016, 0.0064, 0.0256])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()

    train, held_out = load(options.folder, options.size, options.images)
    runs = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    keys = ("model", "channels", "size", "patch", "images", "epochs", "batch_size", "rate", "seed")
    finished = [[run[key] for key in keys] for run in runs]
    for seed in options.seeds:
        for batch_size in options.batches:
            for rate in options.rates:
                network = (options.model, options.channels, options.size, options.patch)
                run = [*network, len(train), options.epochs, batch_size, rate, seed]
                if run in finished:
                    continue
                began = time.perf_counter()
                losses = pretrain(train, held_out, *network, options.epochs, batch_size, rate, seed)
                record = dict(zip(keys, run, strict=True)) | losses | {"seconds": round(time.perf_counter() - began)}
                with options.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(record, flush=True)


def load(folder: str, size: int, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images (n, 3, size, size) to train on, and 512 held out."""
    paths, held_out = hold_out(list_pictures(folder), 0.5, 512, 0)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def read(path: str) -> torch.Tensor:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
        return (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - mean) / std

    chosen = np.random.default_rng(0).permutation(len(paths))[:images]
    return torch.stack([read(paths[i]) for i in chosen]), torch.stack([read(path) for path in held_out])


def pretrain(train, held_out, name, channels, size, patch, epochs, batch_size, rate, seed) -> dict[str, float]:
    """Loss of the last epoch's steps and of the held-out images under fixed masks."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = timm.create_model(name, num_classes=0, channels=tuple(channels))
    stages = {16: ("layer1", "layer2", "layer3")}.get(patch)
    model = SparK(backbone, size, stages=stages, prove=False, decoder="paper")
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(parameter_groups(model, frozenset(f"backbone.{n}" for n in model.untrained)))
    steps_an_epoch = math.ceil(len(train) / batch_size)
    schedule = Schedule(rate, epochs * steps_an_epoch, round(epochs * steps_an_epoch / 10))
    generator = torch.Generator().manual_seed(seed)
    loss_sum = 0.0
    for step in range(schedule.steps):
        if step % steps_an_epoch == 0:
            order, loss_sum = torch.randperm(len(train), generator=generator), 0.0
        rows = order[(torch.arange(batch_size) + step % steps_an_epoch * batch_size) % len(train)]
        images = train[rows].to(device, memory_format=torch.channels_last)
        images = torch.where(
            torch.rand(batch_size, 1, 1, 1, generator=generator).to(device) < 0.5, images.flip(3), images
        )
        grid = PatchGrid.random(batch_size, model.grid_shape(images.shape[2:]), 0.6, generator, device)
        set_rates(optimizer, schedule.learning_rate(step), schedule.weight_decay(step))
        optimizer.zero_grad()
        loss = model(images, grid).loss
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
        if not math.isfinite(loss_sum):
            return {"train_loss": math.nan, "held_out_loss": math.nan}
    model.eval()
    with torch.no_grad():
        fixed = torch.Generator().manual_seed(1)
        losses = []
        for images in held_out.split(128):
            grid = PatchGrid.random(len(images), model.grid_shape(images.shape[2:]), 0.6, fixed, device)
            losses.append(model(images.to(device), grid).loss.item())
    return {"train_loss": round(loss_sum / steps_an_epoch, 5), "held_out_loss": round(float(np.mean(losses)), 5)}


if __name__ == "__main__":
    main()
