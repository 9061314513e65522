"""`mode = "fresh"`: rows that were sent early and patched are those of `sync`, bit for bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persia_hpc._native import PendingPull
from persia_hpc.config import load_config
from persia_hpc.config.types import TABLE_OPTIMIZERS
from persia_hpc.errors import UserError
from persia_hpc.parameter_server.first import FirstPushes, Portion
from persia_hpc.protocol.wire import WIRES
from tests.support.fresh import FEATURES, Ids, World, config_of

ID = st.sampled_from([0, 1, 2, 3, 4, 5, 500, 2**40])


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """Options of a table: each optimizer, and all by which rows come and go."""
    eviction = draw(st.sampled_from(["lru", "lru", "lfu"]))
    return {
        "optimizer": {"name": draw(st.sampled_from(sorted(TABLE_OPTIMIZERS))), "lr": 0.1},
        "storage": draw(st.sampled_from(["fp32", "fp16", "bf16"])),
        "state_storage": draw(st.sampled_from(["fp32", "same"])),
        "capacity": draw(st.sampled_from([256, 600, 1 << 20])),
        "eviction": eviction,
        "ttl": draw(st.sampled_from([0, 1, 2])) if eviction == "lru" else 0,
        "admission": draw(st.sampled_from([{}, {}, {"after": 2}, {"probability": 0.5}])),
        "hash": draw(st.sampled_from([None, None, {"size": 5, "rounds": 2}])),
    }


@st.composite
def ids(draw: st.DrawFn, trainers: int) -> Ids:
    """What two segments train on."""

    def batch() -> list[list[int]]:
        count = draw(st.integers(0, 4))
        return [draw(st.lists(ID, min_size=count, max_size=count)) for _ in FEATURES]

    return [[batch() for _ in range(trainers)] for _ in range(draw(st.integers(2, 8)))]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), table=tables(), servers=st.integers(1, 3), trainers=st.integers(1, 3),
       lookahead=st.integers(1, 4), threads=st.integers(1, 2), rows=st.sampled_from(sorted(WIRES)),
       gradients=st.sampled_from(sorted(WIRES)), seed=st.integers(0, 1000),
       restless=st.booleans())  # fmt: skip
def test_fresh_is_sync(
    data: st.DataObject, table: dict[str, Any], servers: int, trainers: int, lookahead: int, threads: int,
    rows: str, gradients: str, seed: int, restless: bool,
) -> None:  # fmt: skip
    steps = data.draw(ids(trainers))
    cut = data.draw(st.integers(1, len(steps)))
    changes = {"server_threads": threads, "wire": {"rows": rows, "gradients": gradients}}
    sync = World(config_of("sync", table, **changes), servers, trainers, len(steps))
    config = config_of("fresh", table, lookahead=lookahead, **changes)
    fresh = World(config, servers, trainers, len(steps), seed, restless)
    for first, part in ((1, steps[:cut]), (cut + 1, steps[cut:])):
        if part:
            sync.run_in_turn(first, part)
            fresh.run_ahead(first, part, lookahead + 1)
    assert fresh.seen == sync.seen
    assert fresh.tables() == sync.tables()
    expected, found = sync.ledger(), fresh.ledger()
    early, patched = found.pop("early_rows"), found.pop("patched_rows")
    del expected["early_rows"], expected["patched_rows"]
    assert found == expected
    assert patched <= early <= found["pulled_rows"]
    for server in fresh.servers:
        assert set(server.clock.histogram) == {0}


@pytest.mark.parametrize("trainers", [1, 2])
def test_an_export_that_begins_between_parts_changes_nothing(
    trainers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then a patch that has gone in part is finished with all updates, as if it hadn't been begun."""
    between = 0
    with_others = FirstPushes.with_others

    def counted(self: FirstPushes, pull: PendingPull, gradients: Any) -> Any:
        nonlocal between
        pushes = with_others(self, pull, gradients)
        split = self._steps.get(pull.step)
        between += split is not None and 0 < split.applied < split.num_parts
        return pushes

    monkeypatch.setattr(FirstPushes, "with_others", counted)
    table = {"optimizer": {"name": "adam", "lr": 0.1}}
    for seed in range(20):
        chosen = random.Random(seed)
        ids = [[[chosen.sample(range(30), 12) for _ in FEATURES] for _ in range(trainers)] for _ in range(8)]
        sync = World(config_of("sync", table), 1, trainers, len(ids))
        fresh = World(config_of("fresh", table), 1, trainers, len(ids), seed, restless=True)
        sync.run_in_turn(1, ids)
        fresh.run_ahead(1, ids, 3)
        assert fresh.seen == sync.seen
        assert fresh.tables() == sync.tables()
        assert fresh.ledger()["applied_rows"] == sync.ledger()["applied_rows"]
    assert between > 10


