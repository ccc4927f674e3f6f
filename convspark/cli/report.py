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
    each.kind: each for each in (PretrainSettings, FinetuneSettings, DetectSettings, SegmentSettings, CompareSettings)
}


def _report(runs: list[str], *, out: str | None = None, watch: bool = False, every: float = 30.0) -> None:
    """Write a page about runs: one HTML file, curves and pictures in it, that needs nothing else.

    Args:
        runs: run folders, or folders of them; several are shown side by side.
        out: HTML file to write; by default report.html in the run's folder, of several runs in the working folder.
        watch: write it again while a run goes on.
        every: seconds between that.
    """
    raise NotImplementedError  # it describes the arguments


def command() -> Command:
    made = Command("report", _report, types={"runs": None})
    made.parser.usage = "convspark report RUN... [options]"
    made.add_switch("--json", help="print where the page is as JSON")
    made.parser.add_argument("runs", metavar="RUN", nargs="*", help="run folders, or folders of them")
    return made


def run(arguments: Sequence[str]) -> int:
    made = command()
    given = made.parse(arguments)
    page, count = report(given.runs, KNOWN, **made.values(given))
    found = {"page": str(page), "runs": count, "bytes": page.stat().st_size}
    print(json.dumps(found, indent=2) if given.json else f"{shown(page)}  ({found['bytes'] / 1e6:.1f} MB)")
    return 0
