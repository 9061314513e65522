"""persia-hpc train --json: lines for programs, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persia_hpc.cli import main
from persia_hpc.config import config_text, load_config
from tests.support.tiny import tiny_config, write_tiny


def test_json_lines_are_the_events_and_the_summary(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_tiny(tmp_path / "train.h5", 96)
    config = load_config(tiny_config(data, **{"data.valid": data, "model": {"class": "tower"}}))
    Path("train.toml").write_text(config_text(config))
    assert main(["train", "train.toml", "--one-process", "--run-dir", "run", "--json"]) == 0
    out, err = capfd.readouterr()
    *events, summary = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert events == [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    train = [event for event in events if event["event"] == "train"][-1]
    assert train["left_seconds"] >= 0
    assert set(train["waited"]) == {"batch", "allreduce"}
    assert summary == {"event": "summary", **json.loads(Path("run/summary.json").read_text())}
