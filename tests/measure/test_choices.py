"""What is chosen for pictures and machines of many kinds: worked out by hand."""

from dataclasses import replace

import pytest

from convspark.cli.pretrain import command
from convspark.measure.choices import Choices, Known, Network, choose
from convspark.runs.machine import Machine

GIB = 1 << 30
TWO_CORES = Machine("cpu", 2, is_bf16=True)
OLD_CORES = Machine("cpu", 16)
APPLE = Machine("mps", 8)
T4 = Machine("cuda", 4, 40, 15 * GIB)
H100 = Machine("cuda", 16, 132, 80 * GIB, is_bf16=True)
LAPTOP = Machine("cuda", 8, 20, 4 * GIB)

PHOTOS = (375, 375 * 500)  # shorter side, area
TINY, SMALL, MIDDLE, HUGE = (32, 32 * 32), (64, 64 * 64), (100, 100 * 130), (3000, 3000 * 4000)
FINE = {"output_stride": 8}, {"output_stride": 16}


@pytest.mark.parametrize(
    ("count", "kind", "machine", "model", "size", "batch_size", "epochs"),
    [
        # Of 50, 16 are a batch; 4 steps, a thousand times, make the 4,000 of the rule.
        (50, PHOTOS, TWO_CORES, "resnet18", 128, 16, 1000),
        (50, PHOTOS, H100, "resnet18", 224, 16, 1000),
        (5, PHOTOS, TWO_CORES, "resnet18", 128, 5, 1600),
        # As the recipe small_data has it.
        (3000, PHOTOS, TWO_CORES, "resnet18", 128, 64, 400),
        (3000, PHOTOS, APPLE, "resnet18", 128, 64, 400),
        (3000, PHOTOS, H100, "resnet18", 224, 64, 400),
        (3000, PHOTOS, LAPTOP, "resnet18", 224, 32, 400),
        # 36,000 s; an epoch takes 0.3 + 1563 steps x 0.1 + 100,000 x (0.59 / 30 + 0.0021) / 2.
        (100_000, PHOTOS, TWO_CORES, "resnet18", 128, 64, 28),
        (100_000, PHOTOS, H100, "resnet50", 224, 256, 200),
        (100_000, PHOTOS, T4, "resnet50", 224, 128, 56),
        (5_000_000, PHOTOS, TWO_CORES, "resnet18", 128, 64, 1),
        (5_000_000, PHOTOS, OLD_CORES, "resnet18", 128, 64, 1),
        (5_000_000, PHOTOS, H100, "resnet50", 224, 256, 18),
        # Small pictures, finer patches, sixteen of them at the least.
        (3000, TINY, TWO_CORES, "resnet18", 32, 64, 400),
        (3000, SMALL, H100, "resnet18", 64, 64, 400),
        (3000, MIDDLE, TWO_CORES, "resnet18", 96, 64, 400),
        (3000, (20, 600), TWO_CORES, "resnet18", 32, 64, 400),
        # Reading 12 megapixels takes longer than training on them: 36,000 s by 2 / (0.0196 + 0.076) a second.
        (3000, HUGE, TWO_CORES, "resnet18", 128, 64, 250),
        (3000, HUGE, H100, "resnet18", 224, 64, 400),
    ],
)
def test_choices(count, kind, machine, model, size, batch_size, epochs):
    picks = choose(Known(count, *kind), machine)
    s = picks.settings
    assert (s["model"], s["size"], s["batch_size"]) == (model, size, batch_size)
    assert s["epochs"] == pytest.approx(epochs, rel=0.04, abs=0)
    assert s.get("model_args") == {32: FINE[0], 64: FINE[1], 96: FINE[1]}.get(size)
    patch = s.get("model_args", {}).get("output_stride", 32)
    assert size % patch == 0 and (size // patch) ** 2 >= 16
    assert all(choice.why and len(str(choice)) < 120 for choice in picks.chosen)
    assert picks == choose(Known(count, *kind), machine)
    assert picks.seconds < 1.1 * 36_000 or (s["epochs"] == 1 and any("That is long" in line for line in picks.lines()))
    assert any(f"--init {model}.a1_in1k" in line for line in picks.lines()) == (count < 1000)


def test_what_was_said_counts():
    said = choose(Known(3000, *PHOTOS), TWO_CORES, network=Network(4.1, 32), size=(96, 192), epochs=7, batch_size=9)
    assert said.chosen == [] and said.lines() == []
    # 4.1 GMAC x 96 x 192 / 224² / 30 a second and core, 2.1 ms for reading; 334 steps and an epoch to begin
    a_picture = (4.1 * 96 * 192 / 224**2 / 30 + 0.0021) / 2
    assert said.seconds == pytest.approx(7 * (0.3 + 334 * 0.1 + 3000 * a_picture), rel=0.01)
    of_network = choose(Known(3000, *PHOTOS), TWO_CORES, network=Network(4.1, 32))
    assert list(of_network.settings) == ["size", "batch_size", "epochs"]
    slow, quick = (choose(Known(100_000, *PHOTOS), TWO_CORES, network=Network(gmac, 32)) for gmac in (34.0, 0.4))
    assert slow.settings["epochs"] < 3 < 50 < quick.settings["epochs"]


@pytest.mark.parametrize(
    ("patch", "short", "size"),
    [(32, 375, 128), (32, 100, 96), (32, 40, 64), (16, 40, 32), (64, 375, 256), (7, 375, 126)],
)
def test_a_given_network_keeps_its_patches(patch, short, size):
    settings = choose(Known(3000, short, short**2), TWO_CORES, network=Network(1.0, patch)).settings
    assert settings["size"] == size and "model_args" not in settings


def test_patches_that_were_given_stay():
    assert "model_args" not in choose(Known(3000, *TINY), TWO_CORES, may_dilate=False).settings


def test_batches_divide_among_processes_and_passes():
    assert choose(Known(3000, *PHOTOS), TWO_CORES, passes=3).settings["batch_size"] == 63
    assert choose(Known(3000, *PHOTOS), TWO_CORES, processes=50, passes=2).settings["batch_size"] == 100
    (batch,) = (
        choice for choice in choose(Known(250, *PHOTOS), TWO_CORES, passes=5).chosen if choice.flag == "batch-size"
    )
    assert (batch.value, batch.why) == (30, f"so that 250 pictures make {-(-250 // 30)} steps an epoch")


def test_several_gpus_take_a_part_each_and_are_launched_from_python():
    small = replace(H100, memory=4 * GIB, cores=128)
    many = Known(1_281_167, *PHOTOS)
    one, eight = (choose(many, small, network=Network(4.1, 32), epochs=1, processes=n) for n in (1, 8))
    heavy = choose(many, small, network=Network(100.0, 32), epochs=1, batch_size=256, processes=8)
    assert (one.settings["batch_size"], eight.settings["batch_size"]) == (32, 256)
    # Launching takes longer than 4.1 GMAC a picture: 40,037 steps replayed, 5,005 launched from Python.
    assert one.seconds == pytest.approx(0.3 + 40_037 * 0.02)
    assert eight.seconds == pytest.approx(0.3 + 5_005 * 0.08)
    assert heavy.seconds == pytest.approx(0.3 + 1_281_167 * 100 / (8 * small.processors * 80))


def test_crops_are_examples_and_few_pictures_stay_few():
    settings = choose(Known(3000, *PHOTOS, crops=4), H100).settings
    assert (settings["model"], settings["batch_size"], settings["epochs"]) == ("resnet18", 256, 200)


def test_grey_pictures_are_told_of():
    grey, colour = (choose(Known(3000, *PHOTOS, are_grey=grey), TWO_CORES) for grey in (True, False))
    assert grey.settings == colour.settings
    assert [line for line in grey.lines() if line not in colour.lines()] == [
        "The pictures are grey, and read as colour: --channels 1 makes a network for grey ones alone"
    ]


def lines(choices: Choices) -> str:
    return "\n".join(choices.lines())


def test_lines():
    assert lines(choose(Known(50, *TINY), TWO_CORES)).startswith(
        "Chosen for these pictures and this machine; a flag that you give replaces its line:\n"
        "  --model resnet18                   without an NVIDIA GPU; resnet50 takes about twice as long\n"
        "  --size 32                          as large as the pictures usually are (shorter side 32), a multiple of 8\n"
        "  --model-args {output_stride: 8}    patches of 8 pixels, 4x4 of them; of 32 there would be too few\n"
    )


def test_all_of_them_are_flags():
    chosen = choose(Known(50, *TINY), TWO_CORES).chosen
    parsed = command().parse(["FOLDER", *(word for choice in chosen for word in (f"--{choice.flag}", choice.text))])
    assert all(parsed[choice.flag.replace("-", "_")] == choice.value for choice in chosen)
