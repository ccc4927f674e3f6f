"""`convspark reconstruct`."""

from collections.abc import Sequence

from ..pretraining.reconstruct import reconstruct
from .arguments import Command


def command() -> Command:
    types = {"run": None, "pictures": None, "output": None, "model": str | None}
    made = Command("reconstruct", reconstruct, types=types)
    made.parser.usage = "convspark reconstruct RUN PICTURE... [-o grid.png] [options]"
    made.parser.add_argument(
        "run", metavar="RUN", help="run folder of a pre-training, or a file of the paper with a decoder"
    )
    made.parser.add_argument(
        "pictures", metavar="PICTURE", nargs="+", help="picture files, or folders, lists and archives of them"
    )
    made.parser.add_argument(
        "-o", "--output", type=str, default="reconstructions.png", help="PNG file to write; an existing one is replaced"
    )
    return made


def run(arguments: Sequence[str]) -> int:
    made = command()
    given = made.parse(arguments)
    values = made.values(given)
    print(reconstruct(given.run, given.pictures, output=given.output, **values))
    return 0
