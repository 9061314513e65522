"""Stores on disk of others, filled with the rows of a table's disk tier, and what empties the page cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


def forget(files: Iterator[int]) -> None:
    """Takes files out of the page cache."""
    for file in files:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def forget_below(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                forget(iter([file.fileno()]))


def rocksdb(folder: str, keys: np.ndarray, values: np.ndarray, memory: int) -> Callable[[list[bytes]], Any]:
    from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteBatch

    def options() -> Any:
        chosen, blocks = Options(raw_mode=True), BlockBasedOptions()
        blocks.set_block_cache(Cache(memory))
        blocks.set_bloom_filter(10, False)
        chosen.set_block_based_table_factory(blocks)
        chosen.set_compression_type(DBCompressionType.none())
        return chosen

    db = Rdict(folder, options())
    for begin in range(0, len(keys), 10_000):
        batch = WriteBatch(raw_mode=True)
        for key, value in zip(keys[begin : begin + 10_000], values[begin : begin + 10_000], strict=True):
            batch.put(key.tobytes(), value.tobytes())
        db.write(batch)
    db.flush()
    db.compact_range(None, None)
    db.close()
    forget_below(Path(folder))
    opened = Rdict(folder, options())
    return lambda asked: opened[asked]


def lmdb(folder: str, keys: np.ndarray, values: np.ndarray, memory: int) -> Callable[[list[bytes]], Any]:
    import lmdb as library

    del memory  # it has the page cache alone
    with library.open(folder, map_size=8 * values.nbytes + (64 << 20), readahead=False) as env:
        with env.begin(write=True) as transaction:
            pairs = ((k.tobytes(), v.tobytes()) for k, v in zip(keys, values, strict=True))
            transaction.cursor().putmulti(pairs)
        env.sync(True)
    forget_below(Path(folder))
    opened = library.open(folder, map_size=8 * values.nbytes + (64 << 20), readahead=False, readonly=True)
    return lambda asked: opened.begin().cursor().getmulti(sorted(asked))
