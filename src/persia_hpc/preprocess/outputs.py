"""Manages the files that a preprocessing run makes: which exist, which may be replaced, what they hold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from persia_hpc.durable import replace_whole
from persia_hpc.errors import UserError
from persia_hpc.preprocess.team import Team, once
from persia_hpc.samples import names as layout
from persia_hpc.samples.attributes import text_of
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.encoding import ENCODING_FILE, sealed, write_encoding
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.writer import DatasetWriter

if TYPE_CHECKING:  # files are made without it where no text is parsed
    import polars as pl

# Goes up whenever a release writes other bytes for the same options: older outputs then count as different.
PREPROCESS_VERSION = 3
DIGEST_BYTES = 64 << 20
ABSENT = ".absent"  # behind the name of a file whose input has no rows: its settings, as JSON
OUTPUT_GLOBS = tuple(f"{split}*.h5{end}" for split in ("train", "valid", "test") for end in ("", ABSENT))
ITEMS = "items.h5"  # a catalogue of items beside the samples
VOCABULARIES = "vocabulary-*.csv"


@dataclass(frozen=True)
class FileReport:
    """Describes one finished file: its rows, and the mean of the first label where that isn't missing.

    The mean is None without labels, and NaN without a known one.
    """

    path: Path
    num_rows: int
    label_rate: float | None

    def __str__(self) -> str:
        rate = ", no labels" if self.label_rate is None else f", label rate {self.label_rate:.5f}"
        if self.label_rate is not None and math.isnan(self.label_rate):
            rate = ", no known label"
        return f"{self.path}: {self.num_rows:,} rows{rate}, {self.path.stat().st_size / 1e6:,.1f} MB"


def input_identity(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Returns what identifies these input files: name, size and content.

    For large files the time of modification stands in for the content.
    """
    identity = []
    for path in files:
        status = path.stat()
        entry: dict[str, Any] = {"name": path.name, "bytes": status.st_size}
        if status.st_size <= DIGEST_BYTES:
            entry["blake2b"] = blake2b(path.read_bytes(), digest_size=16).hexdigest()
        else:
            entry["modified_ns"] = status.st_mtime_ns
        identity.append(entry)
    return identity


def numbered(split: str, count: int, digits: int) -> list[str]:
    """Returns the names of `count` files, with at least `digits` digits so that they sort by number."""
    digits = max(digits, len(str(count - 1)))
    return [f"{split}-{i:0{digits}d}.h5" for i in range(count)]


