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

    def count(self, applied: int, evicted_in_flight: int, unadmitted: int, nonfinite: int) -> None:
        """Adds what became of the rows of a push."""
        self.applied_rows += applied
        self.evicted_in_flight_rows += evicted_in_flight
        self.unadmitted_rows += unadmitted
        self.nonfinite_rows += nonfinite

    def count_disk(self, to_disk: int, from_disk: int, disk_full: int) -> None:
        """Adds rows that went to disk, came back, and found no room there."""
        self.to_disk_rows += to_disk
        self.from_disk_rows += from_disk
        self.disk_full_rows += disk_full


@dataclass
class SegmentTimes:
    """Holds the wall-clock seconds (time.time) of the last update of each segment, by its first step."""

    last_apply: dict[int, float] = field(default_factory=dict)
