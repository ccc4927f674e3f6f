"""`convspark report`."""

import json
from collections.abc import Sequence

from ..names import shown
from ..pretraining.settings import PretrainSettings
from ..report.page import Known, report
from ..tasks.classification.settings import FinetuneSettings
from ..tasks.comparison.settings import CompareSettings
from ..tasks.detection.settings import DetectSettings
from ..tasks.segmentation.settings import SegmentSettings
from .arguments import Command

KNOWN: Known = {
    settings.kind: settings
    for settings in (PretrainSettings, FinetuneSettings, DetectSettings, SegmentSettings, CompareSettings)
}


def _report(runs: list[str], *, out: str | None = None, watch: bool = False, every: float = 30.0) -> None:
    """Write a page about runs: one HTML file with curves and pictures, which needs no other file.

    Args:
        runs: run folders, or folders of them; several are shown side by side.
        out: HTML file to write, an existing one is replaced; by default report.html, in the run's folder or, for
            several runs, in the current folder.
        watch: write the page again and again while a run goes on.
        every: seconds between two times, with watch.
    """
    raise NotImplementedError  # it describes the arguments


def command() -> Command:
    command = Command("report", _report, types={"runs": None})
    command.parser.usage = "convspark report RUN... [options]"
    command.add_switch("--json", help="print the place of the page as JSON")
    command.parser.add_argument("runs", metavar="RUN", nargs="*", help="run folders, or folders of them")
    return command


def run(arguments: Sequence[str]) -> int:
    parser = command()
    options = parser.parse(arguments)
    page, count = report(options.runs, KNOWN, **parser.values(options))
    summary = {"page": str(page), "runs": count, "bytes": page.stat().st_size}
    print(json.dumps(summary, indent=2) if options.json else f"{shown(page)}  ({summary['bytes'] / 1e6:.1f} MB)")
    return 0
