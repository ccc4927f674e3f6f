"""From a typed function to a command line."""

from typing import Literal

import pytest

from convspark.cli.arguments import Command
from convspark.cli.finetune import command as finetune_command
from convspark.cli.main import main
from convspark.cli.pretrain import command as pretrain_command
from convspark.errors import UsageError


def function(
    images: str | None = None,
    *,
    batch_size: int = 4,
    size: int | str = 224,
    betas: tuple[float, float] | None = None,
    stages: list[str] | None = None,
    shares: list[float] | None = None,
    norm: Literal["batch", "layer"] = "batch",
    flip: bool = True,
    fast: bool = False,
    rate: float = 0.5,
) -> None:
    """Do something.

    Args:
        images: where they are, 100 % of them.
        batch_size: of a step,
            on two lines.
        size: in pixels.
        betas: two.
        stages: names.
        shares: numbers.
        norm: a kind.
        flip: or not.
        fast: or slow.
        rate: a number.
    """


@pytest.fixture
def command() -> Command:
    example = Command("try", function, positional=("images",), groups={"numbers": ("batch_size", "rate")})
    example.add_config()
    example.add_switch("--dry-run", help="do nothing")
    return example


@pytest.mark.parametrize(
    ("command", "flag", "words"),
    [
        (finetune_command, "--eval-crop", "--eval-crop is 'x': expected a number or whole"),
        (pretrain_command, "--model-args", "--model-args is 'x': expected names and values, as in {output_stride: 16}"),
    ],
)
def test_types_of_several_kinds_are_named(command, flag, words):
    with pytest.raises(UsageError, match=words):
        command().parse([flag, "x"])


def test_of_a_run_that_goes_on_only_what_was_named_is_passed(tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 0\n")
    pretrain = pretrain_command()
    named = ["--resume", "run", "--device", "auto", "--mask-ratio=0.6", "--config", str(tmp_path / "c.yaml"), "-o", "x"]
    assert parse(pretrain, *named) == {"resume": "run", "device": "auto", "mask_ratio": 0.6, "seed": 0, "out": "x"}
    assert parse(pretrain, "--resume", "run", "-ox") == {"resume": "run", "out": "x"}
    assert parse(pretrain, "pictures", "--resume", "run") == {"images": "pictures", "resume": "run"}
    assert len(parse(pretrain, "pictures")) > 50


def test_a_rate_that_is_named_takes_the_place_of_the_other_kind_of_rate(tmp_path):
    rate, base = tmp_path / "rate.yaml", tmp_path / "base.yaml"
    rate.write_text("learning_rate: 0.5\nbase_learning_rate: null\nbatch_size: 8\n")
    base.write_text("base_learning_rate: 0.25\nbatch_size: 8\n")
    for flags, expected in (
        (["--config", str(base), "--learning-rate", "0.1"], (0.1, None)),
        (["--learning-rate=0.1", "--config", str(base)], (0.1, None)),
        (["--config", str(rate), "--base-learning-rate", "0.1"], (None, 0.1)),
        (["--config", str(base), "--config", str(rate)], (0.5, None)),
        (["--config", str(rate), "--config", str(base)], (None, 0.25)),
        (["--config", str(base), "--learning-rate", "0.1", "--base-learning-rate", "0.2"], (0.1, 0.2)),  # is refused
    ):
        values = parse(pretrain_command(), "pictures", *flags)
        assert (values["learning_rate"], values["base_learning_rate"]) == expected, flags
        assert values["batch_size"] == 8
    recipe = parse(finetune_command(), "--recipe", "resnet50_imagenet_finetune", "--learning-rate", "0.1")
    assert (recipe["learning_rate"], recipe["base_learning_rate"], recipe["epochs"]) == (0.1, None, 300)


def parse(command, *arguments):
    namespace = command.parse(arguments)
    return command.values(namespace)


def test_defaults_are_the_functions(command):
    assert parse(command) == {
        "images": None,
        "batch_size": 4,
        "size": 224,
        "betas": None,
        "stages": None,
        "shares": None,
        "norm": "batch",
        "flip": True,
        "fast": False,
        "rate": 0.5,
    }


def test_every_parameter_is_a_flag(command):
    values = parse(
        command,
        *"folder --batch-size 8 --size 192x256 --betas 0.9,0.95 --stages [a,b] --norm layer".split(),
        *"--flip false --rate=1e-3".split(),
    )
    assert values == {
        "images": "folder",
        "batch_size": 8,
        "size": "192x256",
        "betas": (0.9, 0.95),
        "stages": ["a", "b"],
        "shares": None,
        "norm": "layer",
        "flip": False,
        "fast": False,
        "rate": 1e-3,
    }
    assert parse(command, "--betas", "[0.9, 0.95]")["betas"] == (0.9, 0.95)


@pytest.mark.parametrize(
    ("arguments", "images", "fast"),
    [
        (["--fast"], None, True),
        (["--fast", "folder"], "folder", True),
        (["folder", "--fast", "--rate", "1"], "folder", True),
        (["--fast", "false", "folder"], "folder", False),
        (["--fast=no"], None, False),
    ],
)
def test_a_question_is_answered_yes_by_naming_it(command, arguments, images, fast):
    values = parse(command, *arguments)
    assert (values["images"], values["fast"]) == (images, fast)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ([], "null"),
        (["--cuda-graph"], "true"),
        (["--cuda-graph", "null"], "null"),
        (["--cuda-graph", "false"], "false"),
    ],
)
def test_so_is_one_that_may_be_left_open(flag, value, capsys):
    assert main(["pretrain", "--model", "test_resnet", "--print-config", *flag]) == 0
    assert f"cuda_graph: {value}" in capsys.readouterr().out


