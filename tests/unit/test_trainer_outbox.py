"""When row gradients are sent: from a CPU at once, from a GPU while it computes the next step.

The stream pulls ahead as far as a server lets it; whether the trainer sees a batch that has come is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persia_hpc.arrays import Array
from persia_hpc.config import load_config
from persia_hpc.job.facts import Facts, facts_of_sources
from persia_hpc.job.local_stream import LocalStream
from persia_hpc.job.training import make_session
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.samples.source import Source, open_source
from persia_hpc.trainer.driver import Driver
from persia_hpc.trainer.session import Session
from tests.support.fake_gpu import FakeGpu, fake_gpu
from tests.support.local_ring import LocalRing
from tests.support.models import Small, squared
from tests.support.tiny import tiny_config, write_tiny

__all__ = ["fake_gpu"]
SAMPLES, BATCH = 128, 16
STEPS = SAMPLES // BATCH


class AheadStream(LocalStream):
    """Pulls as workers do, before batches are asked for; checks that gradients come once and in order."""

    def __init__(self, facts: Facts, source: Source, arrives: Callable[[], bool]) -> None:
        super().__init__(
            facts,
            {"train": source, "valid": source},
            ParameterServer(facts.config, facts.layout, num_steps=STEPS),
        )
        self.log: list[tuple[str, int]] = []
        self.ring = LocalRing(1 << 18)
        self.memory = (self.ring.memory,)  # type: ignore[assignment]
        self._multi = [f.name for f in facts.layout.features if f.multi]
        self._arrives = arrives
        self._ready: dict[int, RowBatch] = {}
        self._next = 1

    def begin_segment(self, first: int, last: int, rate_factor: float) -> None:
        assert self.server.clock.applied == first - 1
        super().begin_segment(first, last, rate_factor)

    def _pull(self) -> None:
        while self._next <= self._last and self.server.clock.may_answer(self._next, 0):
            batch = super().next_batch(self._next)
            assert batch is not None
            assert batch.staleness <= self.server.clock.bound
            self._ready[self._next] = self.ring.carry(batch, self._multi)
            self._next += 1
            self.server.apply_ready()  # with `exact`, pushes wait for pulls

    def peek(self, step: int) -> RowBatch | None:  # type: ignore[override]
        self._pull()
        return self._ready.get(step) if self._arrives() else None

    def next_batch(self, step: int) -> RowBatch | None:
        self._pull()
        assert step in self._ready, f"the trainer would wait for step {step} for ever"
        return self._ready.pop(step)

    def push(self, batch: RowBatch, gradients: list[Array]) -> None:
        self.log.append(("push", batch.step))
        batch.release()
        super().push(batch, gradients)
        self._pull()

    def begin_evaluation(self, split: str, step: int) -> None:
        assert self.server.clock.applied == step, "gradients are in flight"
        super().begin_evaluation(split, step)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    opened = open_source([write_tiny(tmp_path_factory.mktemp("data") / "train.h5", SAMPLES)])
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def on_cpu() -> dict[Any, np.ndarray]:
    """What a CPU gives, by the options of a run."""
    return {}


def started(
    source: Source, arrives: Callable[[], bool], device: str, **changes: Any
) -> tuple[Session, AheadStream]:
    paths = {"data.train": ["train.h5"], "data.valid": ["train.h5"], "data.batch_size": BATCH}
    config = load_config(tiny_config("", **{**paths, "train.evaluate_at_end": False, **changes}))
    facts = facts_of_sources(config, {"train": source, "valid": source})
    stream = AheadStream(facts, source, arrives)
    return make_session(facts, stream, device=torch.device(device)), stream


def run(
    source: Source, arrives: Callable[[], bool], device: str, bad: Sequence[int] = (), **changes: Any
) -> tuple[np.ndarray, list]:
    """Trains; returns what the model then says of all samples, and the order of forwards and pushes.

    bad: steps in which a dense gradient isn't finite, though the rows' are.
    """
    session, stream = started(source, arrives, device, **changes)
    driver = Driver(session.config, session.inputs)
    loss = driver.loss

    def noted(logits: torch.Tensor, batch: Any) -> Any:
        stream.log.append(("forward", batch.step))
        return loss(logits, batch)

    reduce = session.reducer.reduce

    def reduce_noted() -> None:  # with others, which may wait for a batch that needs the step before
        done = [step for what, step in stream.log if what == "push"]
        assert done == list(range(1, session.step_number + 1))
        reduce()

    def spoiled(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (np.nan if session.step_number + 1 in bad else 1)

    driver.loss = noted
    next(driver.model.parameters()).register_hook(spoiled)
    session.reducer.reduce = reduce_noted  # type: ignore[method-assign]
    driver.run(session)
    assert [step for what, step in stream.log if what == "push"] == list(range(1, STEPS + 1))
    ledger = stream.server.ledger
    assert ledger.applied_rows + ledger.nonfinite_rows == ledger.pulled_rows > 0
    assert session.skipped_steps == len(bad)
    assert (ledger.nonfinite_rows > 0) == bool(bad)
    found = np.concatenate([logits.copy() for logits, _ in session.predictions(None, "valid")])
    session.close()
    return found, stream.log


def late(log: list[tuple[str, int]]) -> list[int]:
    """Steps whose gradients were sent after the next forward."""
    return [
        step for at, (what, step) in enumerate(log) if what == "push" and ("forward", step + 1) in log[:at]
    ]


SLOW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(
    looks=st.lists(st.booleans(), max_size=30),
    bound=st.integers(0, 4),
    evaluate_every=st.sampled_from([3, STEPS]),
    amp=st.sampled_from(["off", "bf16", "fp16"]),
    bad=st.sampled_from([(), (3,), (4, 5)]),
)
def test_whenever_gradients_are_sent_a_gpu_gives_what_a_cpu_gives(
    fake_gpu: FakeGpu,
    source: Source,
    on_cpu: dict[Any, np.ndarray],
    looks: list[bool],
    bound: int,
    evaluate_every: int,
    amp: str,
    bad: tuple[int, ...],
) -> None:
    """With `exact` values don't depend on when gradients come; the stream checks bound, order and drains."""
    changes = {"train.evaluate_every": evaluate_every, "train.amp": amp}
    if bound:
        changes |= {"mode": "hybrid", "staleness_bound": bound, "exact": True}
    key = (bound, evaluate_every, amp, bad)
    if key not in on_cpu:
        on_cpu[key], log = run(source, lambda: True, "cpu", bad, **changes)
        assert late(log) == []
    drawn = iter(looks)
    with fake_gpu:
        found, log = run(source, lambda: next(drawn, True), "cuda", bad, **changes)
    assert fake_gpu.faults == []
    assert np.array_equal(found, on_cpu[key])
    ends = {*range(evaluate_every, STEPS + 1, evaluate_every), STEPS}
    assert not ends & set(late(log))
    if not bound:
        assert late(log) == []
    elif not looks:
        assert set(late(log)) == set(range(1, STEPS + 1)) - ends


