"""Checks that a checkpoint is as it was written, and makes sense: `persia-hpc checkpoint verify`.

All files are read. Every problem is reported, not only the first, unless one problem hides another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from persia_hpc.arrays import Array
from persia_hpc.config import load_config
from persia_hpc.errors import DataError, PersiaError
from persia_hpc.table_layout import TableLayout, make_layout

from .columns import Part, check_of, pieces
from .listing import count_text
from .manifest import base_of, check_part, examine_manifest, read_schema
from .merged import CheckpointReader, key_ranges
from .names import DENSE, MANIFEST, is_cold
from .parts import COLD, COLUMNS, ROWS, masks_of
from .records import RECORDS, problem_of, widths_of
from .tables import groups_of, open_shard, table_attributes

CheckDense = Callable[[Path, int], str]
_READ_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError, AttributeError)


@dataclass
class Verification:
    """Holds what was found out about a checkpoint."""

    directory: Path
    problems: list[str] = field(default_factory=list)
    rows: int = 0  # of all tables, with those of the base
    nonfinite_rows: int = 0  # in its own files: training diverged; not damage
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Returns one line for people, and for a damaged checkpoint one more for each problem."""
        name = self.directory.name
        if self.problems:
            lines = [f"{name} damaged: {count_text(len(self.problems), 'problem')}"]
            return "\n".join([*lines, *(f"  {problem}" for problem in self.problems)])
        base = self.manifest["base"]
        facts = ["all rows" if base is None else f"changes since {base}"]
        facts.append(count_text(len(self.manifest["shards"]), "server"))
        facts.append(count_text(self.rows, "row"))
        if self.nonfinite_rows:
            facts.append(f"{self.nonfinite_rows:,} of them with infinite or NaN values: training diverged")
        return f"{name} ok ({', '.join(facts)})"


def verify(
    directory: Path, check_dense: CheckDense, known: dict[Path, Verification] | None = None
) -> Verification:
    """Reads a checkpoint and its base, and returns what is wrong with them.

    check_dense(directory, step) says what is wrong with the dense part, '' if nothing. known: results for
    checkpoints that needn't be read again; this one's is added.
    """
    directory = directory.resolve()
    known = {} if known is None else known
    if directory in known:
        return known[directory]
    report = known[directory] = Verification(directory)
    report.manifest, problems = _read_manifest(directory)
    report.problems += problems
    if problems:  # nothing in it can be relied on
        return report
    report.problems += _file_problems(directory, report.manifest)
    report.problems += _base_problems(report, check_dense, known)
    report.problems += _Shards(report).problems()
    if DENSE in report.manifest["files"] and (directory / DENSE).exists():
        problem = check_dense(directory, report.manifest["step"])
        report.problems += [f"{DENSE}: {problem}"] if problem else []
    if not report.problems:
        report.problems += _merged_problems(report)
    return report


