"""Prepares Yambda as a ranking task by windows of time: a file for each window and piece of the users.

Each rank takes pieces of the users; a first pass finds the earliest anchor, with which the windows begin.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc.errors import UserError
from persia_hpc.preprocess.outputs import (
    FileReport,
    Outputs,
    input_identity,
    label_rate,
    make_directory,
    sum_and_counts,
)
from persia_hpc.preprocess.parts import check_given
from persia_hpc.preprocess.pieces import write_pieces
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.team import ONE_MEMBER, Team, once, share_of, together
from persia_hpc.samples.batch import Rows
from persia_hpc.samples.ids import Ids
from persia_hpc.samples.writer import DatasetWriter

from .anchors import SELECTIONS, Histories, Rules, Samples, find_anchors, schema_of
from .events import EventFile, read_mapping

SOURCE = "Yambda (Yandex), Apache-2.0, for research"
DTYPES = dict.fromkeys(
    ("user", "item", "artist", "album", "history", "history_artist", "history_album"), "uint32"
) | {"history_action": "uint8", "history_gap": "uint8"}
BATCH_EVENTS = 4_000_000  # of histories that are made at a time
EVENT_BYTES = 17  # that an event of a history takes before compression
NO_TIME = np.iinfo(np.int64).max


@dataclass(frozen=True)
class YambdaOptions:
    """Holds the options of `persia-hpc preprocess yambda`.

    input: multi_event.parquet, flat or sequential
    mappings: folder of artist_item_mapping.parquet and album_item_mapping.parquet
    windows: numbers of the first training window and of the one to evaluate; None: 0 and the last
    until: events from this time on are left out
    max_bad_lines: must be 0, since the files are Parquet
    encoding: that of other data, which this one must equal
    """

    out: Path
    input: Path
    mappings: Path | None = None
    windows: tuple[int, int] | None = None
    window_seconds: int = 86_400
    until: int | None = None
    history: int = 4_086
    min_history: int | None = None
    selection: str = "pools"
    scan: int = 20_000
    stride: int = 1
    piece_rows: int = 50_000_000
    overwrite: bool = False
    max_bad_lines: int = 0
    encoding: Path | None = None

    @property
    def rules(self) -> Rules:
        """Is what anchors and histories are."""
        least = self.history if self.min_history is None else self.min_history
        return Rules(least, self.history, self.selection, self.scan, self.stride)


@dataclass
class _Found:
    """Holds what a first pass knows of some pieces: anchors, events of their histories, and their times."""

    anchors: int = 0
    events: int = 0
    earliest: int = NO_TIME
    latest: int = -1


@dataclass(frozen=True)
class _Work:
    """Holds what all ranks need to know before they read events."""

    file: EventFile
    pieces: list[tuple[int, int]]
    mappings: dict[str, Ids] = field(default_factory=dict)

    @property
    def encoding(self) -> dict[str, Any]:
        """Is what gives the ids their meaning."""
        return {"dataset": "yambda", "mappings": bool(self.mappings)}


def prepare(options: YambdaOptions, team: Team = ONE_MEMBER) -> list[FileReport | str] | None:
    """Writes the missing files; returns what to print at the end, None if none was missing.

    Collective over `team`.
    Raises UserError for bad options or input, PersiaError for other failures, on all ranks.
    """
    work = together(team, lambda: _look(options))
    found = _first_pass(options, work, team)
    windows = together(team, lambda: _windows(options, found))
    outputs = together(team, lambda: _outputs(options, work, windows))
    missing = set(once(team, outputs.missing))  # ranks may see different files
    if not missing and once(team, outputs.up_to_date):
        return None
    together(team, lambda: _check_room(options, found) if team.rank == 0 else None)
    outputs.encode_together(team, lambda: work.encoding)
    names = _names(len(work.pieces), windows)
    wanted = [i for i, some in enumerate(names) if not missing.isdisjoint(some)]

    def write(i: int, progress: Progress) -> list[FileReport]:
        reports = _write(options, work, outputs, i, names[i], (found.earliest, windows))
        progress.add(work.pieces[i][1] - work.pieces[i][0])
        return reports

    sizes = [end - begin for begin, end in work.pieces]
    made = write_pieces(team, outputs, sizes, wanted, write, "yambda: writing", unit=" rows")
    if made is None:
        return None
    first, last = windows
    windows_are = f"windows {first} to {last - 1} are for training, {last} for the test"
    return [f"{found.anchors:,} anchors, from {found.earliest} s on; {windows_are}", *made]


def _look(options: YambdaOptions) -> _Work:
    least = {"history": 1, "scan": 1, "stride": 1, "piece_rows": 1, "window_seconds": 1}
    if options.min_history is not None:
        least["min_history"] = 0
    for name, value in least.items():
        if getattr(options, name) < value:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {getattr(options, name)}: expected {value} or more")
    if options.selection not in SELECTIONS:
        raise UserError(f"--selection {options.selection}: expected one of {', '.join(SELECTIONS)}")
    if options.windows is not None and not 0 <= options.windows[0] < options.windows[1]:
        raise UserError(
            f"--windows {options.windows[0]} {options.windows[1]}: expected two rising numbers from 0 on"
        )
    if options.max_bad_lines:
        raise UserError(
            f"--max-bad-lines {options.max_bad_lines}: got Parquet files, which have no lines to leave out: "
            "a value of another kind is an error; leave the option out, or repair the file"
        )
    file = EventFile(options.input)
    if not file.rows:
        raise UserError(f"{options.input}: got no rows, expected at least one")
    kinds = () if options.mappings is None else ("artist", "album")
    mappings = {kind: read_mapping(options.mappings, kind) for kind in kinds if options.mappings is not None}
    work = _Work(file, file.cut(options.piece_rows), mappings)
    check_given(options.encoding, work.encoding)
    return work


def _first_pass(options: YambdaOptions, work: _Work, team: Team) -> _Found:
    """Looks at all anchors.

    Collective over `team`.
    """
    sizes = [end - begin for begin, end in work.pieces]
    mine = share_of(team, sizes, range(len(sizes)))

    def look() -> _Found:
        total = _Found()
        with Progress("yambda: finding anchors", sum(sizes[i] for i in mine), shown=team.shows) as progress:
            for i in mine:
                events = work.file.read(*work.pieces[i], options.until)
                anchors = find_anchors(events, options.rules)
                if len(anchors):
                    total.anchors += len(anchors)
                    total.events += int(Histories(events, options.rules).lengths(anchors).sum())
                    total.earliest = min(total.earliest, int(events.time[anchors].min()))
                    total.latest = max(total.latest, int(events.time[anchors].max()))
                progress.add(sizes[i])
        return total

    found = team.gather(together(team, look))
    return _Found(
        sum(f.anchors for f in found),
        sum(f.events for f in found),
        min(f.earliest for f in found),
        max(f.latest for f in found),
    )


def _windows(options: YambdaOptions, found: _Found) -> tuple[int, int]:
    """Returns the first training window and the one to evaluate."""
    rules = options.rules
    if not found.anchors:
        raise UserError(
            f"{options.input}: got no listen with {rules.min_history} events of its user before it, expected "
            "some; lower --min-history"
        )
    last = (found.latest - found.earliest) // options.window_seconds
    first, test = options.windows or (0, last)
    if test > last or first >= test:
        raise UserError(
            f"--windows {first} {test}: got anchors of windows 0 to {last} of {options.window_seconds} s, "
            "expected a training window and a later one to evaluate"
        )
    return first, test


def _names(num_pieces: int, windows: tuple[int, int]) -> list[list[str]]:
    """Returns the names of each piece's files, in the order of the windows."""
    first, test = windows
    digits, more = max(3, len(str(test))), max(4, len(str(num_pieces - 1)))
    tails = [f"-{i:0{more}d}" if num_pieces > 1 else "" for i in range(num_pieces)]
    return [
        [*(f"train-{w:0{digits}d}{tail}.h5" for w in range(first, test)), f"test-{test:0{digits}d}{tail}.h5"]
        for tail in tails
    ]