@SLOW
@given(looks=st.lists(st.booleans(), max_size=30), bound=st.integers(1, 4))
def test_without_exact_nothing_is_lost_or_too_stale(
    fake_gpu: FakeGpu, source: Source, looks: list[bool], bound: int
) -> None:
    drawn = iter(looks)
    with fake_gpu:
        found, _ = run(source, lambda: next(drawn, True), "cuda", mode="hybrid", staleness_bound=bound)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_step_waits_once_for_what_a_gpu_computes(
    fake_gpu: FakeGpu, source: Source, amp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its verdict. The two events are of copies: of the batch, which is over, and of gradients.

    Those of the step before are waited for when the step has been launched.
    """
    finish = Session._finish_step
    waits: list[list[str]] = []
    began: list[int] = []

    def noted(session: Session) -> None:
        began.append(before := len(fake_gpu.waits))
        finish(session)
        waits.append(fake_gpu.waits[before:])

    monkeypatch.setattr(Session, "_finish_step", noted)
    changes = {"mode": "hybrid", "staleness_bound": 2, "train.amp": amp}
    with fake_gpu:
        run(source, lambda: True, "cuda", **changes)
    verdict = ["tolist", "event"]
    assert waits[0] == verdict
    assert waits[1:-1] == [["event", "event, pending", *verdict]] * (STEPS - 2)
    assert waits[-1] == ["event", "event, pending", *verdict, "event", "event, pending"]
    ended = began[-1] + len(waits[-1])  # nothing else waits between: no forward and no backward
    assert fake_gpu.waits[began[0] : ended] == [wait for step in waits for wait in step]
    assert fake_gpu.faults == []


def test_a_loop_that_is_left_early_keeps_no_gradients(fake_gpu: FakeGpu, source: Source) -> None:
    with fake_gpu:
        session, stream = started(source, lambda: True, "cuda", mode="hybrid", staleness_bound=2)
        session.prepare(Small(session.inputs))
        for batch in session.batches():
            session.step(squared(session.forward(batch), batch))
            if batch.step == 3:
                break
        assert [step for _, step in stream.log] == [1, 2]  # the fourth batch has come
        session.close()
    assert [step for _, step in stream.log] == [1, 2, 3]
    assert session.pooling.staging.used_ahead == 2
