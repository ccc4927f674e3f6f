"""Out of memory: what fits is tried, and told."""

from types import SimpleNamespace

import pytest
import torch

from convspark import pretrain
from convspark.errors import ConvsparkError
from convspark.pretraining import estimate as estimating
from convspark.pretraining.estimate import Measured, estimate
from convspark.pretraining.module import PretrainModule
from convspark.pretraining.plan import Plan
from convspark.runs.graphs import Graphed
from convspark.runs.memory import is_out_of_memory, most_that_fits, out_of_memory


@pytest.fixture
def holds(monkeypatch):
    """A device that holds so many images a pass."""

    def limit(most):
        forward = PretrainModule.loss_of

        def loss_of(self, batch, batch_idx):
            if len(batch) > most:
                raise torch.OutOfMemoryError(f"{len(batch)} images")
            return forward(self, batch, batch_idx)

        monkeypatch.setattr(PretrainModule, "loss_of", loss_of)

    return limit


SMALL = {
    "model": "test_resnet",
    "size": 64,
    "epochs": 1,
    "batch_size": 12,
    "precision": "fp32",
    "workers": 0,
}


@pytest.mark.parametrize(
    ("most", "says"),
    [
        (
            3,
            r"12 images a pass in fp32: 3 fit, as tried just now: --accumulate 4 \(the same batch of 12 in 4",
        ),
        (5, r"3 fit"),
        (1, r"--accumulate 12 .* --batch-size 1"),
        (0, r"not even one image fits: try a smaller --size"),
    ],
)
def test_a_run_says_what_fits(most, says, holds, pictures, tmp_path):
    holds(most)
    with pytest.raises(ConvsparkError, match=says):
        pretrain(str(pictures), out=str(tmp_path / "run"), device="cpu", **SMALL)


@pytest.mark.parametrize("most", [12, 3])
def test_steps_that_fit_unless_they_are_recorded_are_told_so(most, holds, pictures, tmp_path, monkeypatch):
    holds(most)
    makes, loss_of = Plan.module, PretrainModule.loss_of

    def replayed(plan):
        module = makes(plan)
        module.step_loss = Graphed(module.step_loss, plan.model)
        return module

    def beside_a_recording(self, batch, batch_idx):
        if isinstance(self.step_loss, Graphed):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss_of(self, batch, batch_idx)

    monkeypatch.setattr(Plan, "module", replayed)
    monkeypatch.setattr(PretrainModule, "loss_of", beside_a_recording)
    says = "12 images a pass in fp32: they fit, as tried .* --cuda-graph false" if most == 12 else "3 fit, as tried"
    with pytest.raises(ConvsparkError, match=says):
        pretrain(str(pictures), out=str(tmp_path / "run"), device="cpu", **SMALL)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("12 images"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")])
def test_so_does_an_estimate(error, pictures, monkeypatch):
    def without_memory(plan, here):
        raise error

    monkeypatch.setattr(estimating, "_measure", without_memory)
    with pytest.raises(ConvsparkError, match="12 images a pass in fp32: 6 fit"):
        estimate(str(pictures), device="cpu", **SMALL)


def test_what_fits_does_fit(holds, pictures, tmp_path):
    holds(3)
    assert pretrain(str(pictures), out=str(tmp_path / "run"), device="cpu", accumulate=4, **SMALL).steps == 3


def test_halves_are_tried():
    tried = []

    def step(count):
        tried.append(count)
        if count > 20:
            raise torch.OutOfMemoryError("too many")

    assert most_that_fits(step, 256) == 16 and tried == [128, 64, 32, 16]
    assert most_that_fits(step, 1) == 0


def test_images_that_fit_are_those_that_the_memory_has_room_for():
    gib = 2**30
    assert Measured(1.0, peak=12 * gib, between_steps=2 * gib, total=80 * gib).images_that_fit(100) == 700
    assert Measured(1.0, peak=12 * gib, between_steps=0, total=None).images_that_fit(100) is None


def test_an_estimate_tells_the_memory_of_a_gpu(monkeypatch, pictures):
    cost = estimate(str(pictures), device="cpu", **SMALL)
    assert cost.device_bytes is None and "GiB on CPU" in str(cost)
    gib = 2**30
    monkeypatch.setattr(estimating, "_measure", lambda plan, here: Measured(1.0, 12 * gib, 2 * gib, 80 * gib))
    assert "12.0 of 80.0 GiB on CPU, 2 cores; about 84 images a pass would fit" in str(
        estimate(str(pictures), device="cpu", **SMALL)
    ).replace("1 cores", "2 cores")


@pytest.mark.parametrize(
    ("batch", "a_pass", "processes", "says"),
    [
        (
            4096,
            512,
            8,
            r"512 images a pass of each process in bf16: try --accumulate 2 \(.* of 4096 in 2 passes\) or .* 2048$",
        ),
        (24, 3, 4, r"--accumulate 3 \("),
        (8, 1, 4, r"try a smaller --size"),
    ],
)
def test_several_processes_are_advised_without_a_trial(batch, a_pass, processes, says):
    """Their steps wait for each other: those that had enough memory would not take part in a trial."""
    train = SimpleNamespace(
        order=SimpleNamespace(batch_size=batch, images_a_pass=a_pass),
        here=SimpleNamespace(are_several=True, count=processes),
    )
    with pytest.raises(ConvsparkError, match=says):
        raise out_of_memory(None, train, torch.device("cpu"), "bf16")


def test_a_cpu_without_memory_says_so_in_words_alone():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 45)
    assert is_out_of_memory(raised.value) and not is_out_of_memory(RuntimeError("shape"))
    assert most_that_fits(lambda count: torch.empty(count << 45), 4) == 0


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_memory_that_libraries_find_missing_is_told_as_memory(said):
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"))
