"""The cost model's constants: what is fitted is the best there is, and trials are measured whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from persia_hpc.bench import constants
from persia_hpc.bench.constants import Observation, Shape, fit, non_negative, observe
from persia_hpc.bench.train_jobs import synthetic
from persia_hpc.config import load_config
from persia_hpc.cost_model.work import BatchWork


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(np.float64, (5, 3), elements=st.floats(0.125, 8, width=16)),
    arrays.arrays(np.float64, 5, elements=st.floats(0, 8, width=16)),
)
def test_no_small_change_that_stays_non_negative_fits_better(matrix: np.ndarray, goal: np.ndarray) -> None:
    x = non_negative(matrix, goal)
    assert (x >= 0).all()
    slope = matrix.T @ (matrix @ x - goal)  # of half the squared error: 0 where x is positive, else not below
    scale = 1e-6 * (1 + np.abs(matrix).sum() * (1 + np.abs(goal).sum()))
    assert (slope >= -scale).all()
    assert (np.abs(slope[x > 0]) <= scale).all()


def test_constants_that_made_the_times_are_found() -> None:
    generator = np.random.default_rng(1)
    made = {"read_batch": 2e4, "read_value": 3.0, "dedup_feature": 700.0, "dedup_id": 7.0}
    made |= {"table_call": 2e3, "pull_row": 12.0, "pull_byte": 0.15, "push_row": 9.0, "push_byte": 0.14}
    made |= {"pool_feature": 5e3, "pool_id": 1.0, "pool_byte": 0.11}
    seen = []
    for features in (4, 8, 16, 26):
        ids, rows, dim = (float(generator.integers(1000, 50_000)) for _ in range(3))
        w = BatchWork(
            samples=1000.0,
            num_features=features,
            num_tables=features,
            values=2 * ids,
            ids=ids,
            rows=rows,
            table_rows=(rows,),
            stored_bytes=rows * dim,
            updated_bytes=rows * dim + 4 * rows,
            pooled_bytes=ids * dim,
            key_bytes=0.0,
            row_bytes=0.0,
            feed_bytes=0.0,
            gradient_bytes=0.0,
        )
        c = made
        calls = w.num_tables * c["table_call"]
        pool = c["pool_feature"] * w.num_features + c["pool_id"] * w.ids + c["pool_byte"] * w.pooled_bytes
        ns = {
            "read": c["read_batch"] + c["read_value"] * w.values,
            "dedup": c["dedup_feature"] * w.num_features + c["dedup_id"] * w.ids,
            "pull": calls + c["pull_row"] * w.rows + c["pull_byte"] * w.stored_bytes,
            "push": calls + c["push_row"] * w.rows + c["push_byte"] * w.updated_bytes,
            "pool": pool,
        }
        seen.append(Observation(w, {phase: 1e-9 * n for phase, n in ns.items()}))
    assert fit(seen, made.pop("table_call")) == pytest.approx(made, rel=1e-3)


def test_the_loops_of_a_server_and_of_a_worker_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each part cost what it says: the servers' rows and the worker's own batch must not count."""

    def server(tables: int, servers: int, repeats: int, *, ids: int, workers: int) -> SimpleNamespace:
        assert ids * tables / servers == constants.LOOP_IDS  # the same rows, whatever the number of tables
        return SimpleNamespace(notes={"beyond us": 12.0 + 2 * tables * 0.4})

    def worker(tables: int, servers: int, repeats: int, *, ids: int) -> SimpleNamespace:
        return SimpleNamespace(ours=SimpleNamespace(median=90.0 + 5 * servers))

    monkeypatch.setattr(constants, "measure_server", server)
    monkeypatch.setattr(constants, "measure_worker", worker)
    found = constants._loops(lambda _: None)
    assert found == pytest.approx({"table_call": 400.0, "server_batch": 12e3, "worker_record": 5e3})


def test_a_trial_sees_every_phase_and_its_work(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "SAMPLES", 512)
    monkeypatch.setattr(constants, "SECONDS", 0.05)
    path = synthetic(tmp_path, 512, 4, 2)
    seen = observe(Shape(4, 2, 8, 128), path, path)
    assert seen.work.num_features == 4
    assert seen.work.ids > 128 * 4
    for phase in ("read", "dedup", "pull", "push", "pool", "forward"):
        assert seen.seconds[phase] > 0


def test_inserts_are_measured_with_the_options_that_the_benchmark_has(monkeypatch) -> None:
    monkeypatch.setattr(constants, "INSERTED_ROWS", 100_000)
    (cost,) = constants._inserts().values()
    assert 1 < cost < 1e5


def test_crowding_is_what_a_step_takes_longer_beside_others(tmp_path, monkeypatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], environment: dict[str, str]) -> dict[str, float]:
        ran.append(command)
        return {"alone": 0.02, "beside": 0.025}

    monkeypatch.setattr(constants, "run_program", run)
    monkeypatch.setattr(constants, "available_cores", lambda: [0, 1])
    path = tmp_path / "data.h5"
    assert constants._crowding(tmp_path, path, lambda _: None) == pytest.approx({"crowded": 250.0})
    assert "2" in ran[0]
    assert load_config(Path(ran[0][-1])).data.train == [str(path)]
    monkeypatch.setattr(constants, "available_cores", lambda: [3])
    assert constants._crowding(tmp_path, path, lambda _: None) == {"crowded": 0.0}
    assert len(ran) == 1