class FirstAlone(random.Random):
    """Lets gradients that are wanted first always come alone."""

    def randrange(self, *_: Any) -> int:
        return 1


def test_only_what_a_missed_step_uses_is_sent_again() -> None:
    """Steps 1 and 2 share id 7: of the early answer for step 2 just this row changes."""
    config = config_of("fresh", {"optimizer": {"name": "sgd", "lr": 0.1}})
    world = World(config, servers=1, trainers=1, steps=2)
    (server,) = world.servers
    world.begin(1, 2)
    for step, of_feature in ((1, [7, 8]), (2, [7, 9])):
        batch = world.prepare((step, 0), [of_feature, [], []])
        server.submit_pull(world.pull_of(batch, 0))
    world.serve(0)
    assert (server.ledger.early_rows, server.ledger.patched_rows) == (2, 0)
    ((_, gradients),) = world.finished()
    world.push(world.batches[1, 0], 0, gradients)
    world.serve(0)
    assert (server.ledger.early_rows, server.ledger.patched_rows) == (2, 1)
    assert [key for key, _ in world.finished()] == [(2, 0)]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("far", [False, True])
def test_a_patch_goes_before_other_updates_where_nothing_else_can_change(full: bool, far: bool) -> None:
    """Steps 1 and 2 share id 7. In a full table a row goes after step 1: only then is the patch known.

    From a worker that is far the gradients of id 7 come first, and are enough for the patch.
    """
    capacity = 4 * 64 if full else 1 << 20  # of four buckets, a row of 4 floats in each
    config = config_of("fresh", {"optimizer": {"name": "sgd", "lr": 0.1}, "capacity": capacity})
    world = World(config, servers=1, trainers=1, steps=2)
    (server,) = world.servers
    world.begin(1, 2)
    of_step = {1: [7, *range(20, 60)], 2: [7, *range(60, 70)]}
    for step, of_feature in of_step.items():
        server.submit_pull(world.pull_of(world.prepare((step, 0), [of_feature, [], []]), 0))
    (pull,) = server.ready_pulls()
    world.answer(0, pull)
    world.answer_early(0)
    assert server.mark_next()
    assert not server.mark_next()
    assert not server.apply_marked()  # there are no gradients yet
    wanted = server.want_first(1.0) if far else []
    assert len(wanted) == (far and not full)
    for wish in wanted:
        assert [len(each) for each in wish.places] == [1]
        world.wanted[1, 0, 0] = wish.places
    ((_, gradients),) = world.finished()
    world.random = FirstAlone()
    assert world.push(world.batches[1, 0], 0, gradients) == (wanted == [])
    sent = server.apply_marked()
    assert (sent == []) == full
    for each in sent:
        world.send_patch(0, each)
    if wanted:
        assert not server.apply_ready()
        assert world.push(world.batches[1, 0], 0, gradients)
    assert server.ledger.applied_rows == len(sent)
    assert server.clock.applied == 0
    assert server.apply_ready()
    assert server.ledger.applied_rows == len(of_step[1])
    assert (server.ledger.evicted_rows > 0) == full
    (pull,) = server.ready_pulls()
    assert server.finish(pull) == full
    if full:
        world.send_patch(0, Portion(pull))
    assert [key for key, _ in world.finished()] == [(2, 0)]
    sync = World(config_of("sync", {"optimizer": {"name": "sgd", "lr": 0.1}, "capacity": capacity}), 1, 1, 2)
    sync.run_in_turn(1, [[[of_step[1], [], []]], [[of_step[2], [], []]]])
    assert world.seen == sync.seen
    assert full or server.ledger.patched_rows == 1


