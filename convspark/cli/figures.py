"""`convspark figures`."""

from collections.abc import Sequence

from ..measure.figures import figures
from ..names import shown_text
from .arguments import Command


def command() -> Command:
    types = {"network": None, "pictures": None, "output": None, "model": str | None}
    made = Command("figures", figures, types=types)
    made.parser.usage = "convspark figures RUN|MODEL PICTURE... [-o figures] [options]"
    made.parser.add_argument(
        "network",
        metavar="RUN|MODEL",
        help="run folder, weights file or export; or a network's name, with random weights unless --weights says more",
    )
    made.parser.add_argument("pictures", metavar="PICTURE", nargs="+", help="picture files, or folders of them")
    made.parser.add_argument(
        "-o", "--output", type=str, default="figures", help="folder to write into; files of the same names are replaced"
    )
    return made


def run(arguments: Sequence[str]) -> int:
    made = command()
    given = made.parse(arguments)
    values = made.values(given)
    print(shown_text(figures(given.network, given.pictures, output=given.output, **values)))
    return 0
