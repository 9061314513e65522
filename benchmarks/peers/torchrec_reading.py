"""TorchRec's own pipelines for Criteo, without imports: rows of TSV, and batches of preprocessed arrays.

    build/torchrec-venv/bin/python benchmarks/peers/torchrec_reading.py FOLDER [--batch 2048]

FOLDER holds rows.tsv, and {dense,sparse,labels}.npy as `tsv_to_npys` makes them. Prints seconds as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from torchrec.datasets.criteo import BinaryCriteoUtils, InMemoryBinaryCriteoIterDataPipe, criteo_terabyte

PARTS = ("dense", "sparse", "labels")


def read_rows(folder: Path) -> int:
    """Parses each row of the TSV file to a dictionary; no batches are made."""
    return sum(1 for _ in criteo_terabyte([str(folder / "rows.tsv")]))


def to_arrays(folder: Path) -> int:
    """Preprocesses the TSV file."""
    BinaryCriteoUtils.tsv_to_npys(str(folder / "rows.tsv"), *(str(folder / f"made_{p}.npy") for p in PARTS))
    return 1


def read_batches(folder: Path, batch: int) -> int:
    """Loads preprocessed arrays and makes batches of them, without shuffling."""
    files = [[str(folder / f"{part}.npy")] for part in PARTS]
    return sum(1 for _ in InMemoryBinaryCriteoIterDataPipe("train", *files, batch, 0, 1))


def seconds(action: Callable[[], int]) -> float:
    begin = time.perf_counter()
    if not action():
        raise SystemExit("got nothing")
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=2048)
    options = parser.parse_args()
    found = {
        "rows": seconds(lambda: read_rows(options.folder)),
        "arrays": seconds(lambda: to_arrays(options.folder)),
        "batches": seconds(lambda: read_batches(options.folder, options.batch)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
