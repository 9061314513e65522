"""persia-hpc train --json: lines for programs, and nothing else; the run goes on without its reader."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from persia_hpc.cli import main
from persia_hpc.config import config_text, load_config
from tests.support.jobs import user_environment
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


@pytest.mark.parametrize("closed", [True, False])
def test_a_run_goes_on_without_a_screen(tmp_path: Path, closed: bool) -> None:
    """Stderr is a pipe whose reader has gone, or is closed from the beginning."""
    data = write_tiny(tmp_path / "train.h5", 96)
    (tmp_path / "train.toml").write_text(config_text(load_config(tiny_config(data))))
    command = f"{shlex.quote(sys.executable)} -m persia_hpc.cli train train.toml --one-process --run-dir run"
    if closed:
        done = subprocess.run(
            ["sh", "-c", f"{command} 2>&-"], cwd=tmp_path, env=user_environment(), capture_output=True
        )
        assert (done.returncode, done.stdout) == (0, b"")
    else:
        run = subprocess.Popen(
            shlex.split(command), cwd=tmp_path, env=user_environment(), stderr=subprocess.PIPE
        )
        assert run.stderr is not None
        run.stderr.close()
        assert run.wait(timeout=60) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "completed"


def test_a_run_whose_reader_has_gone_says_so_once_and_goes_on(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "train.h5", 96)
    (tmp_path / "train.toml").write_text(config_text(load_config(tiny_config(data))))
    command = [sys.executable, "-m", "persia_hpc.cli", "train", "train.toml", "--one-process"]
    run = subprocess.Popen(
        [*command, "--run-dir", "run", "--json"],
        cwd=tmp_path,
        env=user_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    run.stdout.close()
    assert run.stderr is not None
    said = "persia-hpc: nothing more is printed on <stdout>: Broken pipe; the run goes on\n"
    assert run.stderr.read() == said
    assert run.wait(timeout=60) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "completed"
    assert (tmp_path / "run/latest").exists()
