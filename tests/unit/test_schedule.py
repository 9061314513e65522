"""The schedule: every sample once an epoch, whatever the counts."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.schedule import Schedule, split_evenly, worker_of

SCHEDULES = st.builds(
    Schedule,
    num_samples=st.integers(1, 500),
    batch_size=st.integers(1, 90),
    epochs=st.integers(1, 3),
    max_steps=st.none() | st.integers(1, 50),
    evaluate_every=st.integers(0, 20),
)


@given(SCHEDULES, st.integers(1, 5))
def test_every_sample_of_an_epoch_has_one_trainer(schedule, num_trainers):
    seen: dict[int, list[int]] = {}
    for number in range(1, schedule.num_steps + 1):
        step = schedule.step(number)
        sizes = []
        for trainer in range(num_trainers):
            begin, end = schedule.part(number, trainer, num_trainers)
            seen.setdefault(step.epoch, []).extend(range(begin, end))
            sizes.append(end - begin)
        assert sum(sizes) == step.num_samples > 0
        assert max(sizes) - min(sizes) <= 1
    for positions in seen.values():
        assert positions == list(range(len(positions)))
    if schedule.max_steps is None:
        assert [len(v) for v in seen.values()] == [schedule.num_samples] * schedule.epochs


@given(SCHEDULES, st.integers(1, 60))
def test_segments_end_at_the_next_drain_point(schedule, first):
    every = schedule.evaluate_every or schedule.steps_per_epoch
    while first <= schedule.num_steps:
        last = schedule.next_drain(first)
        assert first <= last <= schedule.num_steps
        assert last % every == 0 or last == schedule.num_steps
        assert not any(s % every == 0 for s in range(first, last))
        first = last + 1


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=5),
    st.integers(1, 90),
    st.none() | st.integers(1, 15),
    st.integers(0, 6),
    st.integers(0, 6),
)
def test_portions_go_on_where_the_one_before_ended(portions, batch_size, max_steps, evaluate, checkpoint):
    """Each sample once, steps without a gap; drained, evaluated and saved where the rules say so."""
    schedule = Schedule(0, batch_size, 1, max_steps, evaluate, checkpoint, growing=True)
    assert schedule.num_steps == 0
    assert schedule.may_grow
    number = 0
    for epoch, num_samples in enumerate(portions):
        if not schedule.may_grow:
            break
        schedule = schedule.followed_by(num_samples)
        position = 0
        while number < schedule.num_steps:
            first, last = number + 1, schedule.next_drain(number + 1)
            for number in range(first, last + 1):
                step = schedule.step(number)
                assert (step.number, step.epoch, step.begin) == (number, epoch, position)
                position = step.end
            final = number == max_steps
            of_portion = not evaluate and position == num_samples
            assert schedule.evaluates_after(number) == (
                final or of_portion or (evaluate > 0 and number % evaluate == 0)
            )
            assert schedule.checkpoints_after(number) == (
                checkpoint > 0 and number % checkpoint == 0 and not final
            )
            assert (
                position == num_samples
                or final
                or schedule.evaluates_after(number)
                or (checkpoint and number % checkpoint == 0)
            ), "drained without need"
        assert position == num_samples or number == max_steps
    expected = sum(-(-n // batch_size) for n in portions)
    assert number == (expected if max_steps is None else min(expected, max_steps))


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 9))
def test_split_evenly_partitions(begin, size, parts):
    pieces = [split_evenly(begin, begin + size, parts, i) for i in range(parts)]
    assert pieces[0][0] == begin
    assert pieces[-1][1] == begin + size
    assert all(a[1] == b[0] for a, b in pairwise(pieces))


def test_workers_take_turns():
    assert [worker_of(step, (2, 5)) for step in range(1, 6)] == [2, 5, 2, 5, 2]
