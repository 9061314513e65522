"""persia-hpc export: a run's model and tables for other programs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from persia_hpc.errors import EXIT_OK, UserError
from persia_hpc.printable import printable
from persia_hpc.runtime.imports import import_quickly

from .evaluate import add_trust

if TYPE_CHECKING:
    from persia_hpc.checkpoint.vectors import Vectors
    from persia_hpc.job.loaded_run import LoadedRun

SUMMARY = "write the model and vectors of a run for other programs"
DESCRIPTION = """\
Writes the dense model of a checkpoint, from pooled vectors and dense features to predictions, as a graph that
other programs run, and model.json, which names inputs and outputs with their shapes. The graph is compared
with the run's own predictions before it is written. Of a run directory that is the best checkpoint if one is
kept (train.keep_best), else the latest. With --tables it writes the vectors of ids: rows of tables, or with
--items what a retrieval model makes of its catalogue, and tables.json. One process, no MPI. More:
docs/exporting.md."""
EXAMPLES = """\
examples:
  persia-hpc export runs/1 --to onnx --out exported
  persia-hpc export runs/1/latest --to torch-export --out exported
  persia-hpc export runs/1 --to onnx --tables parquet --out exported
  persia-hpc export runs/1 --tables safetensors --table item --ids int64 --out exported
  persia-hpc export runs/1 --tables faiss --items --metric cosine --out exported"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("run_dir", metavar="RUN", help="run directory or checkpoint, for instance runs/1")
    parser.add_argument("--to", choices=("onnx", "torch-export", "torchscript"), help="the model, as this")
    parser.add_argument("--tables", choices=("parquet", "safetensors", "faiss"), help="vectors, as this")
    parser.add_argument("--table", metavar="NAME", nargs="+", help="which tables (default: all)")
    parser.add_argument("--items", action="store_true", help="in place of tables, the catalogue's items")
    parser.add_argument(
        "--metric",
        choices=("inner_product", "cosine"),
        default="inner_product",
        help="how vectors are compared; for cosine they are brought to length 1 (default: inner_product)",
    )
    parser.add_argument(
        "--ids", choices=("uint64", "int64"), default="uint64", help="type of ids (default: uint64)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write into")
    add_trust(parser)


def run(options: argparse.Namespace) -> int:
    """Writes what was asked for.

    Raises UserError for bad input.
    """
    if options.tables is None and (options.table or options.items):
        raise UserError("--table and --items say which vectors; add --tables parquet, safetensors or faiss")
    if options.to is None and options.tables is None:
        raise UserError("--to and --tables are missing: expected one of them, or both")
    if options.table and options.items:
        raise UserError("--table and --items: expected one of them")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out}: got a file, expected a folder")
    if options.to is not None or options.items:
        import_quickly("torch")
        from persia_hpc.job.loaded_run import LoadedRun

        run = LoadedRun(Path(options.run_dir), trust=options.trust)
        if options.to is not None:
            _model(run, options)
        if options.items:
            _items(run, options)
    if options.tables is not None and not options.items:
        _tables(options)
    return EXIT_OK


def _model(run: LoadedRun, options: argparse.Namespace) -> None:
    from persia_hpc.job.export_model import export_model

    about = export_model(run, options.to, options.out)
    checked = about["checked"]
    print(
        printable(
            f"{options.out / about['file']}: predicts what step {about['step']} does, up to "
            f"{checked['largest_difference']:.1g} (at most {checked['tolerance']:g} is allowed)"
        )
    )


def _items(run: LoadedRun, options: argparse.Namespace) -> None:
    from persia_hpc.checkpoint.vectors import Vectors

    parts = run.items()
    first = next(parts)
    _write([Vectors("items", first[1].shape[1], chain([first], parts))], run.step, options)


def _tables(options: argparse.Namespace) -> None:
    from persia_hpc.checkpoint.choose import find_checkpoint, say_choice
    from persia_hpc.checkpoint.merged import CheckpointReader
    from persia_hpc.checkpoint.vectors import table_vectors

    path = find_checkpoint(Path(options.run_dir))
    say_choice(Path(options.run_dir))
    with CheckpointReader(path) as checkpoint:
        names = list(dict.fromkeys(options.table or checkpoint.tables))
        tables = [table_vectors(checkpoint, name) for name in names]
        _write(tables, checkpoint.manifest["step"], options)


def _write(vectors: Sequence[Vectors], step: int, options: argparse.Namespace) -> None:
    from persia_hpc.checkpoint.export_vectors import export_vectors

    about = export_vectors(
        vectors, options.tables, options.out, metric=options.metric, ids=options.ids, step=step
    )
    for name, table in about["tables"].items():
        print(printable(f"{table['rows']} vectors of {name} written to {options.out / table['file']}"))
