"""Text from files reaches a terminal as text, never as a command to it."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.printable import LINES, printable


@given(st.text(st.characters()))
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    shown = printable(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    shown.encode()  # halves of pairs can't be
    assert printable(shown) == shown


@given(st.text(st.characters(categories=["L", "N", "P", "S", "M", "Zs"])))
def test_what_can_be_read_stays(text: str) -> None:
    assert printable(text) == text


def test_examples() -> None:
    assert printable("a\x1b[2Jb\rc\nd\x9b\u202e\udcff") == r"a\x1b[2Jb\rc\nd\x9b\u202e\udcff"
    assert printable("a\n\tb\x07", LINES) == "a\n\tb\\x07"
    assert printable(7) == "7"