def _outputs(options: YambdaOptions, work: _Work, windows: tuple[int, int]) -> Outputs:
    rules = options.rules
    inputs = [options.input]
    if options.mappings is not None:
        inputs += [options.mappings / f"{kind}_item_mapping.parquet" for kind in work.mappings]
    chosen: dict[str, Any] = {
        "windows": windows,
        "window_seconds": options.window_seconds,
        "until": options.until,
        "history": rules.history,
        "min_history": rules.min_history,
        "selection": rules.selection,
        "scan": rules.scan,
        "stride": rules.stride,
        "piece_rows": options.piece_rows,
    }
    settings = {"dataset": "yambda", "inputs": input_identity(inputs), "options": chosen}
    names = [name for some in _names(len(work.pieces), windows) for name in some]
    return Outputs(options.out, names, settings, overwrite=options.overwrite)


def _check_room(options: YambdaOptions, found: _Found) -> None:
    """Checks that the files of all windows would fit on the disk.

    Raises UserError if they wouldn't.
    """
    make_directory(options.out)
    windows = (found.latest - found.earliest) // options.window_seconds + 1
    share = 1.0 if options.windows is None else (options.windows[1] - options.windows[0] + 1) / windows
    needed = share * (found.events * EVENT_BYTES + found.anchors * 100)
    free = shutil.disk_usage(options.out).free
    if needed > free:
        raise UserError(
            f"{options.out}: got {free / 1e9:,.1f} GB free, expected about {needed / 1e9:,.1f} GB for "
            f"{share * found.anchors:,.0f} samples with {found.events / found.anchors:,.0f} events each; "
            "raise --stride, lower --history or name fewer --windows"
        )


