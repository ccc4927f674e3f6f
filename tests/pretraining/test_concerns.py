"""What is said of figures that a person would worry about, and that nothing is said of good ones."""

import math

import pytest

from convspark.pretraining.concerns import collapsed, concerns

EPOCHS = 40


def kinds(upto=EPOCHS, epochs=EPOCHS, **columns):
    """What is said after `upto` of the run's epochs; columns are functions of the epoch."""
    good = {
        "epoch": float,
        "train_loss": lambda e: 0.3 + 1 / (e + 1),
        "held_out_loss": lambda e: 0.32 + 1 / (e + 1),
        "prediction_deviation": lambda e: 0.6,
        "gradient_norm": lambda e: 1.5,
        "clipped_share": lambda e: 0.0,
    }
    values = {name: [f(epoch) for epoch in range(1, upto + 1)] for name, f in {**good, **columns}.items() if f}
    return dict(concerns(values, epochs, epochs / 10, 5.0))


@pytest.mark.parametrize("upto", range(1, EPOCHS + 1))
def test_nothing_is_said_of_a_good_run(upto):
    assert kinds(upto) == {}


def test_nothing_is_said_where_nothing_is_measured():
    none = dict.fromkeys(("held_out_loss", "prediction_deviation", "gradient_norm", "clipped_share"))
    assert kinds(20, **none) == {}
    assert kinds(20, held_out_loss=lambda e: math.nan, prediction_deviation=lambda e: math.nan) == {}


def test_a_loss_that_stays_is_flat_and_the_advice_depends_on_where_it_is():
    assert "flat: 0.9990" in kinds(20, train_loss=lambda e: 0.999)["flat"]
    assert "--learning-rate three times" in kinds(20, train_loss=lambda e: 0.999)["flat"]
    assert "larger network" in kinds(20, train_loss=lambda e: max(0.5, 1 - 0.1 * e))["flat"]
    assert kinds(7, train_loss=lambda e: 0.999) == {}  # too early to tell
    assert (
        kinds(38, train_loss=lambda e: max(0.5, 1 - 0.015 * e)) == {}
    )  # so late, it is the schedule that makes it flat


def test_a_held_out_loss_that_turns_up():
    text = kinds(25, held_out_loss=lambda e: 0.5 + 0.01 * abs(e - 12))["rising"]
    assert "0.5000 in epoch 12, 0.6300 now" in text
    assert kinds(14, held_out_loss=lambda e: 0.5 + 0.01 * abs(e - 12)) == {}
    assert "rising" not in kinds(25, held_out_loss=lambda e: 0.5 + 0.1 * (e % 2))  # up and down is no rise
    # Of three pictures, which went on to 0.6304: a single good epoch, and no rise.
    few = [1.0088, 1.0325, 1.1192, 0.7434, 0.7559, 0.7341, 0.6951, 0.6746, 0.7211, 0.6525, 0.6833, 0.7482, 0.6743]
    assert "rising" not in kinds(13, 21, held_out_loss=lambda e: few[e - 1])


def test_predictions_without_variance():
    assert "varies 3.0 % as much" in kinds(12, prediction_deviation=lambda e: 0.03)["grey"]
    assert kinds(6, prediction_deviation=lambda e: 0.03) == {}  # hardly out of the warm-up
    assert kinds(12, prediction_deviation=lambda e: 0.03 if e < 12 else 0.2) == {}


def test_a_gradient_at_its_clip_all_the_time():
    text = kinds(12, clipped_share=lambda e: 1.0, gradient_norm=lambda e: 12.0)["clipped"]
    assert "--gradient-clip 5 " in text and "try --gradient-clip 24" in text
    assert kinds(12, clipped_share=lambda e: 0.6) == {}


def test_ranks_that_collapse():
    assert collapsed([8, 20, 21, 9, 8]) is not None
    assert collapsed([8, 20, 21, 9, 19]) is None and collapsed([20, 9]) is None
    assert collapsed([20.0, math.nan, 21, 19, 18]) is None
