"""Writes predictions to a file, beside columns of the samples: CSV, HDF5 or Parquet.

B samples, O outputs.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from persia_hpc.arrays import Array
from persia_hpc.durable import ErrorKeeper, replacing, sync_path
from persia_hpc.errors import PersiaError, UserError
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.source import Source

ENDS = (".h5", ".hdf5", ".csv", ".parquet")
TIMES = ("group", "time")  # columns that are no ids
Part = tuple[dict[str, Array], Array]  # columns [B] by name, and predictions [B, O]


def check_name(out: Path) -> None:
    """Checks that a file's name says its format.

    Raises UserError if not.
    """
    if out.suffix not in ENDS:
        raise UserError(f"{out}: predictions can be written as .csv, .h5 or .parquet")


@dataclass
class Columns:
    """Reads columns of samples beside their predictions: ids of one-hot features, group and time."""

    source: Source
    names: Sequence[str]

    @staticmethod
    def features(names: Sequence[str], schema: DatasetSchema, outputs: Sequence[str]) -> list[str]:
        """Returns the features among the names of columns of a dataset.

        Raises UserError for a name that is no such column, and for a repeated one.
        """
        single = [feature.name for feature in schema.features if not feature.multi]
        has = {"group": schema.has_group, "time": schema.has_time}
        known = [*(name for name in single if name not in TIMES), *(name for name in TIMES if has[name])]
        for name in names:
            if name not in known:
                why = (
                    "has several ids a sample; "
                    if name in schema.feature_names and name not in single
                    else ""
                )
                raise UserError(
                    f"--columns {name}: {why}expected features with one id, group or time, as the data have "
                    f"them: {', '.join(known) or 'none'}"
                )
            if names.count(name) > 1 or name in outputs:
                raise UserError(f"--columns {name}: the file would have two columns of that name")
        return [name for name in names if name not in TIMES]

    def beside(self, parts: Iterator[Array]) -> Iterator[Part]:
        """Yields predictions with the columns of their samples; parts: of all samples, in order."""
        begin = 0
        for part in parts:
            end = begin + len(part)
            found: dict[str, Array] = {}
            if self.names:
                batch = self.source.read(begin, end)
                for name in self.names:
                    values = getattr(batch, name) if name in TIMES else batch.ids[name].values
                    assert values is not None
                    found[name] = values
            yield found, part
            begin = end


def write_predictions(
    parts: Iterator[Part], out: Path, outputs: Sequence[str], kinds: Mapping[str, str]
) -> int:
    """Writes all parts, as the file's name says; returns the number of samples. An older file is replaced.

    kinds: the types of the columns by name. CSV: a line a sample, a header with the names of columns and
    outputs. HDF5: /probability [N, O], and /columns/NAME [N]. Parquet: a column for each.
    Raises PersiaError if the file can't be written.
    """
    write = {".csv": _csv, ".parquet": _parquet}.get(out.suffix, write_hdf5)
    try:
        with replacing(out.resolve()) as partial:
            count = write(parts, partial, outputs, kinds)
            sync_path(partial)
    except OSError as error:
        raise PersiaError(
            f"{out}: can't write it: {error.strerror or error}; what was there before is as it was. "
            "Make room, or name another folder"
        ) from error
    return count


def _csv(parts: Iterator[Part], out: Path, outputs: Sequence[str], kinds: Mapping[str, str]) -> int:
    count = 0
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*kinds, *outputs])
        for columns, part in parts:
            lists = [values.tolist() for values in columns.values()]
            rows = part.tolist()
            if lists:
                rows = [[*beside, *row] for *beside, row in zip(*lists, rows, strict=True)]
            writer.writerows(rows)
            count += len(part)
    return count


def write_hdf5(parts: Iterator[Part], out: Path, outputs: Sequence[str], kinds: Mapping[str, str]) -> int:
    """Writes HDF5 as `write_predictions` says; raises OSError where HDF5 would end the process."""
    width = len(outputs)
    with ErrorKeeper(out) as target, h5py.File(target, "w") as file:
        data = file.create_dataset(
            "probability", (0, width), np.float32, maxshape=(None, width), chunks=(16384, width)
        )
        data.attrs["labels"] = outputs
        beside = {
            name: file.create_dataset(f"columns/{name}", (0,), kind, maxshape=(None,), chunks=(16384,))
            for name, kind in kinds.items()
        }
        count = 0
        for columns, part in parts:
            end = count + len(part)
            data.resize(end, axis=0)
            data[count:] = part
            for name, values in columns.items():
                beside[name].resize(end, axis=0)
                beside[name][count:] = values
            count = end
            target.check()
    target.check()
    return count


def _parquet(parts: Iterator[Part], out: Path, outputs: Sequence[str], kinds: Mapping[str, str]) -> int:
    import polars as pl

    from persia_hpc.checkpoint.export import sink

    count = 0
    types: dict[str, type[pl.DataType]] = dict.fromkeys(outputs, pl.Float32)
    beside = {name: pl.UInt64 if kind == "uint64" else pl.Int64 for name, kind in kinds.items()}
    schema = pl.Schema({**beside, **types})

    def frames() -> Iterator[pl.DataFrame]:
        nonlocal count
        for columns, part in parts:
            count += len(part)
            scores = {name: np.ascontiguousarray(part[:, i]) for i, name in enumerate(outputs)}
            yield pl.DataFrame({**columns, **scores}, schema=schema)

    sink(frames(), schema, out)
    return count
