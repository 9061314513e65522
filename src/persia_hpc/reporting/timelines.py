"""Reads the events of a run, however many there are: of those of training, which most are, only some."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .run_files import is_train_event, number, read_event

TRAIN_EVENTS = 2000  # that are read of a long file, evenly spread over it
OTHER_EVENTS = 3000  # the same of all other events, besides those that say how a run went on
OTHER_BYTES = 32 << 20  # of these events, which can be long where there are slices
HUGE = 1e100  # no chart shows what is beyond, for the sake of what isn't
CHART_POINTS = 200  # of a line: one in about two pixels

_OTHER = re.compile(rb'\{"event": "(?!train")')
_TRAIN = re.compile(rb'\n\{"event": "train"')
_RESUME, _RESTORE = b'{"event": "resume"', b'{"event": "restor'

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Timeline:
    """Holds events of a run in their order: all of a short one, as many as charts can show of a long one."""

    events: Sequence[dict[str, Any]] = ()
    damaged: int = 0  # lines among those looked at

    def kinds(self, *names: str) -> list[dict[str, Any]]:
        """Returns the events with these names."""
        return [event for event in self.events if event["event"] in names]

    def series(self, kind: str, name: str, split: str | None = None, *, by_time: bool = False) -> Points:
        """Returns a field's values over the steps, or over the seconds of all starts of the run together.

        What a resumed run has done once more is left out. kind: name of the event. split: of evaluations.
        """
        found: list[tuple[float, float, float]] = []  # step, its second, value
        for event, seconds in self._timed():
            step = number(event, "step")
            if event["event"] == "resume":
                found = [each for each in found if step is None or each[0] <= step]
            elif event["event"] == kind and (split is None or event.get("split") == split):
                value = number(event, name)
                if step is not None and value is not None and max(abs(step), abs(value)) < HUGE:
                    found.append((step, seconds, value))
        return [(seconds if by_time else step, value) for step, seconds, value in found]

    def _timed(self) -> Iterator[tuple[dict[str, Any], float]]:
        """Yields each event with its time; only those of training tell it, between them it is estimated."""
        done = 0.0
        for part in self._starts():
            known = [(0.0, 0.0)]
            for event in part:
                step, seconds = number(event, "step"), number(event, "seconds")
                if event["event"] == "resume" and step is not None:
                    known = [(step, 0.0)]
                elif step is not None and seconds is not None and step > known[-1][0]:
                    known.append((step, max(seconds, known[-1][1])))
            for event in part:
                yield event, done + _between(known, number(event, "step") or 0.0)
            done += known[-1][1]

    def _starts(self) -> list[list[dict[str, Any]]]:
        parts: list[list[dict[str, Any]]] = [[]]
        for event in self.events:
            if event["event"] == "resume":
                parts.append([])
            parts[-1].append(event)
        return parts


def _between(known: Sequence[tuple[float, float]], step: float) -> float:
    """Returns the second of a step by the known ones on either side of it."""
    place = bisect_left(known, (step, -1.0))
    if place == 0:
        return known[0][1]
    if place == len(known):
        return known[-1][1]
    (before, begin), (after, end) = known[place - 1], known[place]
    return begin + (end - begin) * (step - before) / (after - before)


def thinned(points: Points, limit: int = CHART_POINTS) -> Points:
    """Returns at most about `limit` points: of each stretch the smallest and the largest, and both ends."""
    if len(points) <= limit:
        return points
    stretches = max(1, limit // 2 - 1)
    kept = [points[0]]
    for i in range(stretches):
        part = points[i * len(points) // stretches : (i + 1) * len(points) // stretches]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += [point for point in part if point in ends][:2]
    return [*kept, points[-1]]


def read_timeline(path: Path) -> tuple[Timeline, str | None]:
    """Returns what metrics.jsonl tells, nothing without the file; and why it can't be read."""
    try:
        with contextlib.closing(_opened(path)) as content:
            events, damaged = [], 0
            for line in _lines(content):
                event = read_event(line)
                if event is None:
                    damaged += 1
                else:
                    events.append(event)
            return Timeline(events, damaged), None
    except FileNotFoundError:
        return Timeline(), None
    except (OSError, ValueError) as error:
        return Timeline(), f"{path} can't be read ({getattr(error, 'strerror', None) or error})"


class _Empty(bytes):
    def close(self) -> None:
        """Closes nothing."""


def _opened(path: Path) -> mmap.mmap | _Empty:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not make us wait
    try:
        info = os.fstat(file)
        if not stat.S_ISREG(info.st_mode):
            raise ValueError("it is not a file")
        return mmap.mmap(file, 0, prot=mmap.PROT_READ) if info.st_size else _Empty()
    finally:
        os.close(file)


def _lines(content: mmap.mmap | _Empty) -> list[bytes]:
    """Returns whole lines in their order, without most of those of training where there are many."""
    mean = 256  # bytes of a line of training
    if len(content) <= 2 * mean * TRAIN_EVENTS:
        lines = content[:].split(b"\n")
        return lines[:-1]  # the last is empty, or half a line that is written at this moment
    end = content.rfind(b"\n") + 1
    others = [found.start() for found in _OTHER.finditer(content, 0, end)]
    places = set(_spread(others, content))
    for i in range(TRAIN_EVENTS):
        found = _TRAIN.search(content, max(0, i * end // TRAIN_EVENTS - 1), end)
        if found is None:
            break
        places.add(found.start() + 1)
    last = content.rfind(b'\n{"event": "train"', 0, end)
    if last >= 0:
        places.add(last + 1)
    lines = []
    for place in sorted(places):
        line = content[place : content.find(b"\n", place)]
        if not line.startswith(b'{"event": "train') or is_train_event(line):
            lines.append(line)
    return lines


def _spread(places: Sequence[int], content: mmap.mmap | _Empty) -> Iterator[int]:
    """Yields where the events begin that are read; those of a resume, which change the others, always."""
    size = content.find(b"\n", places[-1]) - places[-1] if places else 0
    allowed = min(OTHER_EVENTS, max(100, OTHER_BYTES // max(1, size)))
    stride = max(1, len(places) // allowed)
    for i, place in enumerate(places):
        chosen = i % stride == 0 or i >= len(places) - 20
        if chosen or content[place : place + len(_RESUME)] in (_RESUME, _RESTORE):
            yield place