def test_every_parameter_is_a_key_and_flags_override_keys(command, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("images: here\nbatch_size: 16\nbetas: [0.1, 0.2]\nflip: false\nnorm: layer\nrate: 2\n")
    values = parse(command, "--config", str(config), "--batch-size", "32")
    assert (values["images"], values["batch_size"], values["betas"]) == ("here", 32, (0.1, 0.2))
    assert (values["flip"], values["norm"], values["rate"]) == (False, "layer", 2.0)
    assert parse(command, f"--config={config}", "there")["images"] == "there"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bach-size", "3"], r"--bach-size is not known \(did you mean --batch-size\?\)"),
        (["--batch_size", "3"], r"did you mean --batch-size\?"),
        (["--BATCH-SIZE", "3"], r"did you mean --batch-size\?"),
        (["--batch", "3"], r"did you mean --batch-size\?"),
        (["--dry-rum"], r"did you mean --dry-run\?"),
        (["--batch-size", "x"], "--batch-size is 'x': expected a whole number"),
        (["--batch-size", "1.5"], "--batch-size is '1.5': expected a whole number"),
        (["--rate", "fast"], "--rate is 'fast': expected a number"),
        (["--norm", "group"], "--norm is 'group': expected batch or layer"),
        (["--betas", "0.9"], "--betas is '0.9': expected two numbers"),
        (["--flip", "perhaps"], "--flip is 'perhaps': expected true or false"),
        (["--batch-size"], "--batch-size"),
        (["a", "b"], "one argument too many"),
        (["a", "--images", "b"], "images is 'a' and, by --images, 'b': name it once"),
        (["--config", "missing.yaml"], r"--config missing\.yaml cannot be read"),
    ],
)
def test_what_cannot_be_parsed_is_explained(command, arguments, words):
    with pytest.raises(UsageError, match=words):
        command.parse(arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "batchsize: 3\nratte: 1",
            r"'batchsize' is not known \(did you mean batch_size\?\); 'ratte'.*did you mean rate",
        ),
        ("batch_size: many", "--batch-size is 'many': expected a whole number"),
        ("- a\n- b", "holds a list"),
        ("a: [1", "is not YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_explained(command, tmp_path, text, words):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(UsageError, match=words):
        command.parse(["--config", str(config)])


def test_help_tells_types_defaults_and_groups(command, capsys):
    with pytest.raises(SystemExit):
        command.parse(["--help"])
    text = capsys.readouterr().out
    assert "numbers:\n  --batch-size N" in text and "of a step, on two lines. (default: 4)" in text
    assert "--norm {batch,layer}" in text and "100 % of them" in text


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        (["--stages", "layer1,layer2"], ["layer1", "layer2"]),
        (["--stages=layer1,layer2.0"], ["layer1", "layer2.0"]),
        (["--stages", "layer3"], ["layer3"]),
        (["--stages", "runs/a=b,layer3"], ["runs/a=b", "layer3"]),
        (["--stages", "runs/a=b"], ["runs/a=b"]),
        (["--stages", "[layer1, layer2]"], ["layer1", "layer2"]),
        (["--stages", "null"], None),
    ],
)
def test_lists_need_no_brackets(command, arguments, stages):
    assert parse(command, *arguments)["stages"] == stages


@pytest.mark.parametrize("arguments", [["--shares", "0.1"], ["--shares=0.1"], ["--shares", "[0.1]"]])
def test_a_list_of_a_single_number_needs_no_brackets(command, arguments):
    assert parse(command, *arguments)["shares"] == [0.1]


def test_lists_have_a_single_flag(command):
    assert "--shares" in command.parser.format_help() and "+" not in command.parser.format_help()
    with pytest.raises(UsageError, match=r"^--shares is 'many': expected numbers"):
        parse(command, "--shares", "many")


def test_numbers_of_a_tuple_need_no_brackets(command):
    values = parse(command, "--betas", "0.9,0.95", "folder,with,commas")
    assert values["betas"] == (0.9, 0.95) and values["images"] == "folder,with,commas"
