"""The last line of a terminal: never wider than it, the most important parts first."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.reporting.progress_line import ProgressLine, cells, fitted, terminal_width

PARTS = ["step 5 of 10", "3 min left", "loss 0.5000", "auc 0.7000"]


@given(
    st.none() | st.floats(-1, 2),
    st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=20), max_size=6),
    st.integers(0, 200),
)
def test_no_line_is_wider_than_its_terminal(share: float | None, parts: list[str], width: int) -> None:
    line = fitted(share, parts, width)
    assert cells(line) <= width
    assert not any(unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp") for each in line)


@pytest.mark.parametrize("width", range(1, 120))
def test_the_first_parts_stay_longest(width: int) -> None:
    line = fitted(0.5, PARTS, width)
    shown = [part in line for part in PARTS]
    assert shown == sorted(shown, reverse=True)
    assert not line or line.startswith(" 50%")
    if width >= 60:
        assert "[###" in line
    if width >= 80:
        assert all(shown)


def test_a_bar_is_filled_by_its_share() -> None:
    for share in (0.0, 0.25, 0.5, 1.0):
        bar = fitted(share, ["x"], 60).partition("[")[2].partition("]")[0]
        assert len(bar) == 20
        assert bar.count("#") == 20 * share


class Terminal(io.StringIO):
    """Shows what a terminal would: a carriage return goes back to the beginning of the line."""

    def screen(self) -> list[str]:
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for piece in line.split("\r"):
                shown = piece + shown[len(piece) :]
            lines.append(shown.rstrip())
        return lines


def test_lines_above_stay_and_the_last_one_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    line = ProgressLine(stream)
    line.draw(0.1, ["a long text that is replaced by a shorter one"])
    line.draw(0.2, ["short"])
    line.print("said")
    assert stream.screen() == ["said", fitted(0.2, ["short"], 79)]
    line.clear()
    assert stream.screen() == ["said", ""]
    line.draw(1.0, ["done"])
    line.end()
    line.end()
    assert stream.screen() == ["said", fitted(1.0, ["done"], 79), ""]
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize(("columns", "width"), [("", 80), ("x", 80), ("0", 80), ("123", 123), ("9" * 30, 80)])
def test_width_of_what_is_no_terminal(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal_width(io.StringIO()) == width
