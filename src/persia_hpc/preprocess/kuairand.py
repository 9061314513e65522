"""Prepares KuaiRand: short videos that were shown, what the user did with them, and with others before.

Ids of users, videos, authors and music are the files' numbers, and codes too; words are hashes.
Shapes: N impressions in the order of the files, R samples taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.bad_lines import BadLines
from persia_hpc.preprocess.columns import split_lists, to_ids
from persia_hpc.preprocess.frames import Frame, Place, parse
from persia_hpc.preprocess.histories import Timeline
from persia_hpc.preprocess.lines import Piece, TextBlock, expand_files, read_blocks
from persia_hpc.preprocess.outputs import ITEMS, FileReport, Outputs, input_identity
from persia_hpc.preprocess.parts import Part, check_given, cut, file_names, is_done, write_parts
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.table.input import header
from persia_hpc.preprocess.team import ONE_MEMBER, Team, together
from persia_hpc.samples.batch import IdColumn, Rows, SampleBatch
from persia_hpc.samples.ids import MISSING_ID, Ids
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

Result = TypeVar("Result")

SOURCE = "KuaiRand (Gao et al., CIKM 2022), CC BY-SA 4.0"
ENCODING = {"dataset": "kuairand", "missing_id": MISSING_ID}
LOGS = ("log_standard_4_08_to_4_21_*.csv", "log_standard_4_22_to_5_08_*.csv", "log_random_4_22_to_5_08_*.csv")
SPLITS = ("train", "valid", "test")  # of the logs, in their order
USERS, VIDEOS = "user_features_*.csv", "video_features_basic_*.csv"
# Bits of an action, from 1 on, as HSTU's configuration of KuaiRand has them; each is a label too.
ACTIONS = (
    "is_click",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "long_view",
    "is_profile_enter",
)
LOG_NUMBERS = ("user_id", "video_id", "hourmin", "time_ms", "duration_ms", "tab", *ACTIONS)
WORDS = ("user_active_degree", "follow_user_num_range", "fans_user_num_range", "friend_user_num_range")
USER_IDS = (
    *WORDS,
    "register_days_range",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    *(f"onehot_feat{i}" for i in range(18)),
)
VIDEO_IDS = ("author_id", "video_type", "upload_type", "music_id", "music_type")
STRINGS = {*WORDS, "register_days_range", "video_type", "upload_type"}


@dataclass(frozen=True)
class KuaiRandOptions:
    """Holds the options of `persia-hpc preprocess kuairand`.

    input: directory of the CSV files
    history: most earlier videos of a sample
    shards: number of training files
    max_bad_lines: the most lines that aren't of the layout and are left out
    encoding: that of other data, which this one must equal
    """

    out: Path
    input: Path
    history: int = 100
    overwrite: bool = False
    shards: int = 1
    max_bad_lines: int = 0
    encoding: Path | None = None


@dataclass(frozen=True)
class Known:
    """Holds what a file knows of users or videos: their ids, sorted, and the columns of each."""

    ids: Ids
    columns: dict[str, IdColumn]

    def rows(self, wanted: Ids) -> Rows:
        """Returns the row of each id [R]; the last one, which knows nothing, for an id without any."""
        places = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        return np.where(self.ids[places] == wanted, places, len(self.ids))


@dataclass(frozen=True)
class Impressions:
    """Holds all impressions, and makes samples of them; `actions` [N] are bits."""

    numbers: dict[str, npt.NDArray[np.int64]]
    actions: npt.NDArray[np.int64]
    users: Known
    videos: Known
    timeline: Timeline
    limit: int

    @property
    def schema(self) -> DatasetSchema:
        """Is the schema of the samples that `take` returns."""
        one = ["user_id", "video_id", *USER_IDS, *VIDEO_IDS, "tab", "hour"]
        many = ["tag", "history", "history_author", "history_action", "history_gap"]
        features = (*map(FeatureSchema, one), *(FeatureSchema(name, multi=True) for name in many))
        return DatasetSchema(features, ("log_duration",), ACTIONS, has_group=True, has_time=True)

    def take(self, rows: Rows) -> SampleBatch:
        """Returns the samples of these impressions [R]."""
        n = {name: values[rows] for name, values in self.numbers.items()}
        past = self.timeline.before(self.places[rows], self.limit)
        videos = self.numbers["video_id"].view(np.uint64)
        user_rows = self.users.rows(n["user_id"].view(np.uint64))
        video_rows = self.videos.rows(videos[rows])
        ids = {name: IdColumn(n[name].view(np.uint64)) for name in ("user_id", "video_id", "tab")}
        ids["hour"] = IdColumn((n["hourmin"] // 100).view(np.uint64))
        ids.update({name: column.take(user_rows) for name, column in self.users.columns.items()})
        ids.update({name: column.take(video_rows) for name, column in self.videos.columns.items()})
        ids["history"] = past.column(videos)
        authors = self.videos.columns["author_id"].values[self.videos.rows(videos[past.events])]
        ids["history_author"] = IdColumn.from_lengths(authors, past.lengths)
        ids["history_action"] = past.column(self.actions.view(np.uint64))
        ids["history_gap"] = past.gap_column(seconds=False)
        dense = np.log1p(np.maximum(n["duration_ms"], 0) / 1000)[:, None].astype(np.float32)
        labels = np.stack([n[name] for name in ACTIONS], axis=1).astype(np.float32)
        return SampleBatch(ids, dense, labels, group=n["user_id"], time=n["time_ms"] // 1000)

    @property
    def places(self) -> Rows:
        """Is the place of each impression in the timeline [N]."""
        return self.numbers["_place"]


def prepare(options: KuaiRandOptions, team: Team = ONE_MEMBER) -> list[FileReport | str] | None:
    """Writes files for each log, and the videos; returns what to print, None when all was up to date.

    Collective over `team`.
    Raises UserError for bad options or input, or if other files are in the way.
    """
    logs, others, bad_lines, outputs = together(team, lambda: _look(options))
    if is_done(team, outputs, bad_lines):
        return None
    parts = together(team, lambda: _parts(options, logs, others, bad_lines, shown=team.shows))
    return write_parts(team, outputs, parts, ENCODING, "kuairand: writing", bad_lines, source=SOURCE)


def _look(options: KuaiRandOptions) -> tuple[list[list[Path]], list[list[Path]], BadLines, Outputs]:
    """Returns the files of logs and others, what is known of their lines, and the outputs."""
    check_given(options.encoding, ENCODING)
    if options.history < 1:
        raise UserError(f"--history {options.history}: expected 1 or more")
    names = [*file_names(SPLITS, options.shards), ITEMS]
    logs = [_files(options.input, name) for name in LOGS]
    others = [_files(options.input, name) for name in (USERS, VIDEOS)]
    paths = [path for some in (*logs, *others) for path in some]
    chosen = {"history": options.history, **({"shards": options.shards} if options.shards > 1 else {})}
    settings: dict[str, Any] = {
        "dataset": "kuairand",
        "inputs": input_identity(paths),
        "options": chosen,
        "missing_id": MISSING_ID,
    }
    bad_lines = BadLines([Piece(path) for path in paths], options.max_bad_lines)
    return logs, others, bad_lines, Outputs(options.out, names, settings, overwrite=options.overwrite)


def _parts(
    options: KuaiRandOptions,
    logs: Sequence[Sequence[Path]],
    others: Sequence[Sequence[Path]],
    bad_lines: BadLines,
    *,
    shown: bool,
) -> list[Part]:
    """Reads all files; returns what to write."""
    users = _known(others[0], "user_id", USER_IDS, bad_lines, shown=shown)
    videos = _known(others[1], "video_id", VIDEO_IDS, bad_lines, ("tag",), shown=shown)
    log, bounds = _read_logs(logs, bad_lines, shown=shown)
    impressions = _impressions(log, bounds, users, videos, options.history)
    seen = log["video_id"].view(np.uint64)[: bounds[1]]
    items = np.unique(log["video_id"].view(np.uint64))
    counts = np.bincount(np.searchsorted(items, seen), minlength=len(items)).astype(np.float32)
    features = [FeatureSchema(name) for name in ("video_id", *VIDEO_IDS)]
    item_schema = DatasetSchema((*features, FeatureSchema("tag", multi=True)), (), (), has_weight=True)

    def take_items(begin: int, end: int) -> SampleBatch:
        some = items[begin:end]
        rows = videos.rows(some)
        ids = {"video_id": IdColumn(some), **{name: c.take(rows) for name, c in videos.columns.items()}}
        nothing = np.empty((len(some), 0), np.float32)
        return SampleBatch(ids, nothing, nothing, weight=counts[begin:end])

    parts = []
    for k, split in enumerate(SPLITS):
        first, rows = bounds[k], bounds[k + 1] - bounds[k]

        def take(begin: int, end: int, first: int = first) -> SampleBatch:
            return impressions.take(np.arange(first + begin, first + end))

        parts += cut(file_names([split], options.shards), impressions.schema, rows, take)
    return [*parts, *cut([ITEMS], item_schema, len(items), take_items)]


def _files(folder: Path, pattern: str) -> list[Path]:
    """Returns the files of the folder whose names fit.

    Raises UserError, which says where they may be, if none does.
    """
    if any(folder.glob(pattern)):
        return expand_files([pattern], folder)
    got = f"no {pattern}" if folder.is_dir() else "no such folder"
    fix = "; it is `data` of an unpacked KuaiRand-Pure or KuaiRand-1K"
    if any(folder.glob(f"{pattern}.*")):
        fix = f"; decompress {next(folder.glob(f'{pattern}.*')).name} and the others first"
    elif inside := sorted(folder.glob(f"*/{pattern}")):
        fix = f"; did you mean {inside[0].parent}?"
    raise UserError(f"{folder}: got {got}, expected {', '.join((*LOGS, USERS, VIDEOS))} there{fix}")


def _rows(
    paths: Sequence[Path],
    needed: Sequence[str],
    title: str,
    use: Callable[[Frame], Result],
    bad_lines: BadLines,
    *,
    shown: bool,
) -> Iterator[Result]:
    """Yields what `use` makes of the good rows of the files, with all columns as text; empty values are null.

    Raises UserError for a file without one of the columns needed, and for too many bad lines.
    """
    total = sum(path.stat().st_size for path in paths)
    with Progress(f"kuairand: {title}", total, unit=" bytes", shown=shown) as progress:
        for path in paths:
            names: tuple[str, ...] = ()
            for block in read_blocks(path, quoted=True, on_read=progress.add):
                rows = block
                if not names:
                    names, rows = header(block, ",", True)
                    missing = [name for name in needed if name not in names]
                    if missing:
                        got, more = ", ".join(names), ", ".join(missing)
                        raise UserError(f"{path}: got columns {got}, expected also {more}")
                made = bad_lines.good(path, rows, partial(_parsed, names, use)) if rows.num_rows else None
                if made is not None:
                    yield made


def _parsed(names: Sequence[str], use: Callable[[Frame], Result], block: TextBlock) -> Result:
    return use(parse(block, dict.fromkeys(names, pl.String), ",", quoted=True))


def _known(
    paths: Sequence[Path],
    key: str,
    names: Sequence[str],
    bad_lines: BadLines,
    lists: Sequence[str] = (),
    *,
    shown: bool,
) -> Known:
    """Reads what is known of users or videos; the last row of the result is of those of whom nothing is."""
    found: dict[str, list[Ids]] = {name: [] for name in (key, *names)}
    many: dict[str, list[tuple[Ids, npt.NDArray[np.int64]]]] = {name: [] for name in lists}

    def read(source: Frame) -> tuple[dict[str, Ids], dict[str, tuple[Ids, npt.NDArray[np.int64]]]]:
        one = {
            name: to_ids(source.frame[name], "string" if name in STRINGS else "integer", Place(source, name))
            for name in found
        }
        listed = {}
        for name in lists:
            values, lengths = split_lists(source.frame[name], ",")
            owner = np.repeat(np.arange(len(lengths)), lengths)
            listed[name] = to_ids(values, "integer", Place(source, name, values, owner)), lengths
        return one, listed

    needed = (key, *names, *lists)
    for one, listed in _rows(paths, needed, "reading what is known", read, bad_lines, shown=shown):
        for name, values in one.items():
            found[name].append(values)
        for name, column in listed.items():
            many[name].append(column)
    if not found[key]:
        raise UserError(f"{paths[0]}: got no rows, expected at least one")
    joined = {name: np.concatenate(parts) for name, parts in found.items()}
    ids = joined.pop(key)
    order = np.argsort(ids, kind="stable")
    if (np.diff(ids[order].view(np.int64)) == 0).any():
        twice = ids[order][:-1][np.diff(ids[order].view(np.int64)) == 0][0]
        raise UserError(f"{paths[0]}: {key}: got {twice} in 2 rows, expected each in one")
    unknown = np.array([MISSING_ID], np.uint64)
    columns = {name: IdColumn(np.concatenate([values[order], unknown])) for name, values in joined.items()}
    for name, parts in many.items():
        counts = np.concatenate([lengths for _, lengths in parts])
        whole = IdColumn.from_lengths(np.concatenate([some for some, _ in parts]), np.append(counts, 0))
        columns[name] = whole.take(np.append(order, len(order)))
    return Known(ids[order], columns)


def _read_logs(
    logs: Sequence[Sequence[Path]], bad_lines: BadLines, *, shown: bool
) -> tuple[dict[str, npt.NDArray[np.int64]], list[int]]:
    """Returns the numbers of all impressions [N], and where those of each log begin and end."""
    parts: list[dict[str, npt.NDArray[np.int64]]] = []
    bounds = [0]

    def read(source: Frame) -> dict[str, npt.NDArray[np.int64]]:
        return {name: _numbers(source, name) for name in LOG_NUMBERS}

    for paths in logs:
        found = list(_rows(paths, LOG_NUMBERS, "reading a log", read, bad_lines, shown=shown))
        bounds.append(bounds[-1] + sum(len(part["user_id"]) for part in found))
        parts += found
    nothing = np.empty(0, np.int64)
    return {name: np.concatenate([nothing, *(part[name] for part in parts)]) for name in LOG_NUMBERS}, bounds


def _numbers(source: Frame, name: str) -> npt.NDArray[np.int64]:
    values = source.frame[name]
    source.refuse(values.is_null().to_numpy(), name, "a number")
    numbers = to_ids(values, "integer", Place(source, name)).view(np.int64)
    if name in ACTIONS:
        source.refuse((numbers != 0) & (numbers != 1), name, "0 or 1")
    else:
        source.refuse(numbers < 0, name, "a number from 0 on")
    return numbers


def _impressions(
    log: Mapping[str, npt.NDArray[np.int64]], bounds: Sequence[int], users: Known, videos: Known, limit: int
) -> Impressions:
    actions = np.zeros(bounds[-1], np.int64)
    for bit, name in enumerate(ACTIONS):
        actions |= log[name] << bit
    kept = actions > 0
    kept[bounds[2] :] = False  # what was shown at random is no history
    line = Timeline(log["user_id"].view(np.uint64), log["time_ms"], kept, per_second=1000)
    return Impressions({**log, "_place": line.places()}, actions, users, videos, line, limit)
