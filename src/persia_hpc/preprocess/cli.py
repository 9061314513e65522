"""`persia-hpc preprocess NAME`: arguments, and what is printed at the end."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from persia_hpc.config import parse_bytes
from persia_hpc.errors import EXIT_OK, UserError
from persia_hpc.preprocess import adult, criteo, criteo_shards, movielens, synthetic, table, taobao_ad
from persia_hpc.preprocess.bad_lines import LEAVE_OUT
from persia_hpc.preprocess.frames import BadRowsError
from persia_hpc.preprocess.team import ALONE, Team


@dataclass(frozen=True)
class _Source:
    """A source of data: its options are the fields of `options`, which `prepare` takes."""

    options: type[Any]
    prepare: Callable[[Any], Any]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    summary: str
    example: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` one sub-command for each source of data."""
    commands = parser.add_subparsers(dest="preprocess_name", metavar="NAME", required=True)
    for name, source in _SOURCES.items():
        command = commands.add_parser(
            name,
            help=source.summary,
            description=f"{source.summary}.",
            epilog=f"example:\n  persia-hpc preprocess {name} {source.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help="directory of the HDF5 files"
        )
        command.add_argument(
            "--overwrite", action="store_true", help="replace files that other settings made"
        )
        source.add_arguments(command)


def _add_adult(parser: argparse.ArgumentParser) -> None:
    defaults = adult.AdultOptions(Path())
    parser.add_argument("--input", type=Path, metavar="DIR", help="holds adult.data and adult.test (.gz)")
    parser.add_argument(
        "--variant",
        choices=adult.VARIANTS,
        default=defaults.variant,
        help="persia_tutorial: as the original Persia's tutorial prepares the data",
    )
    _add_number(parser, "--valid-fraction", float, defaults.valid_fraction, "part of adult.data for valid.h5")
    _add_number(parser, "--seed", int, defaults.seed, "chooses the validation rows")


def _add_criteo(parser: argparse.ArgumentParser) -> None:
    defaults = criteo.CriteoOptions(Path(), ())
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="FILE", help="files or globs, plain or .gz .xz .bz2 .zst"
    )
    _add_number(parser, "--train-fraction", float, defaults.train_fraction, "first part of the rows")
    _add_number(
        parser, "--valid-fraction", float, defaults.valid_fraction, "part after that; the rest is test"
    )
    _add_number(
        parser, "--min-count", int, defaults.min_count, "ids rarer than this in training share one id"
    )
    parser.add_argument("--rows", type=int, metavar="N", help="use the first N rows only")
    _add_number(parser, "--shards", int, defaults.shards, "number of training files")
    parser.add_argument(
        "--shard-bytes",
        type=_bytes,
        metavar="SIZE",
        help="instead of --shards and fractions a file for so much of the input, say 1GiB; all ranks of an "
        "MPI job share the work, and files that are there already are not made again",
    )
    _add_number(parser, "--test-shards", int, defaults.test_shards, "the last files, with --shard-bytes")
    _add_max_bad_lines(parser)


def _add_max_bad_lines(parser: argparse.ArgumentParser) -> None:
    _add_number(
        parser, "--max-bad-lines", int, 0, "leave out up to N lines that aren't of the layout, and say which"
    )


def _add_movielens(parser: argparse.ArgumentParser) -> None:
    defaults = movielens.MovieLensOptions(Path(), Path())
    parser.add_argument(
        "--input", type=Path, required=True, metavar="DIR", help="holds ratings.dat, users.dat and movies.dat"
    )
    parser.add_argument(
        "--task",
        choices=movielens.TASKS,
        default=defaults.task,
        help="ctr: ratings of 3 left out, label rating > 3; all: label rating >= 4",
    )
    parser.add_argument(
        "--fractions",
        type=float,
        nargs=3,
        default=defaults.fractions,
        metavar=("TRAIN", "VALID", "TEST"),
        help="parts of the random split (default: 0.8 0.1 0.1)",
    )
    _add_number(parser, "--seed", int, defaults.seed, "of the random split")


def _add_taobao_ad(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", type=Path, required=True, metavar="DIR", help=f"holds {', '.join(taobao_ad.FILES)}"
    )


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("schema", type=Path, metavar="SCHEMA.toml", help="says what the columns are")
    _add_max_bad_lines(parser)


