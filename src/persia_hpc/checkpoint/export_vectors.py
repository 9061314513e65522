"""Writes vectors with their ids for other programs: Parquet, safetensors, or an index of faiss.

N vectors, D dim.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc.arrays import Array
from persia_hpc.durable import replace_whole, replacing, sync_path
from persia_hpc.errors import PersiaError, needs_package

from .tables import file_name
from .vectors import Vectors

FORMATS = {"parquet": "parquet", "safetensors": "safetensors", "faiss": "faiss"}  # and the ends of names
METRICS = ("inner_product", "cosine")
IDS = ("uint64", "int64")
ABOUT = "tables.json"


def export_vectors(
    vectors: Sequence[Vectors], to: str, out: Path, *, metric: str, ids: str, step: int
) -> dict[str, Any]:
    """Writes a file for each of `vectors` into a folder, and tables.json; returns what that holds.

    to: one of FORMATS. metric: one of METRICS; for "cosine" vectors are brought to length 1, so that their
    inner product is it. ids: one of IDS, int64 for faiss; as int64 those from 2^63 on are negative.
    Raises UserError for a package that is missing, PersiaError if `out` can't be written.
    """
    ids = "int64" if to == "faiss" else ids
    tables: dict[str, Any] = {}
    for one in vectors:
        path = out / f"{file_name(one.name)}.{FORMATS[to]}"
        counted = _Counted(one, normalize=metric == "cosine")
        try:
            out.mkdir(parents=True, exist_ok=True)
            _WRITERS[to](Vectors(one.name, one.dim, iter(counted)), ids, path)
        except OSError as error:
            raise PersiaError(f"{path} can't be written: {error.strerror or error}") from error
        tables[one.name] = {"file": path.name, "rows": counted.rows, "dim": one.dim}
    about = {
        "version": 1,
        "format": to,
        "step": step,
        "metric": metric,
        "normalized": metric == "cosine",
        "ids": ids,
        "tables": tables,
    }
    replace_whole(out / ABOUT, json.dumps(about, indent=1).encode())
    return about


class _Counted:
    """Passes vectors on, of length 1 if asked for, and counts them."""

    def __init__(self, vectors: Vectors, *, normalize: bool) -> None:
        self._vectors, self._normalize, self.rows = vectors, normalize, 0

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for numbers, rows in self._vectors.parts:
            self.rows += len(numbers)
            if self._normalize:
                lengths = np.linalg.norm(rows, axis=1, keepdims=True)
                rows = rows / np.where(lengths == 0, np.float32(1), lengths)
            yield numbers, np.ascontiguousarray(rows, np.float32)


def _parquet(vectors: Vectors, ids: str, path: Path) -> None:
    from .export import write_vectors  # with polars

    write_vectors(vectors, ids, path)


def _safetensors(vectors: Vectors, ids: str, path: Path) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ModuleNotFoundError as error:
        raise needs_package("--tables safetensors", "safetensors") from error
    numbers, rows = _whole(vectors)
    with replacing(path) as partial:
        try:
            save_file({"ids": numbers.view(ids), "embeddings": rows}, str(partial))
        except SafetensorError as error:
            raise OSError(None, str(error)) from error
        sync_path(partial)


def _faiss(vectors: Vectors, ids: str, path: Path) -> None:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise needs_package("--tables faiss", "faiss-cpu") from error
    numbers, rows = _whole(vectors)
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.dim))
    index.add_with_ids(rows, numbers.view(ids))
    with replacing(path) as partial:
        try:
            faiss.write_index(index, str(partial))
        except RuntimeError as error:
            raise OSError(None, " ".join(str(error).split())) from error
        sync_path(partial)


_WRITERS = {"parquet": _parquet, "safetensors": _safetensors, "faiss": _faiss}


def _whole(vectors: Vectors) -> tuple[Array, Array]:
    parts = list(vectors.parts)
    if not parts:
        return np.zeros(0, np.uint64), np.zeros((0, vectors.dim), np.float32)
    return np.concatenate([numbers for numbers, _ in parts]), np.concatenate([rows for _, rows in parts])
