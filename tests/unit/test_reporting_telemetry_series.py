"""What ranks have counted over time, put together over the ranks of a role."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persia_hpc.reporting import telemetry_series
from persia_hpc.reporting.telemetry_series import TelemetrySeries


def write(run: Path, role: str, rank: int, rows: list[tuple[float, float]]) -> Path:
    folder = run / "telemetry"
    folder.mkdir(exist_ok=True)
    path = folder / f"{role}-{rank}.jsonl"
    head = {"event": "telemetry", "role": role, "rank": rank, "step": 1}
    path.write_text("".join(json.dumps({**head, "time": t, "rows": n}) + "\n" for t, n in rows))
    return path


def test_values_of_all_ranks_together(tmp_path: Path) -> None:
    write(tmp_path, "parameter_server", 0, [(100.0, 1), (110.0, 3)])
    write(tmp_path, "parameter_server", 1, [(102.0, 10), (112.0, 30)])
    write(tmp_path, "trainer", 0, [(99.0, 7)])
    series = TelemetrySeries(tmp_path)
    assert series.over_ranks("parameter_server", "rows", sum) == [(3.0, 11), (11.0, 13), (13.0, 33)]
    assert series.over_ranks("parameter_server", "rows", max) == [(3.0, 10), (11.0, 10), (13.0, 30)]
    assert series.over_ranks("trainer", "rows", sum) == [(0.0, 7)]
    assert series.over_ranks("trainer", "rss_bytes", sum) == []


def test_of_long_files_some_lines_are_read_and_the_ends_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry_series, "LINES", 200)
    for rank in range(4):
        write(tmp_path, "trainer", rank, [(float(i), i) for i in range(5000)])
    points = TelemetrySeries(tmp_path).over_ranks("trainer", "rows", max)
    assert 150 <= len(points) <= 220
    assert points[-1] == (4999.0, 4999)


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, "trainer", 0, [(1.0, 1), (2.0, 2)])
    bad = [
        '{"event": "telemetry"}',
        "[1]",
        "\x00",
        '{"event": "telemetry", "role": 1, "rank": "x", "time": 3}',
    ]
    bad += ['{"event": "telemetry", "role": "trainer", "rank": 1e30, "time": 1e300}']
    path.write_text("\n".join([*bad, path.read_text()]))
    (path.parent / "trainer-1.jsonl").mkdir()
    assert TelemetrySeries(tmp_path).over_ranks("trainer", "rows", sum) == [(0.0, 1), (1.0, 2)]
    assert TelemetrySeries(tmp_path / "none").over_ranks("trainer", "rows", sum) == []
