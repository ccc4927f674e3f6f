"""The page about runs in a browser: axe-core's rules for keyboards and screen readers, light and dark, two widths."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from report.test_page import make

from convspark.cli.report import KNOWN
from convspark.report.page import report

axe = pytest.importorskip("axe_core_python", reason="no axe-core")
SCRIPT = Path(axe.__file__).with_name("axe.min.js")

# Its last line is the verdict, in the page itself: the browser is asked for nothing but the page.
ASK = """
axe.run().then(({ violations, passes }) => {
  const rules = (outcomes) => Object.fromEntries(outcomes.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]));
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.body.dataset.verdict = JSON.stringify({ dark, width: innerWidth, wide: document.documentElement.scrollWidth,
    passes: Object.keys(rules(passes)), violations: rules(violations) });
});
"""


def verdict(page: Path, dark: bool, width: int) -> dict:
    """What axe-core says of a page as it stands in Chromium, after its scripts have run."""
    asking = page.with_name("asking.html")
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", text)  # it lets no script in but its own
    script = SCRIPT.read_text(encoding="utf-8").replace("</script", "<\\/script")
    asking.write_text(
        text.replace("</body>", f"<script>{script}</script><script>{ASK}</script></body>"), encoding="utf-8"
    )
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    command += [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command += ["--virtual-time-budget=20000", "--dump-dom", asking.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    stored = re.search(r'<body[^>]* data-verdict="([^"]*)"', done.stdout)
    assert stored is not None, "the browser ended before the verdict"
    return json.loads(unescape(stored[1]))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium")
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 500)])
def test_no_rule_is_violated(tmp_path, dark, width):
    runs = [make(tmp_path / "first"), make(tmp_path / "second", mask_ratio=0.75), make(tmp_path / "task", "finetune")]
    (runs[1] / "warnings.csv").write_text("epoch,step,kind,text\n2,20,flat,the loss is flat\n")
    (runs[2] / "results.json").write_text(json.dumps({"top1": 0.5, "recall": {"<b>": 0.25}}))
    page, _ = report([str(run) for run in runs], KNOWN, out=str(tmp_path / "page.html"))
    outcome = verdict(page, dark, width)
    assert outcome["violations"] == {}
    assert {"color-contrast", "image-alt", "label", "heading-order"} <= set(
        outcome["passes"]
    )  # there was something to judge
    assert (outcome["dark"], outcome["width"]) == (dark, width) and outcome["wide"] <= width
