"""Reads the TOML file that describes the columns of a table; checks keys, with hints for misspelt ones."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from persia_hpc.errors import UserError
from persia_hpc.preprocess.columns import LOG_SQUARE, NUMBER, PARTS, TIME_PARTS
from persia_hpc.preprocess.splitting import SPLITS, check_fractions

from .keys import KeyReader, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FORMATS = ("csv", "tsv", "parquet", "arrow")
TRANSFORMS = ("none", "log1p", "standardize")
ID_TYPES = ("auto", "string", "integer")


@dataclass(frozen=True)
class Label:
    """Describes a label: 1 where the value is `positive` or at least `threshold`, else 0.

    Without both, the label is the number itself. `missing` is what an empty value becomes, "nan" for a
    missing label; with None it is refused.
    """

    column: str
    positive: str | None = None
    threshold: float | None = None
    binary: bool = True
    missing: str | None = None  # a number as text: NaN would differ from itself when settings are compared


@dataclass(frozen=True)
class Dense:
    """Describes a dense feature: missing numbers are filled, all clipped, then transformed in order."""

    column: str
    transform: tuple[str, ...] = ()
    clip: tuple[float, float] | None = None
    missing: float | None = None


@dataclass(frozen=True)
class Ids:
    """Describes an id feature: one id a row, or any number with `separator` or a list column.

    With `part` the column holds times, as `Time` says, and the ids are this part of them; or numbers: with
    "log_square" they become ids, with "number" each is the weight of the id 0. With `edges` it holds numbers,
    and the id says between which of them each lies. `weights` is a column with a number for each id, in the
    same form. `cross`: the ids are those of what these give together, `column` is that of the first.
    """

    column: str
    type: str = "auto"
    separator: str | None = None
    min_count: int = 1
    vocabulary: bool = False
    part: str | None = None
    format: str | None = None
    weights: str | None = None
    edges: tuple[float, ...] = ()
    cross: tuple[Ids, ...] = ()

    @property
    def multi(self) -> bool:
        """Tells whether a column without lists has any number of ids in a row."""
        return self.separator is not None or self.part == NUMBER

    @property
    def weighted(self) -> bool:
        """Tells whether the ids have weights."""
        return self.weights is not None or self.part == NUMBER


@dataclass(frozen=True)
class Time:
    """Describes the time of a row: integer seconds since 1970, or text in `format` (strftime codes, UTC)."""

    column: str
    format: str | None = None


@dataclass(frozen=True)
class Split:
    """Describes how rows are assigned to splits; `by` is order, random, column or files."""

    by: str = "order"
    fractions: dict[str, float] = field(default_factory=lambda: {"train": 0.9, "test": 0.1})
    seed: int = 1
    column: str | None = None
    values: dict[str, tuple[str, ...]] = field(default_factory=dict)
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Lists the names of the splits in use, in the order of `SPLITS`."""
        used: Mapping[str, Any] = {"column": self.values, "files": self.files}.get(self.by, self.fractions)
        return tuple(name for name in SPLITS if name in used)


@dataclass(frozen=True)
class TableSchema:
    """Holds a whole schema file; `format` and `separator` None are decided by each file's name."""

    labels: dict[str, Label]
    dense: dict[str, Dense]
    ids: dict[str, Ids]
    files: tuple[str, ...] = ()
    format: str | None = None
    separator: str | None = None
    quote: bool | None = None
    columns: tuple[str, ...] | None = None
    missing: tuple[str, ...] = ()
    weight: str | None = None
    group: str | None = None
    time: Time | None = None
    split: Split = field(default_factory=Split)

    @property
    def used_columns(self) -> tuple[str, ...]:
        """Lists the names of all columns that are read, each once."""
        parts: tuple[Mapping[str, Label | Dense | Ids], ...] = (self.labels, self.dense, self.ids)
        named = [entry.column for part in parts for entry in part.values()]
        named += [part.column for entry in self.ids.values() for part in entry.cross]
        named += [entry.weights for entry in self.ids.values() if entry.weights is not None]
        more = [self.weight, self.group, None if self.time is None else self.time.column]
        more += [self.split.column] if self.split.by == "column" else []
        return tuple(dict.fromkeys([*named, *(name for name in more if name is not None)]))