def _write(
    options: YambdaOptions,
    work: _Work,
    outputs: Outputs,
    piece: int,
    names: list[str],
    windows: tuple[int, tuple[int, int]],
) -> list[FileReport]:
    """Writes a piece's files, one for each window that it has anchors in."""
    begin, (first, test) = windows
    events = work.file.read(*work.pieces[piece], options.until)
    anchors = find_anchors(events, options.rules)
    window = (events.time[anchors] - begin) // options.window_seconds
    inside = (window >= first) & (window <= test)
    anchors, window = anchors[inside], window[inside]
    samples = Samples(events, Histories(events, options.rules), work.mappings)
    schema = outputs.named(schema_of(work.mappings))
    dtypes = {name: kind for name, kind in DTYPES.items() if name in schema.feature_names}
    settings = dict(outputs.settings)
    writers: dict[str, DatasetWriter] = {}
    labels = {name: np.zeros(3) for name in names}
    with ExitStack() as stack:
        for some in _batches(samples.histories.lengths(anchors)):
            batch = samples.take(anchors[some])
            for w in np.unique(window[some]).tolist():
                name = names[w - first]
                if name not in writers:
                    writer = DatasetWriter(
                        outputs.directory / name,
                        schema,
                        id_dtypes=dtypes,
                        source=SOURCE,
                        preprocessing=settings,
                    )
                    writers[name] = stack.enter_context(writer)
                taken = batch.take(np.flatnonzero(window[some] == w))
                writers[name].write(taken)
                labels[name] += sum_and_counts(taken.labels)
        settings["absent"] = [name for name in names if name not in writers]
    if not writers:
        outputs.note_absent(names, {})
    return [
        FileReport(outputs.directory / name, writer.num_samples, label_rate(labels[name]))
        for name, writer in writers.items()
    ]


def _batches(lengths: Rows) -> list[slice]:
    """Returns slices of anchors with about `BATCH_EVENTS` events in their histories."""
    marks = np.cumsum(lengths) // BATCH_EVENTS
    cuts = np.flatnonzero(np.diff(marks)) + 1
    bounds = [0, *cuts.tolist(), len(lengths)]
    return [slice(a, b) for a, b in pairwise(bounds) if b > a]
