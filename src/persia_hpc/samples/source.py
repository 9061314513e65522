"""Where samples come from: the `Source` protocol, and dataset files that read as one."""

from __future__ import annotations

import glob
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import DataError, UserError
from persia_hpc.patterns import literal_first
from persia_hpc.samples.batch import Rows, SampleBatch
from persia_hpc.samples.datafile import FileInfo
from persia_hpc.samples.encoding import check_encodings
from persia_hpc.samples.formats import (
    RowFile,
    is_parquet,
    load_table,
    open_file,
    read_offsets,
    read_times,
    scan,
)
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.sequences import (
    NO_SEQUENCES,
    Sequences,
    check_columns,
    check_files,
    check_offsets,
    usable,
)
from persia_hpc.samples.validity import InvalidRowError

LabelCheck = Callable[[npt.NDArray[np.float32]], object]  # raises InvalidRowError

if TYPE_CHECKING:
    from persia_hpc.preprocess.table.schema import TableSchema

MAX_OPEN_FILES = 64
OFFSET_ROWS = 1 << 18  # that are compared at a time
CHUNK_CACHE_BYTES = 128 << 20  # for all open files together; holds small datasets whole


class Source(Protocol):
    """Is a sequence of samples in a fixed order, with rows counted from 0."""

    @property
    def schema(self) -> DatasetSchema:
        """Returns what each batch holds."""

    @property
    def num_samples(self) -> int:
        """Returns the number of rows."""

    def read(self, begin: int, end: int) -> SampleBatch:
        """Returns the rows [begin, end), 0 <= begin <= end <= num_samples; any thread may call it."""


