"""Says what a table of the corpus must become by Python's csv module, without code of the package."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import h5py
import numpy as np

HEADER = ["click", "price", "user", "words", "color"]
PLAIN = (r"[01]", r"NA|-?\d{1,9}(\.\d{1,6})?", r"\d{1,18}|", r"[a-z0-9]+(\|[a-z0-9]+)*", r"[a-z]+")


def table_problem(table: Path, made: Path) -> str:
    """Compares labels, numbers and integer ids of prepared files with their CSV files; "" if all are right.

    Files with anything that isn't plain, in which readers may differ, are left out.
    """
    for name, split in (("a.csv", "train"), ("b.csv", "test")):
        rows = _plain_rows(table / name)
        if rows is None:
            continue
        with h5py.File(made / f"{split}.h5") as file:
            got = {
                "click": file["label"][:, 0],
                "price": file["dense"][:, 0],
                "user": file["ids/user"][:],
                "words": np.diff(file["ids/words/offsets"][:]),
            }
        expected = {
            "click": [float(row[0]) for row in rows],
            "price": [0.0 if row[1] == "NA" else float(row[1]) for row in rows],
            "words": [len(row[3].split("|")) for row in rows],
        }
        for column, values in expected.items():
            if not np.array_equal(got[column], np.array(values, np.float32)):
                return f"{name}: {column} is not what the file says"
        known = np.array([bool(row[2]) for row in rows])
        users = np.array([int(row[2] or 0) for row in rows], np.uint64)
        if len(users) != len(got["user"]) or not np.array_equal(got["user"][known], users[known]):
            return f"{name}: user is not what the file says"
    return ""


def _plain_rows(path: Path) -> list[list[str]] | None:
    """The rows of a file in which nothing is unusual, else None."""
    try:
        text = path.read_bytes().decode("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    if re.search(r'[\r" ]|\n\n', text) or not text.endswith("\n"):
        return None
    header, *rows = csv.reader(text.splitlines())
    plain = header == HEADER and all(
        len(row) == len(PLAIN) and all(map(re.fullmatch, PLAIN, row)) for row in rows
    )
    return rows if plain else None