@pytest.mark.parametrize("gone", [False, True])
def test_no_gradients_are_wanted_first_where_a_patch_waits_for_all(gone: bool) -> None:
    """Id 7 goes after step 2. If step 4 has had an early answer with it, its patch waits for all updates."""
    table = {"optimizer": {"name": "sgd", "lr": 0.1}, "buckets": 1, "capacity": 256}  # six rows
    ids = [[7], list(range(20, 26)), [20, 21], [7, 20] if gone else [20, 21]]
    world = World(config_of("fresh", table, lookahead=2), servers=1, trainers=1, steps=4)
    (server,) = world.servers
    world.begin(1, 4)
    for step, of_feature in enumerate(ids, 1):
        server.submit_pull(world.pull_of(world.prepare((step, 0), [of_feature, [], []]), 0))
    for step in (1, 2, 3):
        (pull,) = server.ready_pulls()
        if step == 1:
            world.answer(0, pull)
        else:
            assert server.finish(pull)
            world.send_patch(0, Portion(pull))
        world.answer_early(0)
        server.mark_next()
        if step < 3:
            ((_, gradients),) = world.finished()
            world.push(world.batches[step, 0], 0, gradients)
            assert server.apply_ready()
    assert server.ledger.evicted_rows == 1
    assert [[len(part) for part in wish.places] for wish in server.want_first(1e6)] == [[2]] * (not gone)


def test_patches_come_in_parts_as_gradients_do() -> None:
    """Steps 1 and 2 share 40 ids, of which some ten are wanted together."""
    table = {"optimizer": {"name": "adam", "lr": 0.1}}
    ids = [[list(range(60)), [], []], [list(range(20, 80)), [], []]]
    world = World(config_of("fresh", table), servers=1, trainers=1, steps=2)
    (server,) = world.servers
    world.begin(1, 2)
    for step, of_features in enumerate(ids, 1):
        server.submit_pull(world.pull_of(world.prepare((step, 0), of_features), 0))
    (pull,) = server.ready_pulls()
    world.answer(0, pull)
    world.answer_early(0)
    assert server.mark_next()
    (wish,) = server.want_first(160.0)
    world.wanted[1, 0, 0] = wish.places
    sizes = [len(each) for each in wish.places]
    assert len(sizes) == 4
    assert sum(sizes) == len(np.unique(np.concatenate(wish.places))) == 40
    assert min(sizes) > 0  # these ids are spread
    ((_, gradients),) = world.finished()
    world.random = FirstAlone()
    for number in range(4):
        assert not server.apply_marked()
        assert not world.push(world.batches[1, 0], 0, gradients)
        (portion,) = server.apply_marked()
        assert portion.left == 3 - number
        assert world.final == []  # nobody computes with a part of the rows
        world.send_patch(0, portion)
        assert server.ledger.applied_rows == sum(sizes[: number + 1])
        assert server.ledger.patched_rows == sum(sizes[: number + 1])
    assert [key for key, _ in world.finished()] == [(2, 0)]
    assert not server.apply_marked()
    assert world.push(world.batches[1, 0], 0, gradients)
    assert server.apply_ready()
    (pull,) = server.ready_pulls()
    assert not server.finish(pull)
    sync = World(config_of("sync", table), 1, 1, 2)
    sync.run_in_turn(1, [[each] for each in ids])
    assert world.seen == sync.seen
    assert server.ledger.applied_rows == 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"staleness_bound": 4}, 'staleness_bound = 4: mode = "fresh" has no staleness'),
        ({"apply": "batch"}, "apply = 'batch': mode = \"fresh\" applies whole steps"),
        ({"wire": {"reuse_steps": 1}}, "reuse_steps = 1: expected at most staleness_bound = 0"),
        ({"mode": "sync", "lookahead": 3}, 'lookahead = 3: only mode = "fresh" asks ahead'),
    ],
)
def test_what_fresh_is_not_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="^[^\n]*" + message):
        load_config({**config_of("fresh", {}), **changes})
