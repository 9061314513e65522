"""Holds vectors with their ids, as other programs want them: of a table, or of anything that has ids.

D dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from persia_hpc._native import unmix
from persia_hpc.arrays import Array
from persia_hpc.config import load_config
from persia_hpc.errors import UserError

from .merged import CheckpointReader, MergedTable, key_ranges


@dataclass
class Vectors:
    """Holds ids and vectors, some at a time: uint64 [n] and float32 [n, D]."""

    name: str
    dim: int
    parts: Iterator[tuple[Array, Array]]


def live_rows(
    table: MergedTable, ttl: int, next_step: int, columns: Sequence[str]
) -> Iterator[tuple[dict[str, Array], int]]:
    """Yields a table's rows in ascending order of keys, and how many were left out: past their `ttl`.

    columns: with "stamps" among them.
    """
    for begin, end in key_ranges(table)[1]:
        rows = table.read(begin, end, columns=columns)
        here = np.ones(len(rows["keys"]), bool)
        if ttl:
            here = next_step - rows["stamps"].astype(np.int64) <= ttl
            rows = {name: values[here] for name, values in rows.items()}
        yield rows, int((~here).sum())


def table_vectors(checkpoint: CheckpointReader, name: str) -> Vectors:
    """Returns the rows of a table with their ids.

    Raises UserError for an unknown table, and for a hashed one, whose rows have no ids.
    """
    if name not in checkpoint.tables:
        raise UserError(f"there is no table {name!r}; this checkpoint has: {', '.join(checkpoint.tables)}")
    table = checkpoint.tables[name]
    config = load_config(checkpoint.manifest["config"]).table(name)
    if config.hash is not None:
        raise UserError(
            f"the table {name!r} is hashed: many ids share a row, so there are no vectors of ids; "
            "`persia-hpc checkpoint export` writes its keys"
        )
    found = live_rows(table, config.ttl, checkpoint.manifest["step"] + 1, ["keys", "rows", "stamps"])
    parts = ((unmix(np.ascontiguousarray(rows["keys"])), rows["rows"]) for rows, _ in found)
    return Vectors(name, table.dim, parts)