class FileSource:
    """Reads many dataset files as one, in the order given; made by `open_source`. See `Source`.

    Files are opened by the first read that needs them, in the reading process (so a fork is harmless); reads
    are serialised by a lock.
    """

    def __init__(
        self,
        infos: Sequence[FileInfo],
        schema: DatasetSchema,
        num_samples: int,
        binary_labels: bool,
        sequences: Sequences = NO_SEQUENCES,
        table: TableSchema | None = None,
    ) -> None:
        self._infos = tuple(infos)
        self._table = table
        self._schema = schema
        self._num_samples = num_samples
        self._binary_labels = binary_labels
        self._sequences = usable(schema, sequences)
        self._check_labels: LabelCheck | None = None
        self._starts = np.cumsum([0, *(info.num_samples for info in infos)])
        self._open: OrderedDict[int, RowFile] = OrderedDict()
        self._cache_bytes = CHUNK_CACHE_BYTES // max(1, min(len(infos), MAX_OPEN_FILES))
        self._lock = threading.Lock()
        self._process = os.getpid()

    def with_files(self, infos: Sequence[FileInfo]) -> FileSource:
        """Returns a source of other files that are read as those of this one, without a limit."""
        total = sum(info.num_samples for info in infos)
        return FileSource(infos, self._schema, total, self._binary_labels, self._sequences, self._table)

    @property
    def schema(self) -> DatasetSchema:
        """Returns what each batch holds."""
        return self._schema

    @property
    def num_samples(self) -> int:
        """Returns the number of rows of all files together, after the limit."""
        return self._num_samples

    @property
    def files(self) -> tuple[tuple[str, int], ...]:
        """Returns (path, rows used) of each file of which any rows are used."""
        used = np.minimum(self._starts[1:], self._num_samples) - self._starts[:-1]
        return tuple((info.path, int(n)) for info, n in zip(self._infos, used, strict=True) if n > 0)

    def check_labels_by(self, check: LabelCheck | None) -> None:
        """Lets `check` see the labels [B, L] of all that is read, to refuse what losses can't take."""
        self._check_labels = check

    def read(self, begin: int, end: int) -> SampleBatch:
        """Returns the rows [begin, end), counted over all files.

        Raises DataError, which names the file and its rows, for damage or invalid values, and ValueError if
        the range isn't within the source.
        """
        if not 0 <= begin <= end <= self._num_samples:
            raise ValueError(f"got rows [{begin}, {end}), expected a range within [0, {self._num_samples})")
        first = min(int(np.searchsorted(self._starts, begin, side="right")) - 1, len(self._infos) - 1)
        parts = []
        with self._lock:
            for i in range(first, len(self._infos)):
                start, stop = int(self._starts[i]), int(self._starts[i + 1])
                part = self._file(i).read(begin - start, min(end, stop) - start)
                path = self._infos[i].path
                check_columns(part.ids, self._sequences, path, begin - start)
                try:
                    if self._check_labels is not None:
                        self._check_labels(part.labels)
                except InvalidRowError as error:
                    raise DataError(f"{path}: row {begin - start + error.row}: {error.problem}") from None
                parts.append(part)
                if end <= stop:
                    break
                begin = stop
        return SampleBatch.concatenate(parts)

    def check_sequences(self, share: int = 0, shares: int = 1) -> None:
        """Checks the offsets of sequences in the rows of one of so many shares, without reading other data.

        Of Parquet files the ids of these features are decoded.
        Raises UserError, which names the first row of a file in which they differ.
        """
        names = sorted({feature for features in self._sequences.values() for feature in features})
        if not names:
            return
        bounds = self.block_bounds(OFFSET_ROWS)
        if bounds is None:
            bounds = np.arange(0, self._num_samples, OFFSET_ROWS)
        bounds = np.union1d(np.minimum(self._starts, self._num_samples), bounds)
        first, last = (share * (len(bounds) - 1) // shares for share in (share, share + 1))
        for begin, end in pairwise(bounds[first : last + 1].tolist()):
            i = int(np.searchsorted(self._starts, begin, side="right")) - 1
            path, start = self._infos[i].path, int(self._starts[i])
            try:
                offsets = read_offsets(path, names, begin - start, end - start, self._table)
                check_offsets(offsets, self._sequences, path, begin - start)
            except DataError as error:
                raise UserError(str(error)) from error

    def block_bounds(self, block_rows: int) -> Rows | None:
        """Returns where blocks begin and end if they are row groups, which are decoded as a whole; else None.

        Successive row groups of one file are one block while they have `block_rows` rows together at most.
        Shapes: int64 [blocks + 1].
        """
        if not any(self.row_groups):
            return None
        sizes: list[int] = []
        for info in self._infos:
            first = len(sizes)
            whole, rest = divmod(info.num_samples, block_rows)
            for rows in info.row_groups or (*[block_rows] * whole, rest):
                if len(sizes) > first and sizes[-1] + rows <= block_rows:
                    sizes[-1] += rows
                else:
                    sizes.append(rows)
        return np.unique(np.minimum(np.cumsum([0, *sizes]), self._num_samples))

    @property
    def row_groups(self) -> tuple[tuple[int, ...], ...]:
        """Returns the rows of each row group of each file, () for a file that has none."""
        return tuple(info.row_groups for info in self._infos)

    def read_times(self) -> Rows:
        """Returns the times of all rows, for data that have times.

        Raises DataError if they can't be read.
        """
        return np.concatenate([read_times(path, 0, rows, self._table) for path, rows in self.files])

    @property
    def encodings(self) -> tuple[tuple[str, str | None], ...]:
        """Returns (path, digest of its encoding or None) of each file."""
        return tuple((info.path, info.schema.encoding) for info in self._infos)

    def known_labels(self) -> list[tuple[float, float, float]]:
        """Returns in how many rows of the files each label is known, its least value there and its most.

        They are NaN if a file doesn't say so, and of whole files even if a limit leaves some rows out.
        """
        each = np.array([info.known_labels for info in self._infos]).reshape(len(self._infos), -1, 3)
        columns = each[:, :, 0].sum(axis=0), each[:, :, 1].min(axis=0), each[:, :, 2].max(axis=0)
        return [(known, least, most) for known, least, most in np.column_stack(columns).tolist()]

    def close(self) -> None:
        """Closes all files; a later read opens them again."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def _file(self, i: int) -> RowFile:
        if self._process != os.getpid():
            # HDF5 handles and file positions must not be shared with the parent process.
            self._open.clear()
            self._process = os.getpid()
        if i in self._open:
            self._open.move_to_end(i)
        else:
            if len(self._open) >= MAX_OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            info = self._infos[i]
            features, binary = self._schema.features, self._binary_labels
            self._open[i] = open_file(info, features, binary, self._cache_bytes, self._table)
        return self._open[i]


def open_source(
    patterns: Sequence[str],
    *,
    features: Sequence[str] | None = None,
    limit: int | None = None,
    binary_labels: bool = False,
    sequences: Sequences = NO_SEQUENCES,
    schema_file: str | None = None,
    labels: bool = True,
) -> FileSource:
    """Opens dataset files as one source; reads only their headers. Not collective.

    patterns: file names or globs. Matches of one pattern are sorted; patterns keep their order. A name that
    exists is no glob, whatever it holds.
    features: the id features to read, in this order; default all, in the order of the first file.
    limit: use only the first rows.
    binary_labels: check that every label is 0 or 1, in files whose writer hasn't checked it.
    sequences: features that must have the same number of ids in each sample, by the name of their sequence.
    schema_file: what the columns of Parquet files are (`data.schema`).
    labels: False for data that are only scored: Parquet files need no columns of labels then.

    Raises UserError for a pattern without a match, a file that isn't a dataset or has no samples, files that
    don't fit together or name different encodings, and a missing feature.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit: got {limit}, expected 1 or more rows, or none at all for all rows")
    paths = _expand(patterns)
    table = load_table(schema_file, labels=labels) if any(map(is_parquet, paths)) else None
    infos = [scan(path, table) for path in paths]
    schema = infos[0].schema
    if features is not None:
        schema = replace(schema, features=tuple(_find(infos, name) for name in features))
        schema.validate()
    for info in infos[1:]:
        check_agree(infos[0], info, schema, all_features=features is None)
    named = next((info for info in infos if info.schema.encoding is not None), infos[0])
    check_files([info.path for info in infos if not info.row_groups], schema, sequences)
    encoding = named.schema.encoding
    check_encodings([(info.path, info.schema.encoding) for info in infos], named.path, encoding)
    total = sum(info.num_samples for info in infos)
    lengths = tuple(_with_mean_length(infos, f) for f in schema.features)
    schema = replace(schema, features=lengths, encoding=encoding)
    total = total if limit is None else min(limit, total)
    return FileSource(infos, schema, total, binary_labels, sequences, table)


def check_scorable(source: FileSource, trained: DatasetSchema, whose: str, *, labels: bool) -> None:
    """Checks that what was trained on data of the schema `trained` can score a source.

    whose: names that data in messages. labels: the scores are to be compared with labels too.
    Raises UserError for another encoding or kind of feature, other dense columns, other or no labels.
    """
    path, schema = source.encodings[0][0], source.schema
    check_encodings(source.encodings, whose, trained.encoding)
    for feature in trained.features:
        if feature.name in schema.feature_names and schema.feature(feature.name) != feature:
            raise UserError(
                f"{path}: got {schema.feature(feature.name).description} feature {feature.name!r}, but it is "
                f"{feature.description} in {whose}; prepare both alike"
            )
    if schema.dense_names != trained.dense_names:
        raise UserError(
            f"{path}: got dense features {', '.join(schema.dense_names) or 'none'}, expected "
            f"{', '.join(trained.dense_names) or 'none'} as in {whose}"
        )
    if not labels:
        return
    check_labels(schema, path)
    single = len(schema.label_names) == len(trained.label_names) == 1  # may have any name
    if not single and schema.label_names != trained.label_names:
        raise UserError(
            f"{path}: got labels {', '.join(schema.label_names)}, expected {', '.join(trained.label_names)} "
            f"as in {whose}"
        )


def check_labels(schema: DatasetSchema, path: str) -> None:
    """Checks that data have labels, which training and metrics need.

    Raises UserError if they have none.
    """
    if not schema.label_names:
        raise UserError(
            f"{path}: got a file without labels, expected a dataset /label to train on or to compare with; "
            "samples without labels can only be scored (persia-hpc predict)"
        )


def _expand(patterns: Sequence[str]) -> list[str]:
    if isinstance(patterns, str):
        raise UserError(f"data files: got the text {patterns!r}, expected a list of file names or globs")
    paths: list[str] = []
    for pattern in patterns:
        found = sorted(glob.glob(literal_first(os.path.expanduser(pattern)), recursive=True))
        if not found:
            raise UserError(
                f"{pattern}: no file matches (looked from {os.getcwd()}); check the path or prepare the data"
            )
        paths.extend(found)
    if not paths:
        raise UserError("data files: got an empty list, expected at least one file name or glob")
    if len(set(paths)) != len(paths):
        twice = next(p for p in paths if paths.count(p) > 1)
        raise UserError(f"{twice}: got the file twice, expected it once; check the list of patterns")
    return paths


def _with_mean_length(infos: Sequence[FileInfo], feature: FeatureSchema) -> FeatureSchema:
    means = [info.schema.feature(feature.name).mean_length for info in infos]
    values = [mean * info.num_samples for mean, info in zip(means, infos, strict=True) if mean is not None]
    known = len(values) == len(infos)
    return replace(feature, mean_length=sum(values) / sum(i.num_samples for i in infos) if known else None)


def _find(infos: Sequence[FileInfo], name: str) -> FeatureSchema:
    for info in infos:
        if name not in info.schema.feature_names:
            close = get_close_matches(name, info.schema.feature_names, 1)
            raise UserError(
                f"{info.path}: got no feature {name!r}, expected one of "
                + ", ".join(info.schema.feature_names)
                + (f"; did you mean {close[0]!r}?" if close else "")
            )
    return infos[0].schema.feature(name)


def check_agree(first: FileInfo, other: FileInfo, schema: DatasetSchema, *, all_features: bool) -> None:
    """Checks that the file `other` can continue `first` for the schema's features.

    all_features: refuse also a feature that only `other` has.

    Raises UserError for a feature, column or array that differs.
    """
    a, b = first.schema, other.schema
    both = f"expected the same as in {first.path}; prepare both files alike or list only one kind"
    if all_features:
        for name in b.feature_names:
            if name not in a.feature_names:
                raise UserError(f"{first.path}: got no feature {name!r}, but {other.path} has it; {both}")
    for feature in schema.features:
        if feature.name not in b.feature_names:
            raise UserError(f"{other.path}: got no feature {feature.name!r}, {both}")
        if b.feature(feature.name) != feature:
            raise UserError(
                f"{other.path}: got {b.feature(feature.name).description} feature {feature.name!r}, but it "
                f"is {feature.description} in {first.path}; prepare both files alike"
            )
    for what, got, expected in (
        ("dense columns", b.dense_names, a.dense_names),
        ("labels", b.label_names, a.label_names),
    ):
        if got != expected:
            raise UserError(
                f"{other.path}: got {what} {list(got)}, expected {list(expected)} as in {first.path}"
            )
    for name, has, should in (
        ("weight", b.has_weight, a.has_weight),
        ("group", b.has_group, a.has_group),
        ("time", b.has_time, a.has_time),
    ):
        if has != should:
            raise UserError(f"{other.path}: got {'a' if has else 'no'} dataset /{name}, {both}")
