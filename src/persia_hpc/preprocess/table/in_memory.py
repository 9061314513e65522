"""Writes a table that is in memory as one dataset file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from persia_hpc.errors import PersiaError, UserError, needs_package
from persia_hpc.patterns import names_of
from persia_hpc.preprocess.frames import Frame
from persia_hpc.samples.encoding import ENCODING_FILE, sealed, stated_digest, write_encoding
from persia_hpc.samples.writer import DatasetWriter

from .convert import Converter, Learned
from .encoding import encoding_of
from .schema import Dense, Ids, Label, TableSchema, Time, load_schema

LOG = logging.getLogger("persia_hpc")
ROWS = 65_536  # converted at a time
# What pyarrow raises for values of several types, and for integers that one type has no room for.
_OF_ARROW = (TypeError, ValueError, ArithmeticError, NotImplementedError, AttributeError)


def write_dataset(
    frame: Any,
    path: str | os.PathLike[str],
    *,
    ids: str | Iterable[str] = (),
    labels: str | Iterable[str] = (),
    dense: str | Iterable[str] = (),
    weight: str | None = None,
    group: str | None = None,
    time: str | None = None,
    schema: str | os.PathLike[str] | None = None,
) -> int:
    """Writes a data frame to one HDF5 file that `persia-hpc train` reads, and returns the number of samples.

    Values become ids and numbers as with `persia-hpc preprocess table`: integers are their own ids, text is
    hashed, lists are multi-hot features. Rows keep their order. Replaces an older file, once the new one is
    whole. Beside it is encoding.json, which says what texts became. Not collective.

    frame: of polars, of pandas (which needs pyarrow), an Arrow table, or anything with Arrow's C stream.
    ids, labels, dense: names of columns, or a single one; features have these names. Without labels the file
    can only be scored. Labels that aren't all 0 and 1 need a schema.
    weight, group, time: columns of the samples' weights, groups and times.
    schema: instead of all these the TOML file of `preprocess table`, whose files and split play no part; what
    it would learn from training rows (`standardize`, `min_count`, `vocabulary`) is refused.

    Raises UserError for a frame, a column or a value that can't be written, naming column and row.
    """
    named = (names_of(ids), names_of(labels), names_of(dense))
    table = _table(named, weight, group, time) if schema is None else _loaded(Path(schema), named)
    rows = _rows(frame, table.used_columns)
    whole = Frame(rows, Path("the frame"))
    converter = Converter(table, whole)
    encoding = sealed(encoding_of(converter, Learned()))
    dataset = replace(converter.dataset, encoding=encoding["digest"])
    binary = all(label.binary for label in table.labels.values())
    with DatasetWriter(path, dataset, check_binary_labels=binary) as writer:
        for begin in range(0, rows.height, ROWS):
            part = Frame(rows.slice(begin, ROWS), whole.path, first_row=begin)
            writer.write(converter.batch(part, Learned()))
        _keep(Path(path).parent, encoding)  # before the file gets its name
    return rows.height


def _keep(folder: Path, encoding: Mapping[str, Any]) -> None:
    """Writes the encoding into the file's folder, from where a run takes it, unless another one is there.

    Where ids are integers, which mean themselves, a run lacks nothing with another one.
    Raises PersiaError if it can't be written.
    """
    file = folder / ENCODING_FILE
    if file.exists():
        texts = any(rules["type"] != "integer" for rules in encoding["ids"].values())
        if texts and stated_digest(file) != encoding["digest"]:
            LOG.warning(
                "%s is of other data, and stays: a run that is trained on this file won't know what texts "
                "became; write it into a folder of its own",
                file,
            )
        return
    try:
        write_encoding(folder, encoding)
    except OSError as error:
        raise PersiaError(
            f"{file}: can't write it: {error.strerror or error}; make room, or name another folder"
        ) from error


def _table(
    named: tuple[tuple[str, ...], ...], weight: str | None, group: str | None, time: str | None
) -> TableSchema:
    ids, labels, dense = named
    if not ids:
        raise UserError('write_dataset: ids: got nothing, expected names of columns, such as ids=["user"]')
    for name in (*ids, *labels, *dense, *(n for n in (weight, group, time) if n is not None)):
        if not isinstance(name, str):
            raise UserError(
                f"write_dataset: got the column {name!r}, expected names that are text; rename the columns"
            )
    twice = [name for part in named for name in part if part.count(name) > 1]
    if twice:
        raise UserError(f"write_dataset: got {twice[0]!r} twice, expected each column once")
    return TableSchema(
        labels={name: Label(name) for name in labels},
        dense={name: Dense(name) for name in dense},
        ids={name: Ids(name) for name in ids},
        weight=weight,
        group=group,
        time=None if time is None else Time(time),
    )


def _loaded(path: Path, named: tuple[tuple[str, ...], ...]) -> TableSchema:
    if any(named):
        raise UserError("write_dataset: got a schema and names of columns, expected one of the two")
    table = load_schema(path, whole_files=True)
    learning = {
        f"dense.{name}.transform" for name, entry in table.dense.items() if "standardize" in entry.transform
    }
    learning |= {f"ids.{name}.min_count" for name, entry in table.ids.items() if entry.min_count > 1}
    learning |= {f"ids.{name}.vocabulary" for name, entry in table.ids.items() if entry.vocabulary}
    if learning:
        raise UserError(
            f"{path}: {min(learning)} learns from training rows, which one frame needn't be; leave it out, "
            "or write the frame to Parquet for `persia-hpc preprocess table`"
        )
    return table


def _of_pandas(frame: Any, name: str) -> pl.Series:
    """Returns a column of a frame of pandas."""
    try:
        return pl.from_pandas(frame[[name]], include_index=False).to_series()
    except ModuleNotFoundError as error:
        raise needs_package("a frame of pandas", error.name or "pyarrow") from error
    except (*_OF_ARROW, pl.exceptions.PolarsError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"write_dataset: the frame's column {name!r} can't be read ({why}); a column has values of one "
            "type, and a name of its own"
        ) from error


def _rows(frame: Any, columns: tuple[str, ...]) -> pl.DataFrame:
    """Returns the columns of any kind of frame."""
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    names = frame.column_names if hasattr(frame, "column_names") else getattr(frame, "columns", None)
    if names is not None and not callable(names):
        for name in columns:
            if name not in list(names):
                raise UserError(
                    f"write_dataset: the frame has no column {name!r}; it has: {', '.join(map(str, names))}"
                )
    if type(frame).__module__.partition(".")[0] == "pandas":
        return pl.DataFrame([_of_pandas(frame, name) for name in columns])
    try:
        return pl.DataFrame(frame).select(columns)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise UserError(
            f"write_dataset: got a {type(frame).__name__}, expected a data frame of polars or pandas, or an "
            f"Arrow table ({error})"
        ) from error
