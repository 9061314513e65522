"""metrics.jsonl: whole lines, also after a kill, and never in somebody else's file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.errors import PersiaError
from persia_hpc.reporting.events import JsonLines

EVENTS: list[dict[str, Any]] = [{"event": "train", "step": i, "text": "ä" * (i % 3)} for i in range(4)]


def append(path: Path, event: dict[str, Any]) -> None:
    log = JsonLines(path)
    log.open()
    log.log(event)
    log.close()


@settings(deadline=None)
@given(cut=st.integers(0, 200), tail=st.sampled_from([b"", b"\0\0\0", b"\xff", b"x" * 200_000]))
def test_after_a_kill_at_any_byte_every_line_is_an_event(
    cut: int, tail: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in EVENTS)
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    path.write_bytes(whole[:cut] + tail)
    append(path, {"event": "resume"})
    read = [json.loads(line) for line in path.read_bytes().splitlines()]
    # An event of which only the newline is missing is whole, unless something else follows it.
    lines = whole[:cut].split(b"\n")
    is_event = not tail and lines[-1] in whole.split(b"\n") and lines[-1] != b""
    kept = len(lines) - 1 + is_event
    assert read == [*EVENTS[:kept], {"event": "resume"}]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_elsewhere_is_not_written_through_a_link(link: Any, tmp_path: Path) -> None:
    elsewhere, path = tmp_path / "archive.jsonl", tmp_path / "metrics.jsonl"
    elsewhere.write_text('{"event": "train"}\nhalf')
    link(elsewhere, path)
    append(path, {"event": "resume"})
    assert elsewhere.read_text() == '{"event": "train"}\nhalf'
    assert path.read_text() == '{"event": "train"}\n{"event": "resume"}\n'


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(PersiaError, match=r"can't write .*metrics\.jsonl"):
        JsonLines(tmp_path / "metrics.jsonl").open()
