"""`convspark reconstruct`."""

from collections.abc import Sequence

from ..names import shown_text
from ..pretraining.reconstruct import reconstruct
from .arguments import Command


def command() -> Command:
    types = {"run": None, "pictures": None, "output": None, "model": str | None}
    command = Command("reconstruct", reconstruct, types=types)
    command.parser.usage = "convspark reconstruct RUN PICTURE... [-o grid.png] [options]"
    command.parser.add_argument(
        "run", metavar="RUN", help="run folder of a pre-training, or one of the paper's files with a decoder"
    )
    command.parser.add_argument(
        "pictures", metavar="PICTURE", nargs="+", help="picture files, or folders, lists and archives of them"
    )
    command.parser.add_argument(
        "-o", "--output", type=str, default="reconstructions.png", help="PNG file to write; an existing one is replaced"
    )
    return command


def run(arguments: Sequence[str]) -> int:
    parser = command()
    options = parser.parse(arguments)
    values = parser.values(options)
    print(shown_text(reconstruct(options.run, options.pictures, output=options.output, **values)))
    return 0
