"""Batches that a thread prepares ahead are those that are prepared when they are asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.job.facts import facts_of_sources
from persia_hpc.job.local_stream import STEPS_AHEAD, LocalStream, local_server
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.samples.source import open_source
from persia_hpc.serving.requests import ExportRequest
from tests.support.tiny import tiny_config, write_tiny

SAMPLES, BATCH = 256, 16
STEPS = SAMPLES // BATCH
assert STEPS > 4 + STEPS_AHEAD + 1


def same(sample: Any, seed: int, step: int) -> Any:
    """Transforms nothing."""
    return sample


def make_stream(path: Path, *, ahead: bool, transform: str | None = None) -> tuple[LocalStream, list[str]]:
    """Returns a stream and the names of the threads that have read for it, which grow."""
    data = path / "data.h5"
    if not data.exists():
        write_tiny(data, SAMPLES)
    changes = {"data.batch_size": BATCH} | ({} if transform is None else {"data.transform": transform})
    config = load_config(tiny_config(str(data), **changes))
    sources = {"train": open_source([str(data)])}
    facts = facts_of_sources(config, sources)
    stream = LocalStream(facts, sources, local_server(facts), ahead=ahead)
    threads: list[str] = []
    reader = stream.splits.readers["train"]
    read = reader.read

    def noted(epoch: int, begin: int, end: int) -> Any:
        threads.append(threading.current_thread().name)
        return read(epoch, begin, end)

    reader.read = noted  # type: ignore[method-assign]
    return stream, threads


def arrays(batch: RowBatch) -> list[np.ndarray]:
    return [*batch.rows, batch.indices, batch.row_offsets, batch.positions, batch.dense, batch.labels]


def train(stream: LocalStream, first: int, last: int) -> list[list[np.ndarray]]:
    stream.begin_segment(first, last, 1.0)
    seen = []
    for step in range(first, last + 1):
        batch = stream.next_batch(step)
        assert batch is not None
        seen.append([each.copy() for each in arrays(batch)])
        stream.push(batch, [np.full_like(rows, 0.1 * step) for rows in batch.rows])
    assert stream.next_batch(last + 1) is None
    return seen


def test_same_batches(tmp_path: Path) -> None:
    there, ahead_threads = make_stream(tmp_path, ahead=True)
    here, threads = make_stream(tmp_path, ahead=False)
    for first, last in ((1, 3), (4, 4), (5, STEPS)):
        for ours, plain in zip(train(there, first, last), train(here, first, last), strict=True):
            for a, b in zip(ours, plain, strict=True):
                np.testing.assert_array_equal(a, b)
    there.close()
    me = threading.current_thread().name
    assert set(threads) == {me}
    assert [name == me for name in ahead_threads] == [step in (1, 4, 5) for step in range(1, STEPS + 1)]


def test_transforms_stay_in_the_training_thread(tmp_path: Path) -> None:
    stream, threads = make_stream(tmp_path, ahead=True, transform=f"{__name__}:same")
    train(stream, 1, STEPS)
    assert set(threads) == {threading.current_thread().name}


def test_a_step_that_is_not_trained_may_fail(tmp_path: Path) -> None:
    stream, _ = make_stream(tmp_path, ahead=True)
    prepare = stream.worker.prepare

    def failing(sample: Any, **names: Any) -> Any:
        if names["step"] == 2:
            raise UserError("bad samples")
        return prepare(sample, **names)

    stream.worker.prepare = failing  # type: ignore[method-assign]
    stream.begin_segment(1, STEPS, 1.0)
    batch = stream.next_batch(1)
    assert batch is not None
    stream.push(batch, batch.rows)
    stream.request_stop()
    stream.close()  # says nothing about step 2
    stream, _ = make_stream(tmp_path, ahead=True)
    stream.worker.prepare = failing  # type: ignore[method-assign]
    stream.begin_segment(1, STEPS, 1.0)
    stream.next_batch(1)
    with pytest.raises(UserError, match="bad samples"):
        stream.next_batch(2)


def test_gradients_are_applied_by_a_thread_before_anything_else_uses_the_server(tmp_path: Path) -> None:
    stream, _ = make_stream(tmp_path, ahead=True)
    server, threads = stream.server, []
    submit = server.submit_push

    def slow(*push: Any) -> None:
        threads.append(threading.current_thread())
        time.sleep(0.05)
        submit(*push)

    server.submit_push = slow  # type: ignore[method-assign]
    stream.begin_segment(1, STEPS, 1.0)
    uses: list[Callable[[], object]] = [
        lambda: stream.server,
        stream.end_segment,
        lambda: stream.begin_evaluation("train", 3),
        lambda: stream.begin_export(ExportRequest("begin", 1, 4, str(tmp_path / "part"))),
        lambda: stream.next_batch(6),
    ]
    batch = stream.next_batch(1)
    for step, use in enumerate([*uses, stream.request_stop], 1):
        assert batch is not None
        stream.push(batch, batch.rows)
        assert stream.stop_signal() is None  # which is asked for in every step, and waits for nothing
        assert server.clock.applied == step - 1
        found = use()
        assert server.clock.applied == step
        batch = found if isinstance(found, RowBatch) else stream.next_batch(step + 1)
    assert threading.current_thread() not in threads
    stream.close()


def test_an_update_that_fails_is_told_by_what_comes_next(tmp_path: Path) -> None:
    stream, _ = make_stream(tmp_path, ahead=True)
    stream.begin_segment(1, STEPS, 1.0)
    batch = stream.next_batch(1)
    assert batch is not None
    stream.push(batch, [rows[:-1] for rows in batch.rows])
    with pytest.raises(ValueError, match="rows of dim group 0"):
        stream.next_batch(2)
    stream.close()