def _read_manifest(directory: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the manifest, and all that is wrong with it."""
    try:
        manifest, problems = examine_manifest(directory)
    except PersiaError as error:
        return {}, [_plain(error)]
    return manifest, [f"{MANIFEST}: {problem}" for problem in problems]


def _file_problems(directory: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    for name in manifest["files"]:
        try:
            check_part(directory, manifest, name, content=True)
        except DataError as error:
            yield _plain(error).removeprefix(f"{directory}/")


def _base_problems(
    report: Verification, check_dense: CheckDense, known: dict[Path, Verification]
) -> Iterator[str]:
    try:
        base = base_of(report.directory, report.manifest)
    except DataError as error:
        yield _plain(error).removeprefix(f"{report.directory} ")
        return
    if base is None:
        return
    if base.resolve() == report.directory:
        yield "it is its own base"
        return
    found = verify(base, check_dense, known)
    if found.problems:
        yield f"its base {base.name} is damaged ({count_text(len(found.problems), 'problem')})"
    elif found.manifest["base"] is not None:
        yield f"its base {base.name} is incremental itself"


class _Shards:
    """Checks each server's file on its own, and that together they have every bucket of every table once."""

    def __init__(self, report: Verification):
        self.report = report
        base = report.manifest["base"]
        self.base_step = int(base.partition("-")[2]) if base and base.startswith("step-") else 0
        self.owners: dict[str, list[tuple[Array, str]]] = {}  # of each table: buckets, file
        self.readable = True

    def problems(self) -> Iterator[str]:
        try:
            config = load_config(self.report.manifest["config"])
            layout = make_layout(config, read_schema(self.report.manifest))
        except (PersiaError, *_READ_ERRORS) as error:
            yield f"{MANIFEST}: configuration or schema can't be read: {error}"
            return
        specs = {table.name: table for table in layout.tables}
        cold = [name for name in self.report.manifest["files"] if is_cold(name)]
        for name in (*self.report.manifest["shards"], *cold):
            path = self.report.directory / name
            if not path.exists():  # already said
                self.readable = False
                continue
            try:
                with open_shard(path) as shard:
                    for table, group in groups_of(shard).items():
                        yield from self._group(f"{name}: table {table!r}", name, group, specs.get(table))
            except DataError as error:
                self.readable = False
                yield _plain(error).removeprefix(f"{self.report.directory}/")
            except _READ_ERRORS as error:
                self.readable = False
                yield f"{name}: can't be read: {' '.join(str(error).split())}"
        if self.readable:
            for spec in layout.tables:
                yield from self._covered(spec)

    def _covered(self, spec: TableLayout) -> Iterator[str]:
        count = np.zeros(spec.num_buckets, np.int64)
        for buckets, _ in self.owners.get(spec.name, []):
            np.add.at(count, buckets[(buckets >= 0) & (buckets < spec.num_buckets)], 1)
        for what, which in (("no file", count == 0), ("several files", count > 1)):
            if which.any():
                first = int(np.flatnonzero(which)[0])
                files_of = [file for buckets, file in self.owners.get(spec.name, []) if first in buckets]
                names = f" ({', '.join(files_of)})" if files_of else ""
                number = count_text(int(which.sum()), "bucket")
                yield f"table {spec.name!r}: {number}, from {first} on, in {what}{names}"

    def _group(self, where: str, file: str, group: h5py.Group, spec: TableLayout | None) -> Iterator[str]:
        if spec is None:
            yield f"{where} is not one of the configuration's tables"
            return
        for name, value in table_attributes(spec).items():
            if group.attrs.get(name) != value:
                yield f"{where}: {name} is {group.attrs.get(name)}, expected {value}"
        complete = group.attrs.get("complete")
        if complete is None or (not complete and not self.base_step):
            yield f"{where}: doesn't say that it is complete, but there is no base"
        try:
            buckets = group["buckets"][:].astype(np.int64)
            offsets = group["bucket_offsets"][:].astype(np.int64)
            num_rows = len(group[RECORDS if RECORDS in group else "keys"])
        except _READ_ERRORS as error:
            self.readable = False
            yield f"{where}: buckets can't be read: {error}"
            return
        if not is_cold(file):
            self.owners.setdefault(spec.name, []).append((buckets, file))
        if len(buckets) and (
            (np.diff(buckets) != 1).any() or not 0 <= buckets[0] <= buckets[-1] < spec.num_buckets
        ):
            yield f"{where}: buckets don't follow each other in 0..{spec.num_buckets - 1}"
        sound = len(offsets) == len(buckets) + 1 and offsets[0] == 0 and offsets[-1] == num_rows
        if not sound or (np.diff(offsets) < 0).any():
            yield f"{where}: bucket_offsets don't ascend from 0 to the {num_rows} rows"
            offsets = None
        lengths = dict.fromkeys((RECORDS,) if RECORDS in group else COLUMNS[:4], num_rows)
        lengths |= {} if is_cold(file) else {"ages": len(buckets)}
        lengths |= {"steps": num_rows} if "steps" in group else {}
        lengths |= {} if complete or complete is None else {"removed": -1}
        for name in lengths.keys() - group.keys():
            yield f"{where}: no dataset {name}"
        part = Part(group, spec, buckets, offsets, self.base_step)
        if RECORDS in group and (problem := problem_of(group[RECORDS], num_rows)):
            yield f"{where}: {problem}"
            return
        for name in group.keys() - {COLD}:
            for problem in self._column(part, name, lengths.get(name, -1)):
                yield f"{where}: {problem}"
        for name, mask in masks_of(group).items():  # whether they fit their files is seen with all the rows
            found, told = (
                sum(int(np.unpackbits(bits).sum()) for _, bits in pieces(mask)),
                mask.attrs.get(ROWS),
            )
            if found != told:
                yield f"{where}: the mask of {name} has {count_text(found, 'row')}, but says {told}"

    def _column(self, part: Part, name: str, length: int) -> Iterator[str]:
        """Yields the problems of a column. length: its number of entries; -1 if any will do."""
        dataset = part.group[name]
        if length not in (-1, len(dataset)):
            yield f"{name} has {len(dataset)} entries, expected {length}"
        width = widths_of(dataset)["rows"] if name == RECORDS else dataset.shape[1:]
        if name in ("rows", RECORDS) and width != (part.spec.dim,):
            yield f"rows have shape {width}, expected ({part.spec.dim},)"
        columns = dataset.dtype.names or (name,)
        checks = [check_of(column, part) for column in columns]
        try:
            for at, values in pieces(dataset):
                for column, check in zip(columns, checks, strict=True):
                    check.add(at, values[column] if name == RECORDS else values)
        except _READ_ERRORS as error:
            yield f"{name} can't be read: {error}"
        self.report.nonfinite_rows += sum(check.nonfinite_rows for check in checks)
        yield from filter(None, (check.problem() for check in checks))


def _merged_problems(report: Verification) -> Iterator[str]:
    """Yields the problems that only all servers' files together, merged with the base, can show.

    Each single file must have none.
    """
    try:
        with CheckpointReader(report.directory, checked=True) as reader:
            for table in reader.tables.values():
                twice = 0
                for begin, end in key_ranges(table)[1]:
                    keys = table.read(begin, end, columns=("keys",))["keys"]
                    twice += int((keys[1:] == keys[:-1]).sum())
                    report.rows += len(keys)
                if twice:
                    yield f"table {table.name!r}: {count_text(twice, 'key')} there twice"
    except PersiaError as error:
        yield _plain(error)


def _plain(error: PersiaError) -> str:
    return str(error).removesuffix("; use an older checkpoint")