def _add_synthetic(parser: argparse.ArgumentParser) -> None:
    defaults = synthetic.SyntheticOptions(Path())
    _add_number(parser, "--rows", int, defaults.rows, "training rows")
    _add_number(parser, "--valid-rows", int, defaults.valid_rows, "rows of valid.h5 (0: no such file)")
    _add_number(parser, "--test-rows", int, defaults.test_rows, "rows of test.h5 (0: no such file)")
    _add_number(parser, "--features", int, defaults.features, "id features")
    parser.add_argument(
        "--vocabulary",
        type=_sizes,
        default=defaults.vocabulary,
        metavar="N[,N...]",
        help="ids of a feature: one number for all or one each (default: 1000000)",
    )
    _add_number(parser, "--exponent", float, defaults.exponent, "of the Zipf distribution; 0 is uniform")
    parser.add_argument(
        "--virtual-ids",
        type=int,
        metavar="N",
        help="spread each id over N / vocabulary ids (N up to 10^13): tables that never stop growing",
    )
    _add_number(parser, "--multi-features", int, defaults.multi_features, "how many features are multi-hot")
    _add_number(parser, "--max-ids", int, defaults.max_ids, "most ids of a sample in a multi-hot feature")
    _add_number(parser, "--dense", int, defaults.dense, "dense features")
    _add_number(parser, "--scale", float, defaults.scale, "deviation of the planted logit: more is easier")
    _add_number(parser, "--bias", float, defaults.bias, "mean of the planted logit")
    _add_number(parser, "--seed", int, defaults.seed, "of everything")
    _add_number(parser, "--shards", int, defaults.shards, "number of training files")


def _add_number(
    parser: argparse.ArgumentParser, flag: str, kind: type[int] | type[float], default: float, meaning: str
) -> None:
    parser.add_argument(
        flag,
        type=kind,
        default=default,
        metavar="N" if kind is int else "X",
        help=f"{meaning} (default: {default})",
    )


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a number or numbers separated by commas"
        ) from None


_SOURCES = {
    "adult": _Source(
        adult.AdultOptions,
        adult.prepare,
        _add_adult,
        "Adult / Census income (UCI), bundled with the source tree",
        "--input datasets/adult --out data/adult",
    ),
    "criteo": _Source(
        criteo.CriteoOptions,
        criteo.prepare,
        _add_criteo,
        "Criteo display advertising in Kaggle's layout (label, 13 integers, 26 hexadecimal ids)",
        "--input criteo/train.txt.gz --out data/criteo --shards 8",
    ),
    "movielens": _Source(
        movielens.MovieLensOptions,
        movielens.prepare,
        _add_movielens,
        "MovieLens-1M as a click-through task",
        "--input ml-1m --out data/movielens",
    ),
    "taobao_ad": _Source(
        taobao_ad.TaobaoAdOptions,
        taobao_ad.prepare,
        _add_taobao_ad,
        "Taobao display advertising: samples, advertisements and users joined",
        "--input taobao --out data/taobao_ad",
    ),
    "table": _Source(
        table.TableOptions,
        table.prepare,
        _add_table,
        "Any CSV, TSV or Parquet files, with a TOML schema (see datasets/table/README.md)",
        "clicks.toml --out data/clicks",
    ),
    "synthetic": _Source(
        synthetic.SyntheticOptions,
        synthetic.prepare,
        _add_synthetic,
        "Zipf-distributed ids and a planted model, so that the best possible AUC is known",
        "--rows 10000000 --shards 4 --out data/synthetic",
    ),
}


def run(args: argparse.Namespace, team: Team = ALONE) -> int:
    """Make the files and say which ones; returns the exit code. Raises `UserError` for bad input.

    Collective over the ranks that share the work.
    """
    source = _SOURCES[args.preprocess_name]
    options = {f.name: getattr(args, f.name) for f in fields(source.options) if hasattr(args, f.name)}
    for key, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{key.replace('_', '-')}: got {value}, expected a finite number")
        if isinstance(value, list):
            options[key] = tuple(value)
    made: Any
    try:
        if getattr(args, "shard_bytes", None) is not None:
            made = criteo_shards.prepare(criteo.CriteoOptions(**options), team)
        else:
            made = source.prepare(source.options(**options))
    except BadRowsError as error:
        raise UserError(f"{error}{LEAVE_OUT if 'max_bad_lines' in options else ''}") from error
    if team.rank != 0:
        return EXIT_OK
    if made is None:
        print(f"{args.out} is up to date")
        return EXIT_OK
    reports, best = made if isinstance(made, tuple) else (made, {})  # synthetic knows what can be reached
    for report in reports:
        print(report)
    if best:
        print(f"best possible on test: AUC {best['bayes_auc']:.5f}, logloss {best['bayes_logloss']:.5f}")
    return EXIT_OK
