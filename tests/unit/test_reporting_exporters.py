"""TensorBoard's and Prometheus' own readers find the numbers of events, and nothing they do ends a run."""

from __future__ import annotations

import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from persia_hpc.config import MetricsConfig
from persia_hpc.errors import UserError
from persia_hpc.reporting.exporters import LOOPBACK, Prometheus, TensorBoard, make_exporters

TELEMETRY: dict[str, Any] = {"event": "telemetry", "role": "trainer", "rank": 1, "time": 50.0, "step": 2}
EVENTS: list[dict[str, Any]] = [
    {"event": "train", "step": 1, "loss": 0.75},
    {"event": "train", "step": 2, "loss": 0.5},
    {**TELEMETRY, "rss_bytes": 4096},
    {"event": "evaluate", "split": "valid", "step": 2, "samples": 4, "auc": 0.625, "recall@10": 0.25},
]
END = {"event": "end", "status": "completed", "steps": 2}


def tensorboard_values(folder: Path) -> dict[str, list[tuple[int, float]]]:
    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def prometheus_values(text: str) -> dict[tuple[str, ...], float]:
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {(s.name, *(f"{k}={v}" for k, v in sorted(s.labels.items()) if v)): s.value for s in samples}


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    for event in [*EVENTS, END]:
        board.log(event)
    assert tensorboard_values(tmp_path) == {
        "train/loss": [(1, 0.75), (2, 0.5)],
        "trainer/1/rss_bytes": [(2, 4096)],
        "valid/auc": [(2, 0.625)],
        "valid/recall@10": [(2, 0.25)],
    }


def test_a_resumed_run_takes_the_place_of_what_was_lost(tmp_path: Path) -> None:
    warning = {"event": "warning", "step": 1, "text": "the rates are others now"}
    resumed = [warning, {"event": "resume", "step": 1}, {**EVENTS[1], "loss": 0.25}, END]
    for events in ([*EVENTS, END], resumed):
        board = TensorBoard(tmp_path)
        for event in events:
            board.log(event)
    assert tensorboard_values(tmp_path)["train/loss"] == [(1, 0.75), (2, 0.25)]


def expected(run: str) -> dict[tuple[str, ...], float]:
    return {
        ("persia_hpc_loss", f"run={run}", "split=train"): 0.5,
        ("persia_hpc_rss_bytes", "rank=1", "role=trainer", f"run={run}"): 4096,
        ("persia_hpc_auc", f"run={run}", "split=valid"): 0.625,
        ("persia_hpc_recall_10", f"run={run}", "split=valid"): 0.25,
    }


def test_prometheus_reads_the_last_values_from_the_file(tmp_path: Path) -> None:
    exporter = Prometheus(tmp_path / "x.prom", None, "a")
    for event in EVENTS:
        exporter.log(event)
    assert prometheus_values((tmp_path / "x.prom").read_text()) == expected("a")
    assert [path.name for path in tmp_path.iterdir()] == ["x.prom"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def test_prometheus_reads_the_last_values_over_loopback_until_the_end(tmp_path: Path) -> None:
    port = free_port()
    exporter = Prometheus(tmp_path / "x.prom", port, "b")
    for event in EVENTS:
        exporter.log(event)
    url = f"http://{LOOPBACK}:{port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert prometheus_values(answer.read().decode()) == expected("b")
    exporter.log(END)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=10)


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        port = int(other.getsockname()[1])
        with pytest.raises(UserError, match=f"prometheus_port = {port}.*choose another port"):
            Prometheus(tmp_path / "x.prom", port, "c")


def test_a_file_that_cannot_be_written_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exporter = Prometheus(tmp_path / "missing" / "x.prom", None, "d")
    for event in [*EVENTS, END]:
        exporter.log(event)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "nothing more is shown in Prometheus" in said[0]
    assert str(tmp_path / "missing") in said[0]


@pytest.mark.parametrize(
    ("key", "package"), [("tensorboard", "tensorboard"), ("prometheus", "prometheus_client")]
)
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, package: str
) -> None:
    for module in ("torch.utils.tensorboard", "prometheus_client"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs the package {package}.*persia-hpc\[{key}\]"):
        make_exporters(MetricsConfig(**{key: True}), tmp_path)
