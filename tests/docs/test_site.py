"""The site is built from docs/ without a dead link, and says what the commands say."""

import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from pages import PAGES, ROOT

from convspark.cli.main import COMMANDS


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build("docs", folder)
    return folder


def build(source: str | Path, folder: Path) -> None:
    arguments = ["-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", str(source), str(folder)]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_page_is_built_and_can_be_reached(site: Path) -> None:
    index = (site / "index.html").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file()
        assert page.stem == "index" or f'href="{page.stem}.html"' in index, page.stem


def test_the_command_line_is_what_help_prints(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from convspark.cli.main import main

    shown = unescape(re.sub("<.*?>", "", (site / "commands.html").read_text()))
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        printed = capsys.readouterr().out
        assert printed.rstrip() in shown, command


@pytest.mark.slow
def test_a_dead_link_is_an_error(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs" / "site", tmp_path / "docs" / "site")
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path / "docs")
    page = tmp_path / "docs" / "index.md"
    page.write_text("# A title\n\n[There](#a-title).\n")
    build(tmp_path / "docs", tmp_path / "built")
    for dead in ("#no-title", "nowhere.md"):
        page.write_text(f"# A title\n\n[There]({dead}).\n")
        with pytest.raises(AssertionError, match="target not found"):
            build(tmp_path / "docs", tmp_path / "built")


def slug(title: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_on_github_too(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        if anchor:
            assert anchor in {slug(title) for title in re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)}, (
                target
            )
