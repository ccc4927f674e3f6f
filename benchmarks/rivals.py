"""SparK beside other ways of pre-training, on the same pictures for the same time; theirs by the library lightly.

    pip install lightly
    python -m benchmarks.rivals DATA --costs                 # seconds an image of each, side by side, and memory
    python -m benchmarks.rivals DATA [--pretrain-epochs 30] [--seeds 3] [--fractions 0.1 1] [--arms NAME …]
    python -m benchmarks.rivals --report

Each rival gets as many epochs as take as long as SparK's `--pretrain-epochs`, by the costs measured before; pictures
are read and augmented within that time. Their settings are those of their papers, or of lightly's examples for
convnets, with rates for batches of 64, which grow with the batch; `--rate X` multiplies a rival's rate. All are
fine-tuned by `convspark finetune`. A rival that is stopped goes on from its last minute.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import timm
import timm.optim
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from convspark import SparK
from convspark.checkpoints.origin import find_weights
from convspark.data import list_pictures
from convspark.files import written_whole
from convspark.measure.timing import peak_memory
from convspark.model.networks import copied
from convspark.runs.device import choose_device, choose_precision, default_workers
from convspark.runs.images import find_images, train_dataset
from convspark.runs.numbers import normalisation
from convspark.seeds import Use, counted_seed

from . import records
from .arms import RANDOM, Arm, Budget, arguments, budget_of, report, run_all

RESULTS = records.RESULTS / "rivals.jsonl"
COSTS = records.RESULTS / "rival_costs.jsonl"

SPARK = "SparK"
BATCH = 64
VIT_PATCH = 16
_WARM, _STEPS, _ROUNDS = 2, 3, 5
_BETWEEN_CHECKPOINTS = 60.0  # seconds: the most work that a stop costs


def main() -> None:
    assert __doc__ is not None
    parser = arguments(__doc__)
    parser.add_argument("--costs", action="store_true", help="measure the cost of each, and nothing else")
    parser.add_argument("--rate", type=float, default=1.0, help="multiplies the learning rate of the rivals")
    options = parser.parse_args()
    if options.report:
        print(costs_and_gains())
        return
    budget = budget_of(options)
    names = [name for name in (*METHODS, SPARK) if not options.arms or name in options.arms or name == SPARK]
    cost = records.find(COSTS, _cost_key(budget))
    if options.costs or cost is None or not {*names} <= cost["seconds"].keys():
        cost = measure_costs(budget, names)
    if options.costs:
        return
    arms = [Arm(SPARK), Arm(RANDOM)]
    for name in (name for name in METHODS if name in names):
        epochs = max(1, round(budget.pretrain_epochs * cost["seconds"][SPARK] / cost["seconds"][name]))
        arms.append(Arm(_arm(name, options.rate), otherwise=partial(pretrain, name, epochs, options.rate)))
    chosen = {*(options.arms or ()), *(_arm(name, options.rate) for name in options.arms or ())}
    run_all(RESULTS, budget, [a for a in arms if not chosen or a.name in chosen], options.seeds, options.out)
    print(costs_and_gains())


def _arm(name: str, rate: float) -> str:
    return name if rate == 1 else f"{name}, rate x {rate:g}"


def _cost_key(budget: Budget) -> dict[str, Any]:
    of_device = {"device": choose_device().type, "processor": records.where()["processor"]}
    return {"data": budget.name, "model": budget.model, "size": budget.size, **of_device}


class Method(nn.Module):
    """A way to pre-train: views of a picture, a loss of a batch of them, and the network that is kept."""

    rate: float
    """Learning rate at a batch of 64."""

    grows = 1.0
    """Power of the batch's size by which the rate grows: in proportion, as these methods' papers have it."""

    def __init__(self, encoder: nn.Module, size: int) -> None:
        super().__init__()
        self.encoder = encoder

    def views(self, size: int) -> Callable[[Image.Image], Any]:
        """What makes a list of views of a picture."""
        raise NotImplementedError

    def loss(self, views: list[Tensor], progress: float) -> Tensor:
        """Of a batch; `progress` goes from 0 to 1 over the training."""
        raise NotImplementedError

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), rate, momentum=0.9, weight_decay=1e-4)


class SimCLR(Method):
    """Chen et al., arXiv 2002.05709."""

    rate = 0.06

    def __init__(self, encoder: nn.Module, size: int) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        super().__init__(encoder, size)
        width = encoder.num_features
        self.head = SimCLRProjectionHead(width, width, 128)
        self.contrast = NTXentLoss(temperature=0.2)

    def views(self, size: int) -> Callable[[Image.Image], Any]:
        from lightly.transforms import SimCLRTransform

        return SimCLRTransform(input_size=size, cj_strength=0.5)

    def loss(self, views: list[Tensor], progress: float) -> Tensor:
        both = self.head(self.encoder(torch.cat(views)))
        return self.contrast(*both.chunk(2))


class MoCo(Method):
    """MoCo v2, Chen et al., arXiv 2003.04297: with a queue, for batches that are small."""

    rate = 0.03

    def __init__(self, encoder: nn.Module, size: int) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead

        super().__init__(encoder, size)
        width = encoder.num_features
        self.head = MoCoProjectionHead(width, width, 128)
        self.slow = copied(nn.Sequential(encoder, self.head)).requires_grad_(False)
        self.contrast = NTXentLoss(temperature=0.2, memory_bank_size=(2048, 128))

    def views(self, size: int) -> Callable[[Image.Image], Any]:
        from lightly.transforms import MoCoV2Transform

        return MoCoV2Transform(input_size=size)

    def loss(self, views: list[Tensor], progress: float) -> Tensor:
        _follow(self.slow, nn.Sequential(self.encoder, self.head), 0.99)
        query = self.head(self.encoder(views[0]))
        with torch.no_grad():
            order = torch.randperm(len(views[1]))
            key = self.slow(views[1][order])[order.argsort()]
        return self.contrast(query, key)


class DINO(Method):
    """Caron et al., arXiv 2104.14294, for convnets: two large crops and four small ones."""

    rate = 0.03

    def __init__(self, encoder: nn.Module, size: int) -> None:
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead

        super().__init__(encoder, size)
        width = encoder.num_features
        self.head = DINOProjectionHead(width, 512, 64, 2048, batch_norm=True)
        self.teacher = copied(nn.Sequential(encoder, self.head)).requires_grad_(False)
        self.agree = DINOLoss(output_dim=2048, warmup_teacher_temp_epochs=5)

    def views(self, size: int) -> Callable[[Image.Image], Any]:
        from lightly.transforms import DINOTransform

        return DINOTransform(global_crop_size=size, local_crop_size=size // 2, n_local_views=4)

    def loss(self, views: list[Tensor], progress: float) -> Tensor:
        _follow(self.teacher, nn.Sequential(self.encoder, self.head), 1 - 0.004 * (1 - progress))
        with torch.no_grad():
            aims = self.teacher(torch.cat(views[:2])).chunk(2)
        large = self.head(self.encoder(torch.cat(views[:2]))).chunk(2)
        small = self.head(self.encoder(torch.cat(views[2:]))).chunk(len(views) - 2)
        return self.agree(list(aims), [*large, *small], epoch=int(5 * progress))


class MAE(Method):
    """He et al., arXiv 2111.06377, on a transformer about as large as the convnet."""

    rate = 6e-4
    grows = 0.5  # AdamW at small batches
    ratio = 0.75

    def __init__(self, encoder: nn.Module, size: int) -> None:
        from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM

        super().__init__(encoder, size)
        width = encoder.num_features
        self.masked = MaskedVisionTransformerTIMM(vit=encoder)  # pyright: ignore
        self.narrow = nn.Linear(width, 128)
        patches = (size // VIT_PATCH) ** 2
        self.decoder = MaskedVisionTransformerDecoderTIMM(patches, 128, depth=2, num_heads=4)
        self.head = nn.Linear(128, 3 * VIT_PATCH**2)

    def views(self, size: int) -> Callable[[Image.Image], Any]:
        from lightly.transforms import MAETransform

        return MAETransform(input_size=size)

    def loss(self, views: list[Tensor], progress: float) -> Tensor:
        from lightly.models import utils

        images = views[0]
        shape = (len(images), self.masked.sequence_length)
        keep, mask = utils.random_token_mask(shape, self.ratio, device=images.device)
        encoded = self.narrow(self.masked.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, shape)
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        predicted = self.head(utils.get_at_index(self.decoder.decode(self.decoder.add_pos_embed(tokens)), mask))
        pixels = utils.get_at_index(utils.patchify(images, VIT_PATCH), mask - 1)
        pixels = (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-6).sqrt()
        return nn.functional.mse_loss(predicted.float(), pixels)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.05)


METHODS: dict[str, type[Method]] = {"SimCLR": SimCLR, "MoCo v2": MoCo, "DINO": DINO, "MAE, a transformer": MAE}


def vit(size: int = 128) -> nn.Module:
    """A transformer of 4.6 M parameters for pictures of one size; its blocks go in groups for layer decay."""
    network = timm.models.vision_transformer.VisionTransformer(
        img_size=size, patch_size=VIT_PATCH, embed_dim=192, depth=10, num_heads=3, num_classes=0, global_pool="avg"
    )
    return network


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """`vit_96` makes that transformer for images of 96 pixels: a network is named without arguments."""
    if not name.startswith("vit_") or not name.removeprefix("vit_").isdigit():
        raise AttributeError(name)
    return partial(vit, int(name.removeprefix("vit_")))


def _follow(slow: nn.Module, fast: nn.Module, share: float) -> None:
    with torch.no_grad():
        for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
            old.lerp_(new, 1 - share)
        for old, new in zip(slow.buffers(), fast.buffers(), strict=True):
            old.copy_(new)


class _Views(Dataset):
    def __init__(self, folder: Path, views: Callable[[Image.Image], Any]) -> None:
        self._paths, self._views = list_pictures(str(folder)), views

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> list[Tensor]:
        with Image.open(self._paths[index]) as image:
            return list(self._views(image.convert("RGB")))


def _begin(name: str, budget: Budget, seed: int) -> tuple[Method, DataLoader]:
    """A method with the first weights that the seed gives everyone, and its batches."""
    torch.manual_seed(seed)
    encoder = vit(budget.size) if METHODS[name] is MAE else find_weights(f"random:{budget.model}").build(seed)
    method = METHODS[name](encoder, budget.size).train()
    data = _Views(budget.data / "train", method.views(budget.size))
    workers, batch_size = default_workers(choose_device()), budget.pretrain.get("batch_size", BATCH)
    return method, DataLoader(data, batch_size, shuffle=True, drop_last=True, num_workers=workers)


def _forever(batches: DataLoader) -> Iterator[list[Tensor]]:
    if not len(batches):  # there would be no end
        raise SystemExit(f"too few pictures to pre-train on: expected {batches.batch_size} or more, for a batch")
    return itertools.chain.from_iterable(itertools.repeat(batches))


def pretrain(name: str, epochs: int, rate: float, budget: Budget, seed: int, folder: Path) -> tuple[str, dict]:
    """Train a rival; WEIGHTS of its network for `convspark finetune`, and settings that it needs."""
    file = folder / "weights.safetensors"
    model = f"benchmarks.rivals:vit_{budget.size}" if METHODS[name] is MAE else budget.model
    settings = {"model": model}
    if file.is_file():
        return str(file), settings
    method, batches = _begin(name, budget, seed)
    rate *= method.rate * ((batches.batch_size or BATCH) / BATCH) ** method.grows
    device = choose_device()
    optimizer, steps = method.to(device).optimizer(rate), epochs * len(batches)
    warm = max(1, steps // 10)

    def shape(step: int) -> float:
        falling = torch.tensor((step - warm) / max(1, steps - warm) * torch.pi)
        return (step + 1) / warm if step < warm else float(0.5 * (1 + torch.cos(falling)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    precision = choose_precision("auto", device)
    parts = {"method": method, "optimizer": optimizer, "schedule": schedule}
    kept, first, written = folder / "last.pt", 0, time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    if kept.is_file():
        states = torch.load(kept, map_location=device, weights_only=True)
        first = states.pop("step")
        for part, state in states.items():
            parts[part].load_state_dict(state)
        torch.manual_seed(counted_seed(seed, Use.STEP, first))  # or the pictures would come as in the first steps
    for step, views in enumerate(itertools.islice(_forever(batches), steps - first), first):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = method.loss([view.to(device) for view in views], step / steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(method.parameters(), 3.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"{name} seed {seed} step {step}/{steps} loss {float(loss.detach()):.4f}", flush=True)
        if time.monotonic() - written > _BETWEEN_CHECKPOINTS:
            states = {part: one.state_dict() for part, one in parts.items()}
            with written_whole(kept) as temporary:
                torch.save({**states, "step": step + 1}, temporary)
            written = time.monotonic()
    save_file({k: v.contiguous().cpu() for k, v in method.encoder.state_dict().items()}, file)
    kept.unlink(missing_ok=True)
    return str(file), settings


def measure_costs(budget: Budget, names: list[str]) -> dict[str, Any]:
    """Of all methods, seconds an image of a step, pictures read in the same process, in turn, medians of rounds; and
    the most bytes that a step holds beyond weights and optimiser."""
    device = choose_device()
    precision = choose_precision("auto", device)
    runs = {name: _steps(name, budget, device, precision) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _, (name, steps) in itertools.product(range(_ROUNDS), runs.items()):
        began = time.perf_counter()
        for _ in range(_STEPS):
            next(steps)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name].append((time.perf_counter() - began) / _STEPS / BATCH)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peaks = {name: peak_memory(partial(next, steps), device) for name, steps in runs.items()}
    for name, median in medians.items():
        times = f"{median / medians[SPARK]:.2f} of SparK's time, {peaks[name] / peaks[SPARK]:.2f} of its memory"
        print(f"{name:20} {1 / median:7.1f} images/s, {times}")
    return records.append(COSTS, _cost_key(budget) | {"seconds": medians, "peak_bytes": peaks, "precision": precision})


def _steps(name: str, budget: Budget, device: torch.device, precision: str) -> Iterator[None]:
    if name == SPARK:
        network = timm.create_model(budget.model, num_classes=0)
        model, mean, std = SparK(network, budget.size, prove=False).to(device).train(), *normalisation(3, None, None)
        data = train_dataset(
            find_images(str(budget.data / "train"), held_out=0, held_out_most=0, seed=0),
            (budget.size, budget.size),
            mean,
            std,
            crop_scale=(0.67, 1.0),
            flip=True,
            crops_per_image=1,
            seed=0,
        )
        batches: DataLoader = DataLoader(data, BATCH, shuffle=True, drop_last=True)
        optimizer = timm.optim.Lamb(model.parameters(), 1e-3)
    else:
        model, loader = _begin(name, budget, 0)
        batches = DataLoader(loader.dataset, BATCH, shuffle=True, drop_last=True)
        optimizer = model.to(device).optimizer(model.rate)
    for step, batch in enumerate(_forever(batches)):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            if isinstance(model, SparK):
                images = batch if isinstance(batch, Tensor) else batch[0]
                loss = model(images.to(device)).loss
            else:
                loss = model.loss([view.to(device) for view in batch], 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= _WARM:
            yield


def costs_and_gains() -> str:
    """What each costs, and what it gives."""
    parts = []
    for line in records.read(COSTS):
        seconds, peaks = line["seconds"], line.get("peak_bytes", {})  # older lines have no memory
        rows = [
            f"| {line['model']}, {line['size']} px, {line['processor']} | images/s | time of an image, SparK's = 1 "
            "| memory of a step, SparK's = 1 |",
            "|---|---|---|---|",
        ]
        for name, s in seconds.items():
            memory = f"{peaks[name] / peaks[SPARK]:.2f}" if peaks else ""
            rows.append(f"| {name} | {1 / s:.0f} | {s / seconds[SPARK]:.2f} | {memory} |")
        parts.append("\n".join(rows))
    return "\n\n".join([*parts, report(records.read(RESULTS), None, SPARK)])


if __name__ == "__main__":
    main()
