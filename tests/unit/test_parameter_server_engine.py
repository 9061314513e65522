"""The parameter server's engine without any transport."""

from __future__ import annotations

import numpy as np
import pytest

from persia_hpc._native import PendingPull, mix
from persia_hpc.config import load_config
from persia_hpc.config.learning_rate import LearningRate
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout
from tests.support.tiny import tiny_config

STEPS = 6
SCHEDULE = {"name": "cosine", "warmup_steps": 2, "final": 0.2}


@pytest.mark.parametrize("mode", [{"apply": "batch"}, {"apply": "step"}])
def test_at_a_mark_rows_have_all_updates_of_its_step_and_none_of_later_ones(mode):
    """Trainer 1 pushes steps 1 to 3 before trainer 0's come; each gradient adds its own power of four."""
    table = {"dim": 1, "optimizer": {"name": "sgd", "lr": 1.0}}
    given = {"mode": "hybrid", "staleness_bound": STEPS, "tables": {"a": table}, **mode}
    config = load_config({**tiny_config("none"), "features": {"a": {"table": "a"}}, **given})
    layout = make_layout(config, DatasetSchema((FeatureSchema("a"),)))
    server = ParameterServer(config, layout, num_steps=STEPS, num_trainers=2)
    server.clock.begin_segment(1, STEPS)
    key, counts, row = mix(np.zeros(1, np.uint64)), np.ones(1, np.uint32), np.empty((1, 1), np.float32)
    for step, trainer in [(s, t) for s in (1, 2, 3) for t in (0, 1)]:
        server.submit_pull(PendingPull(step, trainer, key, counts))
        for pull in server.ready_pulls():
            server.answer(pull, [row])
    assert server.clock.set_mark(2)
    sums = []
    for step, trainer in [(1, 1), (3, 1), (2, 1), (2, 0), (3, 0), (1, 0)]:
        server.submit_push(step, trainer, [np.full((1, 1), -(4.0 ** (2 * step + trainer)), np.float32)])
        server.detach_push(step, trainer)
        server.apply_ready()
        if server.clock.mark is not None and server.clock.applied >= server.clock.mark:
            server.lookup(key, counts, [row])
            sums.append(round(float(row[0, 0])))
            assert server.clock.take_mark()
            assert server.apply_ready()
    server.lookup(key, counts, [row])
    sums.append(round(float(row[0, 0])))
    assert sums == [4.0**2 + 4.0**3 + 4.0**4 + 4.0**5, sum(4.0**n for n in range(2, 8))]
    assert server.clock.applied == 3


@pytest.mark.parametrize("order", [[1, 2, 3, 4, 5, 6], [3, 1, 2, 4, 6, 5]])
@pytest.mark.parametrize("mode", [{"apply": "batch"}, {"apply": "step"}, {"exact": True}])
def test_an_update_has_the_learning_rate_of_its_gradients_step(order, mode):
    """Each step has a row of its own; with SGD and a gradient of one it falls by its step's rate."""
    config = load_config(
        {
            **tiny_config("none"),
            "mode": "hybrid",
            "staleness_bound": STEPS,
            "tables": {"a": {"dim": 1, "optimizer": {"name": "sgd", "lr": 0.5}, "schedule": SCHEDULE}},
            "features": {"a": {"table": "a"}},
            **mode,
        }
    )
    layout = make_layout(config, DatasetSchema((FeatureSchema("a"),)))
    server = ParameterServer(config, layout, num_steps=STEPS)
    server.clock.begin_segment(1, STEPS)
    keys, counts = mix(np.arange(STEPS, dtype=np.uint64)), np.ones(1, np.uint32)
    before = np.empty((STEPS, 1), np.float32)
    for step in range(1, STEPS + 1):
        server.submit_pull(PendingPull(step, 0, keys[step - 1 : step], counts))
        for pull in server.ready_pulls():
            server.answer(pull, [before[step - 1 : step]])
    for step in order:
        server.submit_push(step, 0, [np.ones((1, 1), np.float32)])
        server.apply_ready()
    after = np.empty_like(before)
    for i in range(STEPS):
        server.lookup(keys[i : i + 1], counts, [after[i : i + 1]])
    rate = LearningRate(config.tables["a"].schedule, STEPS)
    expected = [0.5 * rate.factor(step) for step in range(1, STEPS + 1)]
    assert len(set(expected)) == STEPS
    np.testing.assert_allclose((before - after)[:, 0], expected, rtol=1e-4)
