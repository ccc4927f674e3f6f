"""Model cards: what weights were trained on, how, and what came out, as a page beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import Pixels
from ..names import shown, shown_in_markdown, shown_text

_OF_IMAGES = ("image size", "mean", "std")  # the last rows of every card


def card_of(pixels: Pixels) -> dict[str, str]:
    """What a card says of how files are read, unless they are plain pictures."""
    if pixels.is_plain:
        return {}
    bands = f"bands {', '.join(map(str, pixels.bands))} of each file" if pixels.bands else "all bands of each file"
    facts = {"channels": f"{pixels.channels}: {bands}, as they are stored"}
    if pixels.low is not None and pixels.high is not None:
        facts["values that count as 0"] = _numbers(pixels.low)
        facts["values that count as 1"] = f"{_numbers(pixels.high)}; what is beyond is cut off"
    else:
        facts["values"] = "whole numbers as shares of their type's largest value, floats as they are"
    return facts | {"missing values": "NaN, infinite, or GDAL's value for no data: the channel's mean"}


def read_facts(folder: Path) -> dict[str, str]:
    """The facts in the card of an export folder (data, command, metrics); empty where there is no card."""
    file = folder / "README.md"
    if not file.is_file():
        return {}
    rows = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = (row[2:-2].replace("\\|", "\0").split(" | ", 1) for row in rows)
    facts = {cell[0]: cell[1].replace("\0", "|") for cell in cells if len(cell) == 2}
    return {name: value for name, value in facts.items() if name not in _OF_IMAGES}


def file_card(
    name: str,
    target: str,
    use: str,
    facts: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    image_size: tuple[int, int],
    classes: Sequence[str] = (),
) -> str:
    """The card of a file for another library.

    Args:
        name: of the network.
        target: torchvision, onnx, detectron2 or mmdet.
        use: how that library loads it.
        classes: that its outputs stand for.
    """
    told = (
        f"The classes, in the order of the outputs: {', '.join(map(shown_in_markdown, classes))}."
        if classes
        else "It has no classifier."
    )
    lines = [f"# {name} for {target}", "", told, "", "```", use, "```", "", *_table(facts, mean, std, image_size)]
    return shown_text("\n".join(lines) + "\n")


def _introduction(name: str, classes: Sequence[str] | None) -> list[str]:
    if classes is None:
        return [
            "tags: [image-feature-extraction, self-supervised, masked-image-modelling, spark]",
            "---",
            "",
            f"# {name}, pre-trained by masked image modelling",
            "",
            "Pre-trained with convspark (SparK: masked image modelling for convolutional networks). It has no",
            "classifier: fine-tune it, or use its features.",
        ]
    more = f" and {len(classes) - 20} more (config.json)" if len(classes) > 20 else ""
    told = ", ".join(map(shown_in_markdown, classes[:20])) + more
    return [
        "tags: [image-classification]",
        "---",
        "",
        f"# {name}, fine-tuned for {len(classes)} classes",
        "",
        f"Fine-tuned with convspark. The classes, in the order of the outputs: {told}.",
    ]


def timm_card(
    architecture: str | None,
    folder: Path,
    untrained: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    image_size: tuple[int, int],
    facts: Mapping[str, Any],
    classes: Sequence[str] | None,
) -> str:
    """The model card of a folder for timm, with the front matter that model hubs read."""
    library = "timm" if architecture else "pytorch"
    lines = [
        "---",
        f"library_name: {library}",
        *_introduction(architecture or "A convolutional network", classes),
        "",
        "```python",
    ]
    if architecture:
        lines += [
            "import timm",
            "",
            f'backbone = timm.create_model("local-dir:{folder}", pretrained=True)',
            "# pretrained=True is needed: without it timm builds the network and silently loads nothing",
        ]
    else:
        lines += [
            "from safetensors.torch import load_file",
            "",
            f'network.load_state_dict(load_file("{folder / "model.safetensors"}"))',
        ]
    lines += ["```", "", *_table(facts, mean, std, image_size), "", "## Not trained", ""]
    if untrained:
        lines += [
            f"{len(untrained)} tensors lie behind the deepest feature map, where pre-training does not reach. They",
            "have the values they started with:",
            "",
            *(f"* `{name}`" for name in untrained),
        ]
    else:
        lines += ["Every tensor in this folder was trained."]
    return shown_text("\n".join(lines) + "\n")


def _table(
    facts: Mapping[str, Any], mean: Sequence[float], std: Sequence[float], image_size: tuple[int, int]
) -> list[str]:
    of_images = f"{image_size[0]}x{image_size[1]} pixels", _numbers(mean), _numbers(std)
    rows = {**facts, **dict(zip(_OF_IMAGES, of_images, strict=True))}
    cells = [(name, shown(value).replace("|", "\\|")) for name, value in rows.items()]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells)]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
