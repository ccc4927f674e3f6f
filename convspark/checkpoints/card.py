"""Model cards, pages beside weights: what they were trained on, how, and what came out."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import Pixels
from ..names import in_code, shown, shown_in_markdown, shown_text

_PRETRAINED = "pre-trained on"
_PRETRAINED_TAGS = ["self-supervised", "masked-image-modelling", "spark"]
_NOT_TRAINED = "## Not trained"
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
    """The facts in the card of an export folder (data, command, metrics); empty where there is no card of ours."""
    file = folder / "README.md"
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8", errors="replace")  # it may be somebody's own
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    cells = (row[2:-2].replace("\\|", "\0").split(" | ", 1) for row in rows)
    facts = {cell[0]: cell[1].replace("\0", "|") for cell in cells if len(cell) == 2}
    if not facts.keys() >= {*_OF_IMAGES}:
        return {}
    return {name: value for name, value in facts.items() if name not in _OF_IMAGES}


def read_untrained(folder: Path) -> list[str]:
    """The names of the tensors that were not trained, as the card of an export folder lists them."""
    _, _, end = (folder / "README.md").read_text(encoding="utf-8").partition(f"\n{_NOT_TRAINED}\n")
    return re.findall(r"^\* `(.+)`$", end, re.MULTILINE)


def file_card(
    name: str,
    target: str,
    use: str,
    facts: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    image_size: tuple[int, int],
    classes: Sequence[str] = (),
    untrained: Sequence[str] = (),
) -> str:
    """The card of a file for another library.

    Args:
        name: of the network.
        target: torchvision, onnx, detectron2 or mmdet.
        use: how that library loads it.
        classes: what its outputs stand for.
        untrained: the backbone's names of tensors in the file that pre-training does not reach.
    """
    if classes:
        outputs = f"The classes, in the order of the outputs: {', '.join(map(shown_in_markdown, classes))}."
    elif untrained:
        names = ", ".join(f"`{name}`" for name in untrained)
        outputs = f"Pre-training does not reach these tensors, which have the values they started with: {names}."
    else:
        outputs = "It has no classifier."
    lines = [f"# {name} for {target}", "", outputs, "", "```", use, "```", "", *_table(facts, mean, std, image_size)]
    return shown_text("\n".join(lines) + "\n")


def _head(library: str, facts: Mapping[str, Any], classes: Sequence[str] | None) -> list[str]:
    """The front matter that model hubs read; what only the user can know is marked."""
    task = "image-feature-extraction" if classes is None else "image-classification"
    kind = ["fine-tuned"] if classes is not None else _PRETRAINED_TAGS if _PRETRAINED in facts else []
    return [
        "---",
        f"library_name: {library}",
        f"pipeline_tag: {task}",
        f"tags: [{', '.join([*dict.fromkeys((library, task)), *kind, 'convspark'])}]",
        "license: other  # to fill in: that of these weights, such as apache-2.0; it depends on your pictures",
        "license_name: not-chosen-yet",
        "datasets: []  # to fill in, where they are published",
        *([] if classes is None else ["metrics: [accuracy]"]),
        "---",
        "",
    ]


def _introduction(name: str, facts: Mapping[str, Any], classes: Sequence[str] | None) -> list[str]:
    if classes is None and _PRETRAINED not in facts:
        return [
            f"# {name}",
            "",
            "Written by convspark, without a classifier. Where the weights are from is in the table below.",
        ]
    if classes is None:
        return [
            f"# {name}, pre-trained by masked image modelling",
            "",
            "Pre-trained with convspark (SparK: masked image modelling for convolutional networks). It has no",
            "classifier: fine-tune it, or use its features.",
        ]
    more = f" and {len(classes) - 20} more (config.json)" if len(classes) > 20 else ""
    names = ", ".join(map(shown_in_markdown, classes[:20])) + more
    return [
        f"# {name}, fine-tuned for {len(classes)} classes",
        "",
        f"Fine-tuned with convspark. The classes, in the order of the outputs: {names}.",
    ]


def _limits(facts: Mapping[str, Any], classes: Sequence[str] | None) -> list[str]:
    if classes is None and _PRETRAINED not in facts:
        return ["What these weights have learnt, and of which pictures, is known where they are from."]
    if classes is None:
        return [
            "Pre-training saw the pictures named above alone, and no labels. What it has learnt is of such pictures;",
            "whether it helps a task is to be measured (`convspark compare`). Batch norms, if it has any, hold the",
            "statistics of visible patches.",
        ]
    return [
        "The figures above are of pictures like those trained on; on others it may do worse, and it names one of its",
        "classes whatever a picture shows. Nobody has looked at it for unfairness.",
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
        *_head(library, facts, classes),
        *_introduction(architecture or "A convolutional network", facts, classes),
        "",
        "## Use",
        "",
        "```python",
    ]
    if architecture:
        lines += [
            "import timm",
            "",
            f"backbone = timm.create_model({in_code(f'local-dir:{folder}')}, pretrained=True)",
            "# pretrained=True is needed: without it timm builds the network and silently loads nothing.",
            '# From a hub, after `hf upload NAME FOLDER`: timm.create_model("hf-hub:NAME", pretrained=True)',
        ]
    else:
        lines += [
            "from safetensors.torch import load_file",
            "",
            f"network.load_state_dict(load_file({in_code(folder / 'model.safetensors')}))",
        ]
    lines += ["```", "", "## Training and results", "", *_table(facts, mean, std, image_size)]
    lines += ["", "## Limits", "", *_limits(facts, classes), "", _NOT_TRAINED, ""]
    if untrained:
        lines += [
            f"{len(untrained)} tensors lie after the deepest feature map, where pre-training does not reach. They",
            "have the values they started with:",
            "",
            *(f"* `{name}`" for name in untrained),
        ]
    elif classes is None and _PRETRAINED not in facts:
        lines += ["Not known."]
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