def make_directory(path: Path) -> None:
    """Makes the directory if it doesn't exist.

    Raises UserError if it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: can't be made ({error.strerror}); choose another --out") from error


class Outputs:
    """Describes the output files of one run in one directory.

    settings: everything that the files' content depends on. It is stored in each file's attribute
    `preprocessing` (JSON), and files that carry equal settings are not made again. There a file may also
    list, as `absent`, names that are not expected because their piece of the input had no rows.
    vocabularies: names of the CSV files beside them, which `write_vocabulary` makes
    encoding: digest of what gives the files' values their meaning, once `encode` has got it
    """

    def __init__(
        self,
        directory: Path,
        names: Sequence[str],
        settings: dict[str, Any],
        *,
        overwrite: bool,
        vocabularies: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.names = tuple(names)
        self.settings = {"version": PREPROCESS_VERSION, **settings}
        self._wanted = json.loads(json.dumps(self.settings))
        self._overwrite = overwrite
        self._vocabularies = tuple(vocabularies)
        self.encoding: str | None = None
        self._encoding: dict[str, Any] = {}

    def up_to_date(self) -> bool:
        """Returns whether all files exist with these settings, and no others.

        Raises UserError as `missing` does.
        """
        missing, stale = self._look()
        beside = all((self.directory / name).exists() for name in (*self._vocabularies, ENCODING_FILE))
        return not missing and not stale and beside and self.any_rows()

    def any_rows(self) -> bool:
        """Returns whether any file exists; none does if no piece of the input has rows."""
        return any((self.directory / name).exists() for name in self.names)

    def missing(self) -> list[str]:
        """Returns the names of files that don't exist with these settings.

        Raises UserError if files of other making are there and may not be replaced.
        """
        return self._look()[0]

    def _look(self) -> tuple[list[str], list[str]]:
        existing = {path.name: stored_settings(path) for path in self._present()}
        wanted = self._wanted
        same = {name for name, stored in existing.items() if stored is not None and _same(stored, wanted)}
        others = sorted(set(existing) - same)
        if others and not self._overwrite:
            raise UserError(
                f"{self.directory / others[0]} is there already, "
                f"{_difference(existing[others[0]], wanted)}; "
                "pass --overwrite to replace it, or choose another --out"
            )
        absent = {name for file in same for name in (existing[file] or {}).get("absent", ())}
        missing = [name for name in self.names if name not in same and name not in absent]
        stale = [name for name in existing if name not in same or not self._ours(name)]
        return missing, stale + [path.name for path in self._old_vocabularies()]

    def _present(self) -> list[Path]:
        """Returns the files in the directory that training might read; a catalogue only if it is ours."""
        found = [path for pattern in OUTPUT_GLOBS for path in self.directory.glob(pattern)]
        items = self.directory / ITEMS
        if items.exists() and (ITEMS in self.names or stored_settings(items) is not None):
            found.append(items)
        return found

    def _ours(self, name: str) -> bool:
        return name.removesuffix(ABSENT) in self.names

    def _old_vocabularies(self) -> list[Path]:
        found = self.directory.glob(VOCABULARIES) if self._overwrite else ()
        return [p for p in found if p.name not in self._vocabularies and _is_vocabulary(p)]

    def stored(self, name: str) -> dict[str, Any]:
        """Returns the settings stored with a finished file, or with the note that its input has no rows."""
        path = self.directory / name
        return stored_settings(path) or stored_settings(path.with_name(name + ABSENT)) or {}

    def note_absent(self, names: Sequence[str], more: Mapping[str, Any]) -> None:
        """Records that none of these files will be made, since their piece of the input has no rows.

        more: stored beside the settings
        """
        settings = {**self.settings, **more, "absent": list(names)}
        replace_whole(self.directory / (names[0] + ABSENT), json.dumps(settings).encode())

    def write_vocabulary(self, name: str, frame: pl.DataFrame) -> None:
        """Writes a CSV file beside the others, atomically.

        It must be written before them, since a rerun looks for it.
        """
        replace_whole(self.directory / name, frame.write_csv().encode())

    def encode(self, content: Mapping[str, Any]) -> None:
        """Takes what gives the files' values their meaning; all files written from now on name it."""
        self._encoding = sealed(content)
        self.encoding = self._encoding["digest"]

    def encode_together(self, team: Team, content: Callable[[], Mapping[str, Any]]) -> None:
        """Writes the encoding on one rank, before the files; the files of all ranks name it.

        Collective over `team`.
        Raises UserError or PersiaError as `together` does.
        """

        def write() -> str | None:
            self.encode(content())
            self.write_encoding()
            return self.encoding

        self.encoding = once(team, write)

    def write_encoding(self) -> None:
        """Writes encoding.json; a `SplitWriter` does it itself, when it ends."""
        write_encoding(self.directory, self._encoding)

    def named(self, schema: DatasetSchema) -> DatasetSchema:
        """Returns the schema of a file that names the encoding."""
        return replace(schema, encoding=self.encoding)

    def write(
        self, schema: DatasetSchema, others: Mapping[str, DatasetSchema] | None = None, **options: Any
    ) -> SplitWriter:
        """Returns a writer for all files; `options` go to every `DatasetWriter`.

        others: schemas of files that have another one
        Raises UserError if the directory can't be made.
        """
        make_directory(self.directory)
        schemas = {name: self.named((others or {}).get(name, schema)) for name in self.names}
        return SplitWriter(self, schemas, options)

    def remove_stale(self, keep: Collection[str] = ()) -> None:
        """Deletes files of an earlier run that this one didn't replace, since a glob would mix old and new.

        Without `overwrite` it does nothing.

        keep: names that other processes may be about to make
        """
        if not self._overwrite:
            return
        for path in self._present():
            if path.name.removesuffix(ABSENT) in keep:
                continue
            stored = stored_settings(path)
            if stored is not None and not (self._ours(path.name) and _same(stored, self._wanted)):
                path.unlink(missing_ok=True)
        for path in self._old_vocabularies():
            path.unlink(missing_ok=True)


