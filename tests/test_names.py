"""Names of any characters, as they are shown."""

import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convspark.names import many, shown, shown_in_markdown, shown_text
from convspark.runs.logs import run_log

HOSTILE = {
    "\x1b[31mred": "\\x1b[31mred",
    "new\nline": "new\\nline",
    "nel\x85": "nel\\x85",
    "sep\u2028": "sep\\u2028",
    "left\u202egnp": "left\\u202egnp",
    b"\xff".decode("utf-8", "surrogateescape"): "\\udcff",
    "lone\ud800": "lone\\ud800",
    "é 中\u3000🚀 \xa0$x_1$ <b>": "é 中\u3000🚀 \xa0$x_1$ <b>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_controls_a_terminal_is_written_out_and_the_rest_stays(name):
    assert shown(name) == HOSTILE[name] == shown(shown(name))


@given(st.text(st.characters()))
def test_nothing_that_is_shown_can_control_anything_or_lacks_an_encoding(name):
    for line in (shown(name), *shown_text(name).replace("\t", " ").split("\n")):
        line.encode()
        assert len(line.splitlines()) <= 1
        assert not any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in line)


def test_markdown_has_no_markup_of_names():
    assert shown_in_markdown("a|b <i> $x$ *c* _d_ [e](f)") == r"a\|b \<i\> \$x\$ \*c\* \_d\_ \[e\](f)"
    assert shown_in_markdown("random:test_resnet") == "random:test_resnet"


def test_a_single_one_is_no_plural():
    assert [many(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    assert [many(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]


def test_a_log_holds_no_control_characters(tmp_path, capfd):
    with run_log() as log:
        log.write_to(tmp_path / "log.txt")
        for name in HOSTILE:
            logging.getLogger("convspark.x").warning("two lines,\n%s", name)
    for text in ((tmp_path / "log.txt").read_bytes().decode(), capfd.readouterr().err):
        assert "\x1b" not in text and "\u202e" not in text
    assert "\\x1b[31mred" in (tmp_path / "log.txt").read_text()
