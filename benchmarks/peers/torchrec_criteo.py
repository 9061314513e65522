"""TorchRec's own preprocessing of Criteo's layout: TSV to npy, and on request its vocabulary.

    build/torchrec-venv/bin/python benchmarks/peers/torchrec_criteo.py --out DIR [--vocabulary 3] FILE [FILE]

Each file becomes three .npy files in a process of its own, as their script does it day by day.
`--vocabulary`: then ids become consecutive numbers by `sparse_to_contiguous`, ids rarer than that one number;
it wants all files in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
from pathlib import Path

from torchrec.datasets.criteo import BinaryCriteoUtils


def convert(path: Path, out: Path) -> None:
    """The .npy files of one TSV file."""
    files = [str(out / f"{path.stem}_{part}.npy") for part in ("dense", "sparse", "labels")]
    BinaryCriteoUtils.tsv_to_npys(str(path), *files)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, metavar="COUNT")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    processes = [multiprocessing.Process(target=convert, args=(path, options.out)) for path in options.files]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(f"tsv_to_npys failed with exit code {process.exitcode}")
    if options.vocabulary is not None:
        sparse = [str(options.out / f"{path.stem}_sparse.npy") for path in options.files]
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
            BinaryCriteoUtils.sparse_to_contiguous(sparse, str(options.out), options.vocabulary)


if __name__ == "__main__":
    main()
