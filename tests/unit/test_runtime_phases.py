"""Time accounting and the timeline made of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.config import load_config
from persia_hpc.reporting.trace import chrome_trace, clock_offsets, write_trace
from persia_hpc.runtime.phases import SERVER, Interval, Pace, Phases


def test_phases_add_up_to_the_total() -> None:
    phases = Phases(SERVER)
    phases.start()
    begin = time.perf_counter()
    time.sleep(0.01)
    begin = phases.add("pull", begin, 1)
    time.sleep(0.005)
    phases.add("push", begin, 1)
    time.sleep(0.005)
    phases.stop()
    phases.stop()  # harmless
    time.sleep(0.01)  # counts for nothing
    report = phases.report()
    assert report["idle"] == 0
    assert report["pull"] >= 0.01
    assert min(report["push"], report["other"]) >= 0.005
    parts = sum(report[name] for name in (*SERVER, "other"))
    assert parts == pytest.approx(report["total"], abs=1e-6)
    assert phases.statistics()["intervals"] == []  # kept only for a trace


def test_a_phase_that_no_role_has_is_refused() -> None:
    with pytest.raises(KeyError):
        Phases(SERVER).add("optimizer", 0.0)


def test_near_intervals_of_one_phase_and_batch_become_one_event() -> None:
    phases = Phases(SERVER, trace_steps=1)
    phases.add("idle", 1.0, 0, 2.0)
    phases.add("idle", 2.0001, 0, 3.0)
    phases.add("idle", 3.1, 0, 4.0)
    phases.add("pull", 4.0, 1, 5.0, trainer=0)
    phases.add("pull", 5.0, 1, 6.0, trainer=1)  # another batch
    phases.add("pull", 6.0, 2, 7.0, trainer=1)
    assert phases.statistics()["intervals"] == [
        ("idle", 1.0, 3.0, 0, -1),
        ("idle", 3.1, 4.0, 0, -1),
        ("pull", 4.0, 5.0, 1, 0),
        ("pull", 5.0, 6.0, 1, 1),
        ("pull", 6.0, 7.0, 2, 1),
    ]


@given(st.integers(1, 3000))
def test_steady_is_the_second_half_or_a_little_more(num_steps: int) -> None:
    pace = Pace()
    assert pace.steady()["samples_per_second"] == 0
    for step in range(1, num_steps + 1):
        # the first step takes a hundred times as long as the others
        pace.step(step, 10 * step, 100.0 + (step - 1))
    steady = pace.steady()
    assert steady["samples"] == 10 * steady["steps"]
    if num_steps > 1:
        assert num_steps / 2 <= steady["steps"] <= num_steps * 3 / 4 + 1
        assert steady["samples_per_second"] == pytest.approx(10)


class Ranks:
    """A communicator whose gather gives, for each rank, the clock of this process ahead by a few seconds."""

    def __init__(self, ahead: list[float], late: list[float]):
        self.ahead, self.late = ahead, late

    def Barrier(self) -> None:  # noqa: N802
        pass

    def gather(self, times: list[float]) -> list[list[float]]:
        return [[t + a + late for t in times] for a, late in zip(self.ahead, self.late, strict=True)]


def test_ranks_of_a_node_share_a_clock() -> None:
    offsets = clock_offsets(Ranks([0, 0, 5, 5, 5], [0, 0.3, 0.1, 0, -0.1]), [0, 0, 1, 1, 1])
    assert offsets == [0, 0, pytest.approx(5), pytest.approx(5), pytest.approx(5)]


def test_the_trace_has_the_last_steps_of_all_ranks_on_one_clock(tmp_path: Path) -> None:
    trainer = [Interval("forward", float(s), s + 0.5, s) for s in range(1, 11)]
    server = [Interval("pull", 100 + s - 0.25, 100.0 + s, s) for s in range(1, 11)]
    server.append(Interval("idle", 100.0, 200.0, 0))  # clipped to the steps shown
    ranks = [("trainer 0", trainer), ("parameter_server 0", server)]
    events = chrome_trace(ranks, [0.0, 100.0], 3)
    shown = [e for e in events if e["ph"] == "X"]
    assert sorted(e["args"]["step"] for e in shown if "args" in e) == [8, 8, 9, 9, 10, 10]
    by_step: dict[int, dict[str, Any]] = {}
    for event in shown:
        assert event["ts"] >= 0
        assert event["dur"] > 0
        if "args" in event:
            by_step.setdefault(event["args"]["step"], {})[event["name"]] = event
    for pair in by_step.values():
        assert pair["pull"]["ts"] + pair["pull"]["dur"] == pytest.approx(pair["forward"]["ts"])
    (idle,) = [e for e in shown if e["name"] == "idle"]
    assert (idle["ts"], idle["dur"]) == (0, pytest.approx(2.75e6))  # from the pull of step 8 on

    model = {"data": {"train": "a.h5"}, "model": {"class": "tower"}}
    write_trace(tmp_path, ranks, [0.0, 100.0], load_config(model))
    assert not list(tmp_path.iterdir())
    write_trace(tmp_path, ranks, [0.0, 100.0], load_config(model, {"train.trace": 3}))
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == events
