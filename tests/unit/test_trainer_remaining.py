"""The time left: right to 10 % after a tenth of a run, whatever its evaluations and checkpoints cost."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import persia_hpc as ph
from persia_hpc.checkpoint.shards import ShardWriter
from persia_hpc.config import load_config
from persia_hpc.runtime.phases import Pace
from persia_hpc.schedule import Schedule
from persia_hpc.trainer.remaining import EVALUATION_SHARE, Spent, left_seconds
from tests.support.models import Small
from tests.support.tiny import tiny_config, write_tiny

VALID, TEST = 700, 2300


def schedules(evaluate_every: int, checkpoint_every: int, epochs: int, steps: int) -> dict[str, Schedule]:
    train = Schedule(
        steps * 32 - 5, 32, epochs, evaluate_every=evaluate_every, checkpoint_every=checkpoint_every
    )
    return {"train": train, "valid": Schedule(VALID, 32), "test": Schedule(TEST, 32)}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(200, 900),  # steps of an epoch
    st.integers(1, 5),
    st.floats(0.01, 1.0),  # of an epoch's tenth, between evaluations
    st.floats(0.01, 1.0),  # the same of checkpoints
    st.floats(0.0, 0.5),  # seconds of an evaluated sample, by those of a step
    st.floats(0.0, 300.0),  # seconds of a checkpoint, by those of a step
    st.integers(0, 2**32),
)
def test_right_to_a_tenth_after_a_tenth(
    steps: int, epochs: int, evaluations: float, checkpoints: float, sample: float, pause: float, seed: int
) -> None:
    num_steps = steps * epochs
    splits = schedules(
        max(1, int(evaluations * num_steps / 10.5)),
        max(1, int(checkpoints * num_steps / 10.5)),
        epochs,
        steps,
    )
    config = load_config(tiny_config("x.h5"))
    train, rng, pace = splits["train"], random.Random(seed), Pace()
    trained = now = 0.0
    done = {"evaluated": 0, "evaluate_seconds": 0.0, "checkpoints": 0, "checkpoint_seconds": 0.0}
    told = told_at = 0.0
    for step in range(1, num_steps + 1):
        warm_up = 10.0 if step <= num_steps // 100 else 1.0
        seconds = warm_up * rng.uniform(0.7, 1.3) * train.step(step).num_samples / 32
        trained, now = trained + seconds, now + seconds
        pace.step(step, train.samples_until(step), trained)
        if step == -(-num_steps // 10):
            spent = Spent(
                pace.steady()["samples_per_second"],
                int(done["evaluated"]),
                done["evaluate_seconds"],
                int(done["checkpoints"]),
                done["checkpoint_seconds"],
            )
            left = left_seconds(config, splits, step, step - 1, spent)
            assert left is not None
            told, told_at = left, now
        costs = [VALID] * train.evaluates_after(step) + [TEST] * train.is_last(step)
        for samples in costs:
            seconds = sample * samples * rng.uniform(0.95, 1.05)
            done["evaluated"], done["evaluate_seconds"] = (
                done["evaluated"] + samples,
                done["evaluate_seconds"] + seconds,
            )
            now += seconds
        if train.checkpoints_after(step) or train.is_last(step):
            seconds = pause * rng.uniform(0.95, 1.05)
            done["checkpoints"], done["checkpoint_seconds"] = (
                done["checkpoints"] + 1,
                done["checkpoint_seconds"] + seconds,
            )
            now += seconds
    assert abs(told - (now - told_at)) <= 0.1 * (now - told_at)


class Clock:
    """Stands still but for what is told to take time: so a whole run is the same on a busy machine."""

    def __init__(self) -> None:
        self.now, self.steps = 1000.0, 0

    def takes(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


class Timed(Small):
    """Takes a millisecond for each sample, a third of that in evaluations, and ten times as long at first."""

    def forward(self, batch: Any) -> Any:
        CLOCK.steps += self.training
        slow = 10 if CLOCK.steps <= 4 else 1 if self.training else 0.33
        CLOCK.takes(slow * len(batch.dense) / 1000)
        return super().forward(batch)


@pytest.mark.parametrize("every", [{}, {"train.evaluate_every": 13, "checkpoint.every": 19}])
def test_a_whole_run_says_it_right_after_a_tenth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: dict[str, int]
) -> None:
    """With its slow start, evaluations, checkpoints and end."""
    said: list[tuple[float, float, float]] = []

    class Note:
        def log(self, event: dict[str, Any]) -> None:
            if event["event"] == "train":
                said.append((event["step"] / event["num_steps"], CLOCK.now, event["left_seconds"]))

    write = ShardWriter.write

    def write_slowly(self: ShardWriter) -> None:
        CLOCK.takes(0.2)
        write(self)

    CLOCK.steps = 0
    monkeypatch.setattr(ShardWriter, "write", write_slowly)
    monkeypatch.setattr(time, "perf_counter", lambda: CLOCK.now)
    monkeypatch.setattr(time, "monotonic", lambda: CLOCK.now)
    data = [write_tiny(tmp_path / f"{rows}.h5", rows) for rows in (32 * 250, 300)]
    config = tiny_config(data[0], **every, run_dir=str(tmp_path / "run"))
    config["data"] |= {"valid": [data[1]], "test": [data[1]]}
    config["model"] = {"class": f"{__name__}:Timed"}
    ph.train(config, quiet=True, loggers=[Note()])
    at, left = next((at, left) for share, at, left in said if share >= 0.1)
    assert abs(left - (CLOCK.now - at)) <= 0.1 * (CLOCK.now - at), said


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 5), st.integers(0, 25), st.integers(0, 25))
def test_counts_are_those_of_the_steps(
    samples: int, batch: int, epochs: int, evaluate_every: int, checkpoint_every: int
) -> None:
    schedule = Schedule(
        samples, batch, epochs, evaluate_every=evaluate_every, checkpoint_every=checkpoint_every
    )
    numbers = range(1, schedule.num_steps + 1)
    for step in range(schedule.num_steps + 1):
        later = [number for number in numbers if number > step]
        assert schedule.evaluations_left(step) == sum(map(schedule.evaluates_after, later))
        assert schedule.checkpoints_left(step) == sum(map(schedule.checkpoints_after, later))
        before = (schedule.step(number).num_samples for number in numbers if number <= step)
        assert schedule.samples_until(step) == sum(before)


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 300), st.integers(0, 25), st.integers(0, 9))
def test_a_portion_counts_its_own_steps(
    samples: int, batch: int, first: int, evaluate_every: int, checkpoint_every: int
) -> None:
    begun = Schedule(first, batch, 1, None, evaluate_every, checkpoint_every, growing=True)
    schedule = begun.followed_by(samples)
    numbers = range(schedule.steps_before + 1, schedule.num_steps + 1)
    for step in range(schedule.steps_before, schedule.num_steps + 1):
        later = [number for number in numbers if number > step]
        assert schedule.evaluations_left(step) == sum(map(schedule.evaluates_after, later))
        assert schedule.checkpoints_left(step) == sum(map(schedule.checkpoints_after, later))
        before = (schedule.step(number).num_samples for number in numbers if number <= step)
        assert schedule.samples_until(step) == sum(before)


def test_what_has_cost_nothing_yet_is_guessed() -> None:
    config, splits = load_config(tiny_config("x.h5")), schedules(0, 0, 1, 100)
    spent = Spent(10.0, 0, 0.0, 0, 0.0)
    training = (100 * 32 - 5 - 10 * 32) / 10
    expected = training + (VALID + TEST) * EVALUATION_SHARE / 10
    assert left_seconds(config, splits, 10, -1, spent) == expected
    del splits["valid"], splits["test"]
    assert left_seconds(config, splits, 10, -1, spent) == training
    assert left_seconds(config, splits, 10, -1, Spent(0.0, 0, 0.0, 0, 0.0)) is None


def test_an_evaluation_that_is_due_is_still_to_come() -> None:
    config, splits = load_config(tiny_config("x.h5")), schedules(10, 0, 1, 20)
    spent = Spent(32.0, 100, 50.0, 0, 0.0)
    before, after = (left_seconds(config, splits, 10, done, spent) for done in (-1, 10))
    assert before is not None
    assert after is not None
    assert before - after == VALID * 0.5
