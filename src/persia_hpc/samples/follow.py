"""Files that appear while a run trains (`data.follow`): which are new, in which order, when no more come.

A *portion* is what one look finds. Files are known by their paths. Each is taken once, and appears whole: by
a rename, as `DatasetWriter` does it.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from persia_hpc.config import Config
from persia_hpc.durable import PARTIAL
from persia_hpc.errors import DataError, UserError
from persia_hpc.patterns import literal_first
from persia_hpc.samples.datafile import FileInfo, NoSamplesError
from persia_hpc.samples.encoding import check_encodings
from persia_hpc.samples.formats import load_table, read_times, scan
from persia_hpc.samples.identity import file_digest
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.source import FileSource, Source, check_agree, open_source
from persia_hpc.samples.time_order import TimeOrder
from persia_hpc.tasks import label_check

END = "_END"  # a file of this name beside the data: what is there now is all
MOST_COMPARED = 256  # files that were trained on, when a run resumes
_OTHERS = "got other samples than when it was trained on; put the old file back"
END_PATTERN = "_EN[D]"  # the same for glob, which then reads the directory


@dataclass(frozen=True)
class TakenFile:
    """Holds what a checkpoint records of a file that training has begun to use."""

    path: str
    num_samples: int
    first_time: int | None  # of its first row, where samples have a time
    digest: str = ""  # of some of its samples; "" in older checkpoints


Portion = Sequence[TakenFile]


def num_samples(portion: Portion) -> int:
    """Returns the number of samples of a portion."""
    return sum(file.num_samples for file in portion)


def late_files(portions: Iterable[Portion]) -> int:
    """Returns how many files came too late: they begin earlier in time than a file of an earlier portion."""
    newest: int | None = None
    late = 0
    for portion in portions:
        times = [file.first_time for file in portion if file.first_time is not None]
        late += sum(newest is not None and time < newest for time in times)
        newest = max([*times, *([] if newest is None else [newest])], default=None)
    return late


class Follower:
    """Finds new files, in one process, which tells the others; nothing in it is collective."""

    def __init__(self, config: Config, schema: DatasetSchema, portions: Iterable[Portion] = ()) -> None:
        """schema: of the run, which every file must have. portions: what the run has taken already."""
        self.portions = [tuple(portion) for portion in portions]
        self.ended = False  # the last look has seen that no more files will come
        self._patterns = [os.path.abspath(os.path.expanduser(pattern)) for pattern in config.data.train]
        self._all_features = config.data.features is None
        self._sequences = config.features_of_sequences
        self._table = load_table(config.data.schema)
        self.schema = schema  # with the encoding of the first file that names one
        self._taken = {file.path for portion in self.portions for file in portion}

    def look(self) -> tuple[FileInfo, ...]:
        """Returns the next portion, which is all new files, or () if there are none.

        The files are ordered by the time of their first rows or, without times, by pattern and name.

        Raises UserError if one of them can't be read or doesn't fit; then none of them is taken.
        """
        # First, and in a listing: what was there before the marker must be seen beside it, also where a file
        # system shows names sooner than listings.
        self.ended = any(_lists(os.path.join(os.path.dirname(p), END_PATTERN)) for p in self._patterns)
        paths = [path for path in _matches(self._patterns) if path not in self._taken]
        found, before = [], self.schema
        for path in paths:
            try:
                info = self._scan(path)
                self._source(info).check_sequences()
                first = int(read_times(path, 0, 1, self._table)[0]) if self.schema.has_time else None
                found.append((info, TakenFile(path, info.num_samples, first, self._digest(info))))
                self._adopt_encoding(info)
            except NoSamplesError:
                self._taken.add(path)
            except (UserError, DataError, OSError) as error:
                if os.path.exists(path):  # else it is gone again
                    self.schema = before
                    raise UserError(str(error)) from error
        found.sort(key=lambda pair: pair[1].first_time or 0)  # stable
        if found:
            self.portions.append(tuple(file for _, file in found))
            self._taken.update(file.path for _, file in found)
        return tuple(info for info, _ in found)

    def check_taken(self, whole: int) -> None:
        """Checks that files which were trained on, as far as they are still there, have the same samples.

        whole: number of portions that are trained to their end.
        A file that has been replaced would never be trained on: it is known by its path. Only the newest
        MOST_COMPARED are read.
        Raises UserError for the first that has others.
        """
        known = [file for portion in self.portions[:whole] for file in portion if file.digest]
        for file in known[-MOST_COMPARED:]:
            same = True
            with suppress(UserError):  # not there or not readable any more: nobody needs it
                info = self._scan_named(file.path)
                same = info.num_samples == file.num_samples and self._digest(info) == file.digest
                self._adopt_encoding(info)
            if not same:
                raise UserError(f"{file.path}: {_OTHERS}, or give new samples a file of another name")

    def _digest(self, info: FileInfo) -> str:
        """Returns the digest of a file's samples.

        Raises UserError for damage, since no checkpoint is to blame.
        """
        try:
            return file_digest(self._source(info))
        except DataError as error:
            raise UserError(str(error)) from error

    def _source(self, info: FileInfo) -> FileSource:
        binary, sequences = False, self._sequences
        return FileSource([info], self.schema, info.num_samples, binary, sequences, self._table)

    def reopen(self) -> tuple[FileInfo, ...]:
        """Returns the files of the last portion, for a run that resumes in the middle of it.

        Raises UserError if one of them is gone or has changed.
        """
        infos = []
        for file in self.portions[-1]:
            if not os.path.exists(file.path):
                raise UserError(
                    f"{file.path}: got no such file, but the checkpoint is of the middle of its portion; put "
                    "it back, or begin a new run with --init-from"
                )
            info = self._scan_named(file.path)
            if info.num_samples != file.num_samples:  # other bytes may be a repair
                raise UserError(
                    f"{file.path}: got {info.num_samples} samples, expected {file.num_samples} as when "
                    "training on it began; put the old file back, or begin a new run with --init-from"
                )
            if file.digest and self._digest(info) != file.digest:
                raise UserError(f"{file.path}: {_OTHERS}, or begin a new run with --init-from")
            self._source(info).check_sequences()  # the digest is of some samples only
            infos.append(info)
            self._adopt_encoding(info)
        return tuple(infos)

    def _scan_named(self, path: str) -> FileInfo:
        """Scans a file that a checkpoint names; anybody can have written that name.

        Raises UserError for one that no pattern can have given.
        """
        if not any(_may_match(path, pattern) for pattern in self._patterns):
            raise UserError(
                f"{path}: the checkpoint names this file, but data.train doesn't match it; add it there if "
                "the run is to read it"
            )
        return self._scan(path)

    def _scan(self, path: str) -> FileInfo:
        info = scan(path, self._table)
        before = FileInfo("the files before", 0, self.schema, True, True, True, True)
        check_agree(before, info, self.schema, all_features=self._all_features)
        check_encodings([(path, info.schema.encoding)], "the files before", self.schema.encoding)
        return info

    def _adopt_encoding(self, info: FileInfo) -> None:
        if self.schema.encoding is None:
            self.schema = replace(self.schema, encoding=info.schema.encoding)


def _may_match(path: str, pattern: str) -> bool:
    """Says whether the files of a glob can be of this path, or of one further below."""
    if os.path.normpath(path) != path:
        return False
    return path == pattern or fnmatchcase(path, literal_first(pattern).replace("**/", "*"))


def _lists(pattern: str) -> bool:
    return any(True for _ in glob.iglob(literal_first(pattern), recursive=True))


def _matches(patterns: Iterable[str]) -> Iterator[str]:
    seen = set()
    for pattern in patterns:
        for path in sorted(glob.glob(literal_first(pattern), recursive=True)):
            name = os.path.basename(path)
            if path not in seen and name != END and not name.endswith(PARTIAL):
                seen.add(path)
                yield path


def followed_schema(config: Config) -> DatasetSchema:
    """Returns the schema of a new run, which is that of the first file.

    Raises UserError if there is no file yet.
    """
    paths = list(_matches(map(os.path.expanduser, config.data.train)))
    if not paths:
        raise UserError(
            f"{', '.join(config.data.train)}: no file matches (looked from {os.getcwd()}); data.follow "
            "needs one to begin with, which tells features and columns"
        )
    sequences = config.features_of_sequences
    source = open_source(
        [paths[0]], features=config.data.features, sequences=sequences, schema_file=config.data.schema
    )
    return source.schema


def portion_source(infos: Sequence[FileInfo], train: Source, config: Config) -> FileSource | TimeOrder:
    """Returns the samples of a portion, in order of time if they have times and aren't shuffled.

    train: the source of the run's training data, which has no files of its own.
    """
    assert isinstance(train, FileSource), "opened by open_sources"
    files = train.with_files(infos)
    files.check_labels_by(label_check(config, train.schema))
    return TimeOrder(files) if train.schema.has_time and not config.data.shuffle and infos else files
