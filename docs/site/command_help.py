"""A directive for the site: what `convspark COMMAND --help` prints, of every command, as it is now."""

import contextlib
import io

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from convspark.cli.main import COMMANDS, main


class CommandHelp(SphinxDirective):
    """A section for each command, with its help."""

    def run(self) -> list[nodes.Node]:
        return [self._section(name, summary) for name, (_, summary) in COMMANDS.items()]

    def _section(self, name: str, summary: str) -> nodes.Node:
        section = nodes.section(ids=[name])
        self.state.document.note_explicit_target(section)
        section += nodes.title(text=name)
        section += nodes.paragraph(text=f"{summary[0].upper()}{summary[1:]}.")
        section += nodes.literal_block(text=help_of(name), language="text")
        return section


def help_of(command: str) -> str:
    """What a command prints for `--help`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main([command, "--help"])
    if code:
        raise RuntimeError(f"`convspark {command} --help` ended with {code}")
    return printed.getvalue().rstrip()


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
