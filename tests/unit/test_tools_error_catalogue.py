"""docs/errors.md has every message of an error, and quotes none that the source doesn't have."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("error_catalogue", ROOT / "tools" / "error_catalogue.py")
assert _spec is not None
assert _spec.loader is not None
error_catalogue = importlib.util.module_from_spec(_spec)
sys.modules["error_catalogue"] = error_catalogue  # its dataclass looks there
_spec.loader.exec_module(error_catalogue)
CHAPTERS, MARK, PAGE = error_catalogue.CHAPTERS, error_catalogue.MARK, error_catalogue.PAGE
catalogue, main, page = error_catalogue.catalogue, error_catalogue.main, error_catalogue.page


def test_the_page_is_what_the_source_says() -> None:
    assert (ROOT / PAGE).read_text() == page(ROOT), "a message has changed: run `make errors`"


def test_words_that_people_quote_are_in_the_source() -> None:
    head = (ROOT / PAGE).read_text().partition(MARK)[0]
    rows = [line.split("|")[1] for line in head.splitlines() if line.startswith('| "')]
    quoted = [words for row in rows for words in re.findall(r'"([^"]+)"', row)]
    assert len(quoted) >= 10
    said = "\n".join(message for messages in catalogue(ROOT).values() for message in messages)
    source = "\n".join(path.read_text() for path in (ROOT / "src/persia_hpc").rglob("*.py"))
    assert [words for words in quoted if words not in said and words not in source] == []


SOURCE = """
class OwnError(DataError):
    pass

def unreadable(path, error):
    reason = error.strerror
    return UserError(f"{path} can't be read: {reason}; name another file")

def check(options, path):
    problem = "first text, which isn't meant here"
    if options.number < 1:
        raise UserError(f"--number {options.number}: expected {'at least 1' if path else 'more'}")
    problem = f"{path} has {len(options)} columns"
    try:
        raise OwnError(problem + "; expected one")
    except OSError as error:
        raise unreadable(options.schema, error) from None
    raise fail(("train", "lr"), f"= {options.lr}: expected a value above 0")
    raise UserError(str(error))
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / error_catalogue.SOURCE / "samples"
    folder.mkdir(parents=True)
    (folder / "some.py").write_text(SOURCE)
    (tmp_path / "docs").mkdir()
    (tmp_path / PAGE).write_text(f"# Errors\n\nWords.\n\n{MARK}\nold\n")
    return tmp_path


def test_messages_are_told_with_what_fills_them_in_capitals(repository: Path) -> None:
    assert catalogue(repository) == {
        **{chapter: [] for chapter in CHAPTERS},
        "Reading data": [
            "--number NUMBER: expected at least 1",
            "PATH has N columns; expected one (exit code 3)",
            "SCHEMA can't be read: REASON; name another file",
            "train.lr = LR: expected a value above 0",
        ],
    }


def test_a_stale_page_is_named_and_written_anew(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(repository)]) == 1
    assert "run `make errors`" in capsys.readouterr().err
    assert main([str(repository), "--write"]) == 0
    text = (repository / PAGE).read_text()
    assert text.startswith(f"# Errors\n\nWords.\n\n{MARK}\n\n## Configuration\n")
    assert "- --number NUMBER: expected at least 1\n" in text
    assert "old" not in text
    assert main([str(repository)]) == 0
