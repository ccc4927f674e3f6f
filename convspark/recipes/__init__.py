"""Settings of published runs, by name: `--recipe NAME`, `convspark recipes`, `convspark.recipe(NAME)`. No torch here.

A file has a family of recipes of one command: settings that all of them share, those that a group shares, and facts and
settings of each recipe. The most particular setting counts.
"""

import copy
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from ..arguments import checked_arguments
from ..errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """The settings of a run, and what is known of it.

    Attributes:
        name: as `--recipe` takes it.
        command: whose settings they are.
        network, data: in words.
        result: of the run, in brief, as the paper says; empty where it says nothing of the run itself.
        cost: what it took; empty where that is not known.
        note: anything else that a user should know.
        then: recipes that start from its weights.
        settings: arguments of the command, as YAML has them.
    """

    name: str
    command: str
    network: str
    data: str
    result: str = ""
    cost: str = ""
    note: str = ""
    then: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def outcome(self) -> str:
        """Its own result, or that of the recipe that starts from its weights."""
        return self.result or (f"then {all_recipes()[self.then[0]].result}" if self.then else "")

    def as_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self) | {"result": self.outcome, "then": list(self.then)}

    def as_yaml(self) -> str:
        """A config file for `--config` with the same settings, under the facts."""
        facts = {
            "recipe": f"{self.name}: {self.network}, {self.data}",
            "command": f"convspark {self.command} ... --recipe {self.name}",
            "then": ", ".join(self.then),
            "result": self.outcome,
            "cost": self.cost or "not measured",
            "note": self.note,
        }
        lines = [f"# {name:9} {value}\n" for name, value in facts.items() if value]
        for key, value in {"kind": self.command, **self.settings}.items():
            lines.append(yaml.safe_dump({key: value}, default_flow_style=None if isinstance(value, list) else False))
        return "".join(lines)


@checked_arguments
def recipe(name: str) -> dict[str, Any]:
    """The settings of a published run, as arguments.

    For example `convspark.pretrain("images", **convspark.recipe("resnet50_imagenet") | {"epochs": 800})`.

    Raises:
        UsageError: no such recipe; the nearest names are suggested.
    """
    return copy.deepcopy(dict(find_recipe(name).settings))


def find_recipe(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        UsageError: there is none; the nearest names are suggested.
    """
    known = all_recipes()
    if name not in known:
        nearest = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "`convspark recipes` lists them"
        raise UsageError(f"recipe is {name!r}, which is not known; {hint}")
    return known[name]


@cache
def all_recipes() -> dict[str, Recipe]:
    """Every recipe, by name, in the order of the files."""
    recipes: dict[str, Recipe] = {}
    for family in ("pretraining", "finetuning", "detection", "small"):
        content = yaml.safe_load(files(__name__).joinpath(f"{family}.yaml").read_text(encoding="utf-8"))
        shared = {"command": content["command"], "data": content["data"]}
        for group in content["groups"]:
            for name, own in group["recipes"].items():
                settings = {**content["shared"], **group["shared"], **own.pop("settings")}
                recipes[name] = Recipe(name, **shared, **own | {"then": tuple(own.get("then", ()))}, settings=settings)
    return recipes