def settings_of(schema: TableSchema) -> dict[str, Any]:
    """Returns the schema as the settings of outputs have it.

    What older versions didn't have is left out where it says nothing: their files are up to date.
    """
    settings = asdict(schema)
    for entry in settings["ids"].values():
        for key in ("weights", "edges", "cross"):
            if not entry[key]:
                del entry[key]
    return settings


def load_schema(path: Path, *, whole_files: bool = False) -> TableSchema:
    """Reads and checks a schema file.

    whole_files: it is used on files that something else names: it needn't name any, and may not divide them
    Raises UserError that names the file and the key.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); expected a TOML schema file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: isn't valid TOML: {error}") from error
    top = KeyReader(path, "", table)
    columns = top.texts("columns")
    separator = top.text("separator")
    if separator is not None and (len(separator) != 1 or not separator.isascii() or separator in '"\r\n'):
        raise top.fail("separator", "one ASCII character")
    time = top.get("time", (str, dict), "a column name, or { column = ..., format = ... }")
    schema = TableSchema(
        labels={name: _label(name, reader) for name, reader in top.tables("labels").items()},
        dense={name: _dense(name, reader) for name, reader in top.tables("dense").items()},
        ids=_all_ids(top.tables("ids")),
        files=top.texts("files"),
        format=top.choice("format", FORMATS),
        separator=separator,
        quote=top.get("quote", bool, "true or false"),
        columns=columns or None,
        missing=top.words("missing"),
        weight=top.text("weight"),
        group=top.text("group"),
        time=None if time is None else _time(path, time),
        split=_split(path, top),
    )
    top.done()
    if not schema.ids:
        raise UserError(f"{path}: ids: got nothing, expected an id feature, like [ids.name]")
    split = schema.split
    divides = split.by == "column" or (split.by != "files" and len(split.names) > 1)
    if whole_files and "split" in table and divides:
        raise UserError(
            f"{path}: got [split] by {split.by!r}, but Parquet files are read whole: name the files of each "
            "split in data.train, data.valid and data.test and leave [split] out of the schema, or make HDF5 "
            "files with `persia-hpc preprocess table`"
        )
    if not whole_files and bool(schema.files) == (schema.split.by == "files"):
        raise UserError(f'{path}: expected either `files`, or [split] with by = "files" and files of its own')
    return schema


def _label(name: str, reader: KeyReader) -> Label:
    positive = reader.words("positive", one=True)
    threshold = reader.get("threshold", (int, float), "a number")
    missing = reader.get("missing", (int, float), "a number, or nan: the label is unknown")
    label = Label(
        reader.text("column", name),
        positive[0] if positive else None,
        None if threshold is None else float(threshold),
        reader.get("binary", bool, "true or false", True),
        None if missing is None else str(float(missing)),
    )
    reader.done()
    if positive and threshold is not None:
        raise reader.fail("threshold", "either `positive` or `threshold`")
    if label.binary and label.missing not in (None, "0.0", "1.0", "nan"):
        raise reader.fail("missing", "0, 1 or nan (or set `binary = false`)")
    return label


def _dense(name: str, reader: KeyReader) -> Dense:
    expected = f"some of {', '.join(TRANSFORMS)}"
    transform = reader.texts("transform", expected)
    for word in transform:
        if word not in TRANSFORMS:
            raise reader.fail("transform", expected + nearest(word, TRANSFORMS))
    clip = reader.get("clip", list, "[lowest, highest]")
    numbers = clip is None or (len(clip) == 2 and all(type(x) in (int, float) for x in clip))
    if not numbers or (clip is not None and clip[0] > clip[1]):
        raise reader.fail("clip", "[lowest, highest]")
    missing = reader.get("missing", (int, float), "a number")
    dense = Dense(
        reader.text("column", name),
        tuple(word for word in transform if word != "none"),
        None if clip is None else (float(clip[0]), float(clip[1])),
        None if missing is None else float(missing),
    )
    reader.done()
    return dense


def _all_ids(readers: dict[str, KeyReader]) -> dict[str, Ids]:
    """Returns all id features; a cross has what the features are that it names."""
    plain = {name: _ids(name, reader) for name, reader in readers.items() if "cross" not in reader}
    return {name: plain[name] if name in plain else _cross(readers[name], plain) for name in readers}


def _cross(reader: KeyReader, plain: dict[str, Ids]) -> Ids:
    one_id = [name for name, entry in plain.items() if not entry.multi and not entry.weighted]
    names = reader.texts("cross")
    min_count = _min_count(reader)
    vocabulary = reader.get("vocabulary", bool, "true or false", False)
    reader.done()
    for name in names:
        if name not in one_id:
            known = ", ".join(one_id) or "of which there are none"
            raise reader.fail(
                "cross", f"names of other features with one id a row, {known}{nearest(name, one_id)}"
            )
    if len(names) < 2:
        raise reader.fail("cross", "two names or more")
    parts = tuple(plain[name] for name in names)
    return Ids(parts[0].column, "string", min_count=min_count, vocabulary=vocabulary, cross=parts)


def _min_count(reader: KeyReader) -> int:
    count: int = reader.get("min_count", int, "an integer from 1 on", 1)
    if count < 1:
        raise reader.fail("min_count", "an integer from 1 on")
    return count


def _ids(name: str, reader: KeyReader) -> Ids:
    separator = reader.text("separator")
    if separator == "":
        raise reader.fail("separator", "at least one character")
    edges = reader.numbers("edges", "rising numbers, like [18, 25, 35]")
    if ("edges" in reader and not edges) or list(edges) != sorted(set(edges)):
        raise reader.fail("edges", "rising numbers, like [18, 25, 35]")
    ids = Ids(
        reader.text("column", name),
        reader.choice("type", ID_TYPES, "auto"),
        separator,
        _min_count(reader),
        reader.get("vocabulary", bool, "true or false", False),
        reader.choice("part", PARTS),
        reader.text("format"),
        reader.text("weights"),
        edges,
    )
    reader.done()
    beside = ("part", "separator", "weights", "format")
    if edges and (ids.type == "string" or any(getattr(ids, key) is not None for key in beside)):
        raise reader.fail(
            "edges", f'no {", ".join(beside)} or type = "string" beside it: a bucket is one integer'
        )
    if ids.part is not None and ids.weights is not None:
        raise reader.fail("weights", "no `part` beside it: a part is one id, and only lists have weights")
    if ids.part is not None and (ids.separator is not None or ids.type == "string"):
        raise reader.fail("part", 'no `separator` or type = "string" beside it: a part is one integer')
    if ids.part == NUMBER and (ids.type != "auto" or ids.min_count > 1 or ids.vocabulary):
        raise reader.fail("part", "no `type`, `min_count` or `vocabulary` beside it: all numbers have one id")
    if ids.part in (None, LOG_SQUARE, NUMBER) and ids.format is not None:
        raise reader.fail("format", f"it beside `part`, one of {', '.join(TIME_PARTS)}")
    return ids


def _time(path: Path, value: str | dict[str, Any]) -> Time:
    reader = KeyReader(path, "time", {"column": value} if isinstance(value, str) else value)
    time = Time(reader.text("column", ""), reader.text("format"))
    if not time.column:
        raise reader.fail("column", "the name of a column")
    reader.done()
    return time


def _split(path: Path, top: KeyReader) -> Split:
    table = top.get("split", dict, "a table")
    if table is None:
        return Split()
    reader = KeyReader(path, "split", table)
    by = reader.choice("by", ("order", "random", "column", "files"), "order")
    fractions = reader.get("fractions", dict, "a table, like { train = 0.9, test = 0.1 }")
    seed = reader.get("seed", int, "an integer", 1)
    column = reader.text("column")
    groups = {
        key: KeyReader(path, f"split.{key}", reader.get(key, dict, "a table by split", {}))
        for key in ("values", "files")
    }
    lists = {
        "values": {name: groups["values"].words(name) for name in SPLITS},
        "files": {name: groups["files"].texts(name) for name in SPLITS},
    }
    for group in groups.values():
        group.done()
    reader.done()
    if fractions is not None and not all(type(x) in (int, float) for x in fractions.values()):
        raise reader.fail("fractions", "numbers that sum to 1")
    split = Split(
        by,
        check_fractions(fractions or {"train": 0.9, "test": 0.1}, f"{path}: split.fractions"),
        seed,
        column,
        {name: items for name, items in lists["values"].items() if items},
        {name: items for name, items in lists["files"].items() if items},
    )
    if by == "column" and (column is None or not split.values):
        raise reader.fail("by", 'a `column` and `values`, like { train = ["a"], test = ["b"] }, beside it')
    if by == "files" and not split.files:
        raise reader.fail("by", '`files`, like { train = ["train-*.csv"], test = ["test.csv"] }, beside it')
    return split
