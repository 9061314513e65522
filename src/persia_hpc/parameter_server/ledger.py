"""Counts what becomes of pulled rows, and when updates were made."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Ledger:
    """Counts the outcomes of all pulled rows, and a few more numbers.

    pulled = applied + evicted_in_flight + unadmitted + nonfinite + dropped. The last fields are not part of
    this sum: `reused` rows are pulled rows that need not be sent, `evicted` rows left a table between steps,
    `evaluation` rows were looked up; `early` rows are pulled rows that were sent ahead of their step, and
    `patched` rows those of them that were sent again since they had changed; others went to a table's disk
    tier, and came back from it, or (of `evicted`) went because the disk took no more.
    """

    pulled_rows: int = 0
    applied_rows: int = 0
    evicted_in_flight_rows: int = 0
    unadmitted_rows: int = 0
    nonfinite_rows: int = 0
    dropped_rows: int = 0
    reused_rows: int = 0
    evicted_rows: int = 0
    evaluation_rows: int = 0
    early_rows: int = 0
    patched_rows: int = 0
    to_disk_rows: int = 0
    from_disk_rows: int = 0
    disk_full_rows: int = 0


@dataclass
class SegmentTimes:
    """Holds the wall-clock seconds (time.time) of the last update of each segment, by its first step."""

    last_apply: dict[int, float] = field(default_factory=dict)
