"""Reads what all ranks of a run have counted over time: memory of each role, rows of tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from persia_hpc.runtime.telemetry import EVENT, FOLDER

from .run_files import number, read_bytes, read_event
from .timelines import HUGE, Points

LINES = 12_000  # of all files together
LEAST_LINES = 20  # of a file, its first and its last among them

Values = Callable[[Iterable[float]], float]


class TelemetrySeries:
    """Holds some of the lines of all ranks' telemetry files, evenly spread, in the order of their time."""

    def __init__(self, run_dir: Path) -> None:
        """Reads the files; what is damaged in them is left out."""
        files = sorted((run_dir / FOLDER).glob("*.jsonl"))
        most = max(LEAST_LINES, LINES // max(1, len(files)))
        self._events = [event for path in files for event in _events(path, most)]
        self._events.sort(key=lambda event: event[0])

    def over_ranks(self, role: str, name: str, together: Values) -> Points:
        """Returns a number over the seconds since the first line, its last values of all ranks put together.

        It begins when all ranks of the role have told it. together: for instance `sum` or `max`.
        """
        own = [
            (time, rank, values[name])
            for time, of, rank, values in self._events
            if of == role and name in values
        ]
        ranks = {rank for _, rank, _ in own}
        last: dict[int, float] = {}
        points = []
        for time, rank, value in own:
            last[rank] = value
            if len(last) == len(ranks):
                points.append((time - self._events[0][0], together(last.values())))
        return points


def _events(path: Path, most: int) -> list[tuple[float, str, int, dict[str, float]]]:
    """Returns time, role, rank and numbers of at most about `most` lines."""
    data, _ = read_bytes(path)
    lines = (data or b"").split(b"\n")[:-1]
    stride = max(1, len(lines) // most)
    found = []
    for line in {**dict.fromkeys(range(0, len(lines), stride)), len(lines) - 1: None} if lines else ():
        event = read_event(lines[line]) or {}
        time, rank, role = number(event, "time"), number(event, "rank"), event.get("role")
        if event.get("event") == EVENT and time is not None and rank is not None and isinstance(role, str):
            numbers = {name: number(event, name) for name in event}
            values = {n: v for n, v in numbers.items() if v is not None and abs(v) < HUGE}
            if abs(time) < HUGE and 0 <= rank < 2**31:
                found.append((time, role, int(rank), values))
    return found
