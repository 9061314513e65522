"""The size of a trainer's full batch is that of its part of every step but an epoch's last."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.schedule import Schedule
from persia_hpc.trainer.progress import Progress
from persia_hpc.trainer.run_state import RunState


def progress(schedules: dict[str, Schedule], rank: int, size: int) -> Progress:
    made = Progress()
    made.state = RunState(schedules)
    made.peers = SimpleNamespace(rank=rank, size=size)  # type: ignore[assignment]
    return made


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 6))
def test_whole_steps_have_full_batches(num_samples: int, batch_size: int, trainers: int) -> None:
    schedule = Schedule(num_samples, batch_size, epochs=2)
    for rank in range(trainers):
        full = progress({"train": schedule}, rank, trainers).full_batch
        sizes = [
            end - begin
            for begin, end in (schedule.part(s + 1, rank, trainers) for s in range(schedule.num_steps))
        ]
        whole = [schedule.step(s + 1).num_samples for s in range(schedule.num_steps)]
        assert all(size == full for size, total in zip(sizes, whole, strict=True) if total == max(whole))


def test_data_that_grow_and_sessions_that_do_not_train() -> None:
    growing = Schedule(0, 100, growing=True)
    assert [progress({"train": growing}, rank, 3).full_batch for rank in range(3)] == [33, 33, 34]
    assert progress({"test": Schedule(10, 5)}, 0, 1).full_batch == 0