class SplitWriter:
    """Writes batches to the outputs by file name; after an exception in its `with`, old files stay."""

    def __init__(self, outputs: Outputs, schemas: dict[str, DatasetSchema], options: dict[str, Any]) -> None:
        self._outputs = outputs
        self._stack = ExitStack()
        self._schemas = schemas
        self._options = options
        self._writers: dict[str, DatasetWriter] = {}
        self._rows = dict.fromkeys(outputs.names, 0)
        self._labels = {name: np.zeros(3) for name in outputs.names}

    def __enter__(self) -> SplitWriter:
        dtypes = self._options.pop("id_dtypes", None) or {}
        for name, schema in self._schemas.items():
            self._writers[name] = self._stack.enter_context(
                DatasetWriter(
                    self._outputs.directory / name,
                    schema,
                    id_dtypes={key: kind for key, kind in dtypes.items() if key in schema.feature_names},
                    preprocessing=self._outputs.settings,
                    **self._options,
                )
            )
        self._stack.push(self._write_encoding)  # leaves first: if it fails, no file gets its name
        return self

    def _write_encoding(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._outputs.write_encoding()

    def write(self, name: str, batch: SampleBatch) -> None:
        """Appends the batch to the file `name`."""
        if batch.num_samples:
            self._writers[name].write(batch)
            self._rows[name] += batch.num_samples
            self._labels[name] += sum_and_counts(batch.labels)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            empty = [name for name, rows in self._rows.items() if rows == 0]
            if empty:
                refusal = UserError(
                    f"{', '.join(empty)}: got no rows, expected at least one; change the split or add input"
                )
                self._stack.__exit__(UserError, refusal, None)
                raise refusal
        self._stack.__exit__(kind, error, trace)
        if kind is None:
            self._outputs.remove_stale()

    @property
    def report(self) -> list[FileReport]:
        """Is a report on each file, once written."""
        return [
            FileReport(self._outputs.directory / name, rows, label_rate(self._labels[name]))
            for name, rows in self._rows.items()
        ]


def sum_and_counts(labels: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Returns the sum of the first label where it isn't missing, how often it isn't, and how many there are.

    Shapes: labels [N, L]; returns [3].
    """
    first = labels[:, :1]
    return np.array([np.nansum(first, dtype=np.float64), np.isfinite(first).sum(), first.size])


def label_rate(sum_and_counts: npt.NDArray[np.float64]) -> float | None:
    """Returns the mean of a label, NaN if it is missing everywhere, None if there is none."""
    total, known, count = sum_and_counts.tolist()
    if not count:
        return None
    return total / known if known else math.nan


def stored_settings(path: Path) -> dict[str, Any] | None:
    """Returns the attribute that `Outputs` gave the file; None for files of other making."""
    try:
        if path.suffix == ABSENT:
            stored = json.loads(path.read_bytes())
        else:
            with layout.open_to_read(str(path)) as file:
                stored = json.loads(text_of(file.attrs[layout.PREPROCESSING]))
    except (OSError, KeyError, TypeError, ValueError, UserError):
        return None
    return stored if isinstance(stored, dict) and "version" in stored else None


def _is_vocabulary(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline(100).strip() == b"id,value,count"


def _same(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(stored.get(key) == value for key, value in wanted.items())


def _difference(stored: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> str:
    if stored is None:
        return "was not made by preprocess"
    keys = [key for key in wanted if stored.get(key) != wanted[key]]
    old, new = stored.get("options"), wanted.get("options")
    if keys == ["options"] and isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return f"was made with other settings ({', '.join(keys)})" if keys else "is left over from an earlier run"
