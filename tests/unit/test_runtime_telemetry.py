"""Telemetry writes a rank's counts as whole lines when they are due, and never ends a run."""

from __future__ import annotations

import json
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from persia_hpc.runtime.phases import Phases
from persia_hpc.runtime.telemetry import Counts, Telemetry, resident_bytes

NOTHING = Counts(0)


class Rank:
    """Counts like a rank; its clock is set by hand."""

    def __init__(
        self, run_dir: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, counted: Counts = NOTHING
    ):
        self.now, self.counts = 100.0, counted
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        self.telemetry = Telemetry(run_dir, "parameter_server", 3, seconds)
        self.phases = Phases(("idle", "pull"))
        self.telemetry.begin(self.phases, lambda: self.counts)

    def work(self, phase: str, seconds: float) -> None:
        begin, self.now = self.now, self.now + seconds
        self.phases.add(phase, begin)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.telemetry.path.read_text().splitlines()]


def test_lines_have_sums_what_they_grew_by_and_shares_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = Rank(tmp_path, monkeypatch, seconds=10)
    rank.counts = Counts(5, {"rows": 7}, {"pulls": 40})
    rank.work("idle", 9)
    assert not rank.telemetry.path.exists()
    rank.work("pull", 11)
    rank.counts = Counts(9, {"rows": 6}, {"pulls": 65})
    rank.work("pull", 2.5)
    assert len(rank.lines()) == 1
    rank.work("idle", 10)
    first, second = rank.lines()
    assert (first["role"], first["rank"], first["step"], first["rows"], first["pulls"]) == (
        "parameter_server",
        3,
        5,
        7,
        40,
    )
    assert first["pulls_per_second"] == 40 / 20
    assert (first["idle_share"], first["pull_share"]) == (9 / 20, 11 / 20)
    assert (second["step"], second["rows"], second["pulls"]) == (9, 6, 65)
    assert second["pulls_per_second"] == 25 / 12.5
    assert (second["idle_share"], second["pull_share"]) == (10 / 12.5, 2.5 / 12.5)
    assert second["rss_bytes"] > 1 << 20


def test_what_an_earlier_start_has_counted_is_no_growth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = Rank(tmp_path, monkeypatch, 10, Counts(500, {}, {"pulls": 1_000_000}))
    rank.counts = Counts(520, {}, {"pulls": 1_000_040})
    rank.work("pull", 20)
    (line,) = rank.lines()
    assert (line["pulls"], line["pulls_per_second"]) == (1_000_040, 2)


def test_no_seconds_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = Rank(tmp_path, monkeypatch, seconds=0)
    rank.work("pull", 1e6)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "telemetry").write_text("in the folder's place")
    rank = Rank(tmp_path, monkeypatch, seconds=1)
    for _ in range(3):
        rank.work("pull", 2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert str(rank.telemetry.path) in said[0]


@pytest.mark.parametrize("left", ['{"event": "telem', '{"event": "telemetry"}', ""])
def test_a_line_is_not_glued_to_what_an_earlier_start_has_left(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "telemetry" / "parameter_server-3.jsonl"
    path.parent.mkdir()
    path.write_text(f"{{}}\n{left}")
    rank = Rank(tmp_path, monkeypatch, seconds=1)
    for step in (1, 2):
        rank.counts = Counts(step)
        rank.work("pull", 2)
    lines = path.read_text().splitlines()
    assert lines[: 2 if left else 1] == ["{}", *([left] if left else [])]
    assert [json.loads(line)["step"] for line in lines[-2:]] == [1, 2]
    assert len(lines) == (4 if left else 3)


def test_a_line_that_does_not_fit_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rank = Rank(tmp_path, monkeypatch, seconds=1)
    rank.work("pull", 2)
    whole = rank.telemetry.path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))
    try:
        rank.work("pull", 2)  # a short write
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    rank.work("pull", 2)  # there is room again
    assert rank.telemetry.path.stat().st_size == len(whole) + 20
    assert "no more telemetry" in capsys.readouterr().err


def test_resident_bytes_are_those_that_the_kernel_tells() -> None:
    status = Path("/proc/self/status").read_text()
    told = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))) << 10
    assert abs(resident_bytes() - told) < 16 << 20
