"""`convspark figures`."""

from collections.abc import Sequence

from ..measure.figures import figures
from ..names import shown_text
from .arguments import Command


def command() -> Command:
    types = {"network": None, "pictures": None, "output": None, "model": str | None}
    command = Command("figures", figures, types=types)
    command.parser.usage = "convspark figures RUN|MODEL PICTURE... [-o figures] [options]"
    command.parser.add_argument(
        "network",
        metavar="RUN|MODEL",
        help="run folder, weights file or export; or a network's name, with random weights unless --weights is set",
    )
    command.parser.add_argument("pictures", metavar="PICTURE", nargs="+", help="picture files, or folders of them")
    command.parser.add_argument(
        "-o", "--output", type=str, default="figures", help="folder to write into; files of the same names are replaced"
    )
    return command


def run(arguments: Sequence[str]) -> int:
    parser = command()
    options = parser.parse(arguments)
    values = parser.values(options)
    print(shown_text(figures(options.network, options.pictures, output=options.output, **values)))
    return 0
