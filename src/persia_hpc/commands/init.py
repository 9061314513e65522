"""persia-hpc init: a configuration to begin with, from what data files hold."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from persia_hpc.errors import EXIT_OK, UserError

if TYPE_CHECKING:
    from persia_hpc.preprocess.proposal import Machine

SUMMARY = "a commented train.toml to begin with, from data files"
DESCRIPTION = """\
Reads the training data (the first million samples, unless --limit says otherwise) and writes a configuration
that trains on them: a table for each feature, with a dim and a capacity by the number of its ids, a loss by
the labels, ranks by this machine's cores and GPUs. It is a start, to be changed by hand; every choice that
the data suggest is explained beside it."""
EXAMPLES = """\
examples:
  persia-hpc init data/adult/train.h5 --valid data/adult/valid.h5 --test data/adult/test.h5
  persia-hpc init 'clicks/day_*.parquet' --schema clicks.toml --out clicks-train.toml
  persia-hpc train train.toml"""
LIMIT = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("train", nargs="+", metavar="FILE", help="training files or globs, read as one")
    parser.add_argument("--valid", nargs="+", default=[], metavar="FILE", help="files to evaluate on")
    parser.add_argument("--test", nargs="+", default=[], metavar="FILE", help="files to test on at the end")
    parser.add_argument("--schema", default=None, metavar="FILE", help="data.schema, for Parquet files")
    parser.add_argument(
        "--limit", type=int, default=LIMIT, metavar="N", help=f"samples to look at (default: {LIMIT:,})"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("train.toml"), metavar="FILE", help="default: train.toml"
    )


def run(options: argparse.Namespace) -> int:
    """Writes the configuration, but never over a file that is there.

    Raises UserError for bad arguments, data without labels and an output that exists or can't be written, and
    DataError for damaged files.
    """
    from persia_hpc.preprocess.inspection import inspect_source
    from persia_hpc.preprocess.progress import Progress
    from persia_hpc.preprocess.proposal import propose
    from persia_hpc.samples.source import open_source

    if options.limit < 1:
        raise UserError(f"--limit: got {options.limit}, expected 1 or more")
    for name in (*options.train, *options.valid, *options.test, options.schema or ""):
        if not is_utf8(name):
            raise UserError(f"{name}: got a name that isn't UTF-8, which TOML can't have; rename it")
    if options.out.exists():
        raise UserError(f"--out: {options.out} exists; give another name, or remove it first")
    source = open_source(options.train, schema_file=options.schema)
    if not source.schema.label_names:
        raise UserError(
            f"{options.train[0]}: got no labels, expected files to train on; they can only be scored"
        )
    for files in (options.valid, options.test):
        if files:
            open_source(files, schema_file=options.schema)
    done = 0
    with Progress("init", min(options.limit, source.num_samples)) as progress:
        for found in inspect_source(source, options.limit):
            progress.add(found.num_samples - done)
            done = found.num_samples
    files = {"train": options.train, "valid": options.valid, "test": options.test}
    if options.schema is not None:
        files["schema"] = [options.schema]
    text = propose(source.schema, found, source.num_samples, files, _machine()).encode()
    try:
        with options.out.open("xb") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"--out: {options.out} can't be written ({error.strerror})") from error
    print(f"{options.out}: persia-hpc train {options.out}")
    return EXIT_OK


def is_utf8(name: str) -> bool:
    """Returns whether a name is UTF-8: Python has bytes that aren't as halves of pairs."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _machine() -> Machine:
    """Returns what this process may use; GPUs as the driver lists them, without loading torch."""
    from persia_hpc.preprocess.proposal import Machine

    return Machine(len(os.sched_getaffinity(0)), count_gpus(), find_spec("horovod") is not None)


def count_gpus(root: Path = Path("/")) -> int:
    """Returns the number of NVIDIA's GPUs; a sandbox may have their devices without the driver's folder."""
    listed = len(list(root.glob("proc/driver/nvidia/gpus/*")))
    return listed or sum(path.name[6:].isdigit() for path in root.glob("dev/nvidia*"))
