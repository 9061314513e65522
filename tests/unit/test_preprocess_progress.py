"""What a job's log gets to see of a long preprocessing."""

from __future__ import annotations

import time

import pytest

from persia_hpc.preprocess import progress


@pytest.mark.parametrize("log_seconds", [0.02, 60])
def test_a_log_gets_the_time_left_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], log_seconds: float
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", log_seconds)
    with progress.Progress("criteo: writing", 1000, unit=" bytes") as rows:
        for _ in range(40):
            time.sleep(0.005)
            rows.add(10)
    said = capsys.readouterr().err
    if log_seconds == 60:
        assert said == ""
    else:
        assert 1 < said.count("criteo: writing:") < 15
        assert "0 of 1k bytes, 0 s left, " in said
        assert said.endswith("bytes/s\n")


def test_other_ranks_are_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    with progress.Progress("criteo: writing", 10, shown=False) as rows:
        rows.add(5)
    assert capsys.readouterr().err == ""
