"""Holds what each rank has counted when it is done, as typed parts of the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persia_hpc.runtime.phases import Interval, Phases


@dataclass(frozen=True)
class Times:
    """Holds how a rank spent its time, in seconds."""

    wait: Mapping[str, float]  # by cause
    phases: Mapping[str, float]  # by phase
    intervals: Sequence[Interval] = ()  # of the last steps, for a trace

    @classmethod
    def of_loop(cls, phases: Phases, causes: Sequence[str]) -> Times:
        """Returns the times of a loop in which the phases named in `causes` are waits."""
        return cls.of_phases(phases, {cause: phases.seconds[cause] for cause in causes})

    @classmethod
    def of_phases(cls, phases: Phases, wait: Mapping[str, float]) -> Times:
        """Returns the times of a rank that has counted its waits itself."""
        return cls(wait, **phases.statistics())


@dataclass(frozen=True)
class ServerOutcome:
    """Holds what a parameter server has counted."""

    rows: int
    bytes: int
    row_bytes: int  # of `bytes`, those that rows take
    disk_rows: int  # of `rows`, those on disk
    disk_bytes: int
    ledger: Mapping[str, int]
    histogram: Mapping[int, int]  # rows by staleness
    last_apply: Mapping[int, float]  # wall-clock time, by the first step of each segment
    times: Times | None = None  # None if it has no process of its own


@dataclass(frozen=True)
class WorkerOutcome:
    """Holds what an embedding worker has counted."""

    first_pull: Mapping[int, float]  # wall-clock time, by the first step of each segment
    max_staleness: int = 0
    times: Times | None = None  # None if it has no process of its own


@dataclass(frozen=True)
class TrainerOutcome:
    """Holds what a trainer has done; steps and samples are those of the whole run."""

    steps: int
    samples: int
    skipped_steps: int
    first_step: int  # where this start of the run began
    first_samples: int
    stop_reason: str | None
    interrupted: bool  # by a signal
    evaluate_seconds: float
    compile_seconds: float  # of the first forward, if it compiled the dense network
    checkpoints: Mapping[str, Any]
    export: Mapping[str, Any] | None  # of versions for a service, on trainer 0
    results: Mapping[str, Mapping[str, Any]]  # the last metrics of each split
    best: Mapping[str, Any] | None  # evaluation of the valid split
    restored_step: int | None  # of `best`, if its rows and weights were loaded at the end
    follow: Mapping[str, Any] | None  # with `data.follow`, on trainer 0
    steady: Mapping[str, float]
    times: Times | None


@dataclass(frozen=True)
class JobOutcome:
    """Holds what all ranks have counted, by role and in the order of their role ranks."""

    servers: Sequence[ServerOutcome]
    workers: Sequence[WorkerOutcome]
    trainers: Sequence[TrainerOutcome]

    def by_role(self) -> dict[str, Sequence[ServerOutcome | WorkerOutcome | TrainerOutcome]]:
        """Returns the outcomes by the name of their role."""
        return {
            "parameter_server": self.servers,
            "embedding_worker": self.workers,
            "trainer": self.trainers,
        }
