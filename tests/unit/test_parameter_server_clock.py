"""The servers' clock: the bound always holds, and no schedule of arrivals can make it deadlock."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.parameter_server.clock import Clock


def play(
    clock: Clock, *, num_trainers: int, segments: list[int], window: int, rng: random.Random, marks: int = 0
):
    """Trainers pull up to `window` steps ahead and push in random order; returns what the clock allowed, in
    order. In each segment somebody asks `marks` times for the tables after a step, perhaps too late.

    The check of the bound is this function's own: it counts pushes itself.
    """
    log = []
    pushed = {}  # step -> trainers whose push has been applied
    own = {}  # trainer -> its steps that have been applied
    done = 0
    for length in segments:
        first, last = done + 1, done + length
        clock.begin_segment(first, last)
        next_pull = dict.fromkeys(range(num_trainers), first)
        waiting: list[tuple[int, int]] = []
        answered: list[tuple[int, int]] = []
        held: dict[int, set[int]] = {}
        finished = dict.fromkeys(range(num_trainers), first - 1)
        left = marks
        while min(finished.values()) < last or held:
            moves = [("issue", t) for t in next_pull if next_pull[t] <= min(last, finished[t] + 1 + window)]
            moves += [("answer", p) for p in waiting if clock.may_answer(*p)]
            moves += [("push", p) for p in answered if p[0] == finished[p[1]] + 1]
            moves += [
                ("apply", s)
                for s, have in held.items()
                if (len(have) == num_trainers or not clock.exact) and clock.may_apply(s)
            ]
            if clock.mark is None:
                moves += [("mark", max(finished.values()) + rng.randrange(-2, 3))] * min(left, 1)
            elif clock.applied >= clock.mark:
                moves.append(("take", clock.mark))
            assert moves, f"deadlock: {clock}"
            kind, what = rng.choice(moves)
            if kind == "issue":
                waiting.append((next_pull[what], what))
                next_pull[what] += 1
            elif kind == "answer":
                waiting.remove(what)
                answered.append(what)
                step = what[0]
                if clock.per_trainer:
                    missed = sum(1 for s in range(1, step) if s not in own.get(what[1], ()))
                else:
                    missed = sum(1 for s in range(1, step) if len(pushed.get(s, ())) < num_trainers)
                assert missed <= clock.bound
                log.append(("answer", step, clock.answered(*what)))
            elif kind == "push":
                answered.remove(what)
                finished[what[1]] = what[0]
                held.setdefault(what[0], set()).add(what[1])
            elif kind == "mark":
                left -= 1
                assert clock.set_mark(what) == (max(pushed, default=0) <= what)
            elif kind == "take":
                assert all(len(pushed.get(s, ())) == num_trainers for s in range(1, what + 1))
                assert not any(step > what for step in pushed)
                assert clock.take_mark()
            else:
                trainers = held.pop(what)
                pushed[what] = pushed.get(what, set()) | trainers
                for trainer in trainers:
                    own.setdefault(trainer, set()).add(what)
                clock.pushed(what, trainers)
                log.append(("apply", what, len(trainers)))
        done = last
    assert clock.applied == done
    return log


@settings(max_examples=60, deadline=None)
@given(
    bound=st.integers(0, 6),
    mode=st.sampled_from(["hybrid", "exact", "async"]),
    num_trainers=st.integers(1, 3),
    segments=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    extra=st.integers(0, 3),
    marks=st.integers(0, 3),
    seed=st.integers(0, 1 << 30),
)
def test_bound_holds_and_nothing_deadlocks(bound, mode, num_trainers, segments, extra, marks, seed):
    clock = Clock(bound=bound, exact=mode == "exact", num_trainers=num_trainers, per_trainer=mode == "async")
    rng = random.Random(seed)
    play(clock, num_trainers=num_trainers, segments=segments, window=bound + extra, rng=rng, marks=marks)
    assert max(clock.histogram) <= bound
    assert sum(clock.histogram.values()) == num_trainers * sum(segments)


@settings(max_examples=25, deadline=None)
@given(bound=st.integers(0, 4), num_trainers=st.integers(1, 3), seeds=st.tuples(st.integers(), st.integers()))
def test_exact_gives_every_pull_the_same_staleness_whatever_the_timing(bound, num_trainers, seeds):
    outcomes = []
    for seed in seeds:
        clock = Clock(bound=bound, exact=True, num_trainers=num_trainers)
        log = play(
            clock, num_trainers=num_trainers, segments=[7, 3], window=bound + 1, rng=random.Random(seed)
        )
        answers = {(step, staleness) for kind, step, staleness in log if kind == "answer"}
        outcomes.append((answers, [step for kind, step, _ in log if kind == "apply"]))
    assert outcomes[0] == outcomes[1]
    # Counted without the clock: a pull misses the last `bound` steps of its segment, and no step before them.
    first_steps = {step: 1 if step <= 7 else 8 for step in range(1, 11)}
    assert outcomes[0][0] == {(step, min(bound, step - first)) for step, first in first_steps.items()}


def test_a_segment_waits_for_the_pushes_of_the_one_before():
    clock = Clock(bound=4, exact=False, num_trainers=2)
    clock.begin_segment(1, 1)
    clock.answered(1, 0)
    clock.pushed(1, [0])
    clock.begin_segment(2, 3)  # one worker is already ahead
    assert not clock.may_answer(2, 0)
    clock.pushed(1, [1])
    clock.begin_segment(2, 3)  # the other worker says it too
    assert clock.may_answer(2, 0)


def test_in_async_a_trainer_waits_for_its_own_updates_only():
    clock = Clock(bound=1, exact=False, num_trainers=2, per_trainer=True)
    clock.begin_segment(1, 20)
    for step in range(1, 11):  # trainer 1 does nothing
        assert clock.may_answer(step, 0)
        assert clock.answered(step, 0) <= 1
        if step > 1:
            clock.pushed(step - 1, [0])
    assert clock.applied == 0
    assert not clock.may_answer(12, 0)
    assert not clock.may_answer(3, 1)
    clock.pushed(11, [0])  # by way of another worker, before step 10
    assert not clock.may_answer(12, 0)
    clock.pushed(10, [0])
    assert clock.may_answer(12, 0)
    for step in range(1, 4):
        assert clock.pushed(step, [1])
    assert clock.applied == 3


def test_a_shortened_segment_ends_early():
    clock = Clock(bound=2, exact=True, num_trainers=1)
    clock.begin_segment(1, 10)
    for step in (1, 2, 3):
        assert clock.may_answer(step, 0)
        clock.answered(step, 0)
    clock.shorten_segment(3)
    for step in (1, 2, 3):
        assert clock.may_apply(step)
        clock.pushed(step, [0])
    clock.begin_segment(4, 4)
    assert clock.may_answer(4, 0)


def test_after_a_restore_the_tables_may_be_marked_at_the_restored_step() -> None:
    clock = Clock(bound=0, exact=True, num_trainers=1)
    clock.begin_segment(1, 3)
    for step in (1, 2, 3):
        clock.answered(step, 0)
        clock.pushed(step, [0])
    assert not clock.set_mark(1)
    clock.replaced()
    assert clock.set_mark(1)
    assert clock.take_mark()
    assert not clock.take_mark()
