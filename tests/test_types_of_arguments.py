"""Arguments of the package's functions: each of a wrong type is refused by its name, and plain values come out."""

import inspect
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import timm
import torch

import convspark
from convspark.arguments import checked_arguments
from convspark.checkpoints.origin import find_weights
from convspark.errors import UsageError
from convspark.runs.launch import asked_for
from convspark.runs.settings import as_yaml
from convspark.tasks.classification.settings import FinetuneSettings


class Strange:
    """A value of no known type."""


FUNCTIONS = [
    *(convspark.finetune, convspark.segment, convspark.detect, convspark.compare, convspark.pretrain, convspark.probe),
    *(convspark.embed, convspark.export, convspark.load, convspark.recipe, convspark.reconstruct, convspark.scan),
    *(convspark.figures, convspark.check, convspark.SparK, find_weights),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_each_argument_of_a_wrong_type_is_named(function):
    parameters = inspect.signature(function).parameters
    needed = {name: "x" for name, parameter in parameters.items() if parameter.default is parameter.empty}
    if "backbone" in needed:
        needed["backbone"] = timm.create_model("test_resnet")
    for name, parameter in parameters.items():
        if parameter.annotation is Any or isinstance(parameter.annotation, str):
            continue  # `pretrain` and `figures` look themselves
        for value in (Strange(), b"x", {1}):
            with pytest.raises(UsageError, match=rf"^{name} is .*: expected "):
                function(**needed | {name: value})


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, np.int64(3), 3),
        (int | None, None, None),
        (int, np.array(3), 3),
        (int | None, torch.tensor(3), 3),
        (bool, np.True_, True),
        (bool | None, np.False_, False),
        (
            dict[str, Any] | None,
            {"a": np.int64(3), "b": [np.True_, {"c": np.arange(2)}]},
            {"a": 3, "b": [True, {"c": [0, 1]}]},
        ),
        (float, 1, 1),
        (float | Literal["whole"], np.float32(0.5), 0.5),
        (float | Literal["whole"], "whole", "whole"),
        (list[float] | None, np.array([0.5, 1]), [0.5, 1.0]),
        (list[int] | None, (1, 2), [1, 2]),
        (tuple[float, float], [0.25, 1], (0.25, 1)),
        (str | None, Path("a/b"), "a/b"),
        (list[str], [Path("a"), np.str_("b")], ["a", "b"]),
        (list[str], Path("a"), ["a"]),
        (str | list[str] | None, "a", "a"),
        (dict[str, Any] | None, {"a": 1}, {"a": 1}),
        (torch.nn.Module, module := torch.nn.ReLU(), module),
    ],
)
def test_values_that_mean_the_same_come_out_plain(hint, value, expected):
    def function(value):
        return value

    function.__annotations__["value"] = hint
    plain = checked_arguments(function)(value)
    assert plain == expected and type(plain) is type(expected)
    assert not isinstance(plain, list | tuple) or list(map(type, plain)) == list(map(type, expected))
    assert repr(plain) == repr(expected)  # nothing of NumPy's anywhere in it


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (int, True, "a whole number"),
        (int | None, 1.5, "a whole number or None"),
        (float | None, "0.5", "a number or None"),
        (bool, 1, "True or False"),
        (Literal["adamw", "lamb"], "sgd", "'adamw' or 'lamb'"),
        (tuple[float, float], (0.5,), "2 numbers"),
        (list[int] | None, [1, "2"], "a list of whole numbers or None"),
        (list[str], ["a", 1], "a list of texts"),
        (dict[str, Any] | None, [], "a dictionary or None"),
    ],
)
def test_what_was_expected_is_said(hint, value, words):
    def function(value):
        return value

    function.__annotations__["value"] = hint
    with pytest.raises(UsageError) as raised:
        checked_arguments(function)(value)
    assert str(raised.value) == f"value is {value!r}: expected {words}"


def test_a_size_of_two_numbers_is_the_text_that_means_it():
    assert checked_arguments(FinetuneSettings)(size=np.array([192, 256])).size == "192x256"  # type: ignore[arg-type]
    settings = checked_arguments(FinetuneSettings)(size=(192, np.int64(256)), epochs=np.int64(2), mixup=np.float64(0.5))
    assert settings == FinetuneSettings(size="192x256", epochs=2, mixup=0.5)
    assert "size: 192x256\n" in as_yaml(settings)
    with pytest.raises(TypeError, match=r"^finetune\(\) got an unexpected keyword argument 'epoch'"):
        convspark.finetune(epoch=1)  # type: ignore[call-arg]


def test_gather_and_scatter_name_what_they_were_given():
    grid, images = convspark.PatchGrid.random(1, (2, 2)), torch.zeros(1, 3, 4, 4)
    with pytest.raises(UsageError, match="grid is None: expected a PatchGrid"):
        convspark.gather(images, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="fill is 'x': expected a number"):
        convspark.scatter(convspark.gather(images, grid), "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [-1, 10**30])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (convspark.finetune, ("random:test_resnet", "d")),
        (convspark.compare, ("random:test_resnet", "d")),
        (convspark.pretrain, ("d",)),
        (convspark.probe, ("random:test_resnet", "d")),
        (convspark.embed, ("random:test_resnet", "d")),
        (convspark.scan, ("d",)),
    ],
)
def test_so_many_workers_are_not_started(function, arguments, workers):
    """They would stop the machine."""
    with pytest.raises(UsageError, match=f"workers is {workers}: expected"):
        function(*arguments, workers=workers)


def test_so_many_processes_are_not_started():
    assert asked_for(2, None).count == 2
    with pytest.raises(UsageError, match=r"devices is 100000: expected 0 to \d+; this machine has"):
        asked_for(100_000, None)
