"""From what was asked for to the numbers of a run."""

import pytest

from convspark.errors import UsageError
from convspark.runs import numbers as of_run


@pytest.mark.parametrize(
    ("size", "expected"),
    [(224, (224, 224)), ("224", (224, 224)), ("192x256", (192, 256)), ((64, 32), (64, 32)), (" 64 X 32 ", (64, 32))],
)
def test_sizes(size, expected):
    assert of_run.parse_size(size) == expected
    assert of_run.parse_size(of_run.format_size(expected)) == expected


@pytest.mark.parametrize("size", [0, -1, "big", "224x", "1x2x3", (1, 2, 3), "0x5"])
def test_refuses_what_is_no_size(size):
    with pytest.raises(UsageError, match="192x256"):
        of_run.parse_size(size)


def test_counts_steps_with_the_last_batch_filled_up():
    numbers = of_run.count(100, 32, epochs=10, warmup_epochs=0.5)
    assert (numbers.steps_per_epoch, numbers.steps, numbers.warmup_steps) == (4, 40, 2)


def test_chooses_a_batch_that_fits_and_divides():
    assert of_run.count(1000, None, 1, 0).batch_size == 64
    assert of_run.count(10, None, 1, 0).batch_size == 10
    assert of_run.count(10, None, 1, 0, accumulate=4).batch_size == 8


def test_in_words_they_say_how_a_batch_is_divided():
    assert of_run.count(48, 12, 2, 0).in_words == "2 epochs of 4 steps, batch 12"
    assert of_run.count(48, 12, 2, 0, device_batch_size=5).in_words == "2 epochs of 4 steps, batch 12 in 3 passes"


@pytest.mark.parametrize(("images", "processes", "batch"), [(5, 1, 4), (63, 1, 62), (64, 1, 64), (100, 3, 60)])
def test_a_batch_that_is_mixed_in_pairs_is_even_in_each_process(images, processes, batch):
    chosen = of_run.count(images, None, 1, None, None, processes, in_pairs=True).batch_size
    assert chosen == batch == max(range(0, min(images, 64) + 1, 2 * processes))


def test_advice_on_pairs_can_be_followed():
    with pytest.raises(UsageError, match=r"try --batch-size 4$"):
        of_run.count(5, 5, 1, None, in_pairs=True)
    assert of_run.count(5, 4, 1, None, in_pairs=True).batch_size == 4


def test_warmup_is_a_tenth_and_never_more_than_the_papers():
    assert of_run.count(64, 64, 20, None).warmup_steps == 2
    assert of_run.count(64, 64, 1600, None).warmup_steps == 40


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 65}, "batch_size is 65.*64 images.*--batch-size 64"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"warmup_epochs": 11}, "warmup_epochs is 11"),
        ({"batch_size": 10, "accumulate": 4}, "--batch-size 12"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"images": 0}, "no images to train on"),
        ({"accumulate": None, "device_batch_size": 1, "in_pairs": True}, "device_batch_size is 1: expected 2 or more"),
    ],
)
def test_refuses_numbers_that_do_not_go_together(arguments, words):
    with pytest.raises(UsageError, match=words):
        of_run.count(**{"images": 64, "batch_size": 32, "epochs": 10, "warmup_epochs": 1, **arguments})


NO_NUMBERS = [(1, [0.5], [float("nan")]), (1, [float("nan")], [1.0]), (1, [0.5], [float("inf")])]


def test_normalisation():
    assert of_run.normalisation(3, None, None)[0] == (0.485, 0.456, 0.406)
    assert len(of_run.normalisation(1, None, None)[1]) == 1
    assert of_run.normalisation(2, [0.1, 0.2], [1, 2]) == ((0.1, 0.2), (1, 2))
    for channels, mean, std in [(3, [0.5], None), (3, [0.5], [0.5]), (8, None, None), (1, [0.5], [0.0]), *NO_NUMBERS]:
        with pytest.raises(UsageError, match=r"mean|std"):
            of_run.normalisation(channels, mean, std)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e38])
def test_numbers_that_nobody_means_are_refused(value):
    with pytest.raises(UsageError, match="expected a number above 0, up to 1e"):
        of_run.check_positive(rate=value)
    if value:
        with pytest.raises(UsageError, match="not negative, up to 1e"):
            of_run.check_not_negative(decay=value)


@pytest.mark.parametrize(
    ("processes", "most", "passes"), [(1, 256, 16), (8, 256, 2), (16, 256, 1), (32, 256, 1), (1, 200, 32), (1, 5000, 1)]
)
def test_a_batch_divides_into_the_fewest_passes_that_devices_can_hold(processes, most, passes):
    numbers = of_run.count(1_281_167, 4096, 10, None, processes=processes, device_batch_size=most)
    assert (numbers.accumulate, numbers.batch_size) == (passes, 4096)
    assert of_run.count(10_000, 4096, 10, None, 4, processes, device_batch_size=most).accumulate == 4  # as it was asked


def test_steps_of_a_run_are_divided_among_its_epochs():
    assert of_run.count(118_287, 16, 12, None, steps=90_000).steps_per_epoch == 7500
    with pytest.raises(UsageError, match="steps is 90000 and epochs 13"):
        of_run.count(118_287, 16, 13, None, steps=90_000)


@pytest.mark.parametrize(
    ("batch_size", "processes", "most", "passes"),
    [(12, 2, 3, 3), (6, 1, 3, 3), (100, 1, 32, 5), (8, 2, None, 1), (None, 1, 16, 4)],
)
def test_passes_of_pairs(batch_size, processes, most, passes):
    """Pictures that are mixed in pairs: an even number in each pass of each process."""
    numbers = of_run.count(1000, batch_size, 10, None, None, processes, device_batch_size=most, in_pairs=True)
    assert numbers.accumulate == passes and numbers.batch_size // passes // processes % 2 == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 6, "processes": 2, "in_pairs": True}, "3 pictures in each forward pass: expected an even"),
        (
            {"batch_size": 97, "accumulate": None, "device_batch_size": 64},
            "passes of 1 images .* 64 or 128",
        ),
    ],
)
def test_passes_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        of_run.count(**{"images": 1000, "epochs": 10, "warmup_epochs": 1, **arguments})


@pytest.mark.parametrize(
    ("accumulate", "processes", "told"), [(2, 1, True), (2, 2, False), (4, 1, False), (None, 1, False)]
)
def test_passes_larger_than_asked_for_are_told(caplog, accumulate, processes, told):
    numbers = of_run.count(1000, 64, 1, None, accumulate, processes, device_batch_size=16)
    of_run.tell_of_large_passes(numbers, processes, 16)
    assert ("a forward pass has 32 images on each device: more than device_batch_size, 16" in caplog.text) == told
