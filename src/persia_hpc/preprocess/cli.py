"""Defines the arguments of `persia-hpc preprocess NAME`, runs it and prints what was made."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from persia_hpc.config import parse_bytes
from persia_hpc.errors import EXIT_OK, UserError
from persia_hpc.parsers import LateParser
from persia_hpc.preprocess.label_rates import constant_labels
from persia_hpc.preprocess.team import ONE_MEMBER, Part, Team

from . import arguments
from .arguments import add_encoding, add_max_bad_lines, add_number
from .criteo import synthetic as criteo_syn
from .sources import LOADERS


@dataclass(frozen=True)
class _Source:
    """Describes a source of data; `add_arguments` imports it, as `sources` does, for its own command only."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    summary: str
    example: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds one sub-command for each source of data to `parser`."""
    commands = parser.add_subparsers(
        dest="preprocess_name", metavar="NAME", required=True, parser_class=LateParser
    )
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
        command.add_late = source.add_arguments


def _add_adult(parser: argparse.ArgumentParser) -> None:
    from . import adult

    defaults = adult.AdultOptions(Path())
    parser.add_argument("--input", type=Path, metavar="DIR", help="holds adult.data and adult.test (.gz)")
    parser.add_argument(
        "--variant",
        choices=adult.VARIANTS,
        default=defaults.variant,
        help="persia_tutorial: as the original Persia's tutorial prepares the data",
    )
    add_number(parser, "--valid-fraction", float, defaults.valid_fraction, "part of adult.data for valid.h5")
    add_number(parser, "--seed", int, defaults.seed, "chooses the validation rows")


def _add_criteo(parser: argparse.ArgumentParser) -> None:
    from .criteo import prepare as criteo

    defaults = criteo.CriteoOptions(Path(), ())
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="FILE", help="files or globs, plain or .gz .xz .bz2 .zst"
    )
    add_number(parser, "--train-fraction", float, defaults.train_fraction, "first part of the rows")
    add_number(
        parser, "--valid-fraction", float, defaults.valid_fraction, "part after that; the rest is test"
    )
    add_number(parser, "--min-count", int, defaults.min_count, "ids rarer than this in training share one id")
    parser.add_argument("--rows", type=int, metavar="N", help="use the first N rows only")
    add_number(parser, "--shards", int, defaults.shards, "number of training files")
    _add_sharding(parser, "instead of --shards and fractions")
    add_max_bad_lines(parser)
    add_encoding(parser, "replace the ids that are rare in other data, instead of counting anew")


def _add_sharding(parser: argparse.ArgumentParser, instead: str) -> None:
    _add_shard_bytes(parser, instead)
    add_number(parser, "--test-shards", int, 0, "with --shard-bytes: so many of the last files are the test")
    _add_part(parser)


def _add_part(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        help="make only the I-th (from 0) of N parts of the shards, as a task of a job array",
    )


def _add_shard_bytes(parser: argparse.ArgumentParser, instead: str) -> None:
    parser.add_argument(
        "--shard-bytes",
        type=_bytes,
        metavar="SIZE",
        help=f"{instead} a file for so much of the input, say 1GiB; all ranks of an MPI job share the work, "
        "and files that are there already are not made again",
    )


def _add_taobao_ad(parser: argparse.ArgumentParser) -> None:
    from . import taobao_ad

    parser.add_argument(
        "--input", type=Path, required=True, metavar="DIR", help=f"holds {', '.join(taobao_ad.FILES)}"
    )
    _add_shard_bytes(parser, "instead of a file for each split")


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("schema", type=Path, metavar="SCHEMA.toml", help="says what the columns are")
    _add_sharding(parser, "instead of a file for each split")
    add_max_bad_lines(parser)
    add_encoding(parser, "give values the ids and scales of other data, instead of learning anew")
    parser.add_argument(
        "--no-labels",
        action="store_true",
        help="leave the schema's labels out, whose columns needn't exist: for files to be scored",
    )


def _add_synthetic(parser: argparse.ArgumentParser) -> None:
    from . import synthetic

    defaults = synthetic.SyntheticOptions(Path())
    add_number(parser, "--rows", int, defaults.rows, "training rows")
    add_number(parser, "--valid-rows", int, defaults.valid_rows, "rows of valid.h5 (0: no such file)")
    add_number(parser, "--test-rows", int, defaults.test_rows, "rows of test.h5 (0: no such file)")
    add_number(parser, "--features", int, defaults.features, "id features")
    parser.add_argument(
        "--vocabulary",
        type=_sizes,
        default=defaults.vocabulary,
        metavar="N[,N...]",
        help="ids of a feature: one number for all or one each (default: 1000000)",
    )
    add_number(parser, "--exponent", float, defaults.exponent, "of the Zipf distribution; 0 is uniform")
    parser.add_argument(
        "--virtual-ids",
        type=int,
        metavar="N",
        help="draw from N ids a feature (up to 10^13), all alike: tables that never stop growing",
    )
    parser.add_argument(
        "--new-ids",
        type=float,
        metavar="X",
        help="with --virtual-ids: only this share of the draws, others are of the vocabulary (default: 1)",
    )
    parser.add_argument(
        "--preset",
        choices=criteo_syn.PRESETS,
        help="the Persia paper's sets of 6.25 to 100 trillion parameters: sets features, vocabulary, virtual "
        "and new ids",
    )
    add_number(parser, "--multi-features", int, defaults.multi_features, "how many features are multi-hot")
    add_number(parser, "--max-ids", int, defaults.max_ids, "most ids of a sample in a multi-hot feature")
    add_number(parser, "--dense", int, defaults.dense, "dense features")
    add_number(parser, "--scale", float, defaults.scale, "deviation of the planted logit: more is easier")
    add_number(parser, "--bias", float, defaults.bias, "mean of the planted logit")
    add_number(parser, "--seed", int, defaults.seed, "of everything")
    add_number(parser, "--shards", int, defaults.shards, "training files, shared by all ranks of an MPI job")
    _add_part(parser)


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _part(text: str) -> Part:
    rank, _, size = text.partition("/")
    if not (rank.isdigit() and size.isdigit() and int(rank) < int(size)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected I/N, like 0/24 to 23/24")
    return Part(int(rank), int(size))


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a number or numbers separated by commas"
        ) from None


_SOURCES = {
    "adult": _Source(
        _add_adult,
        "Adult / Census income (UCI), bundled with this package",
        "--out data/adult",
    ),
    "criteo": _Source(
        _add_criteo,
        "Criteo display advertising in Kaggle's layout (label, 13 integers, 26 hexadecimal ids)",
        "--input criteo/train.txt.gz --out data/criteo --shards 8",
    ),
    "movielens": _Source(
        arguments.add_movielens,
        "MovieLens (1M, 20M, 25M) as a click-through task, or as sequences of movies",
        "--input ml-1m --out data/movielens\n"
        "  persia-hpc preprocess movielens --input ml-1m --task next_item --out data/movielens_next",
    ),
    "amazon": _Source(
        arguments.add_amazon,
        "Amazon reviews (2014, 2018, 2023) as sequences of products",
        "--input reviews_Electronics_5.json.gz --meta meta_Electronics.json.gz --task ctr \\\n"
        "    --min-count 1 --out data/amazon_electronics\n"
        "  persia-hpc preprocess amazon --input ratings_Books.csv --out data/amazon_books",
    ),
    "taobao_ad": _Source(
        _add_taobao_ad,
        "Taobao display advertising: samples, advertisements and users joined",
        "--input taobao --out data/taobao_ad",
    ),
    "kuairand": _Source(
        arguments.add_kuairand,
        "KuaiRand (Pure, 1K) as a task of eight labels, with histories",
        "--input KuaiRand-Pure/data --out data/kuairand",
    ),
    "yambda": _Source(
        arguments.add_yambda,
        "Yambda (Yandex.Music) as dlrm_v4's ranking task, by windows of time, shared by all ranks",
        "--input flat/50m/multi_event.parquet --mappings yambda \\\n"
        "    --history 300 --stride 20 --out data/yambda",
    ),
    "table": _Source(
        _add_table,
        "Any CSV, TSV, Parquet or Arrow files, with a TOML schema (see datasets/table/README.md)",
        "clicks.toml --out data/clicks",
    ),
    "synthetic": _Source(
        _add_synthetic,
        "Zipf-distributed ids and a planted model, so that the best possible AUC is known",
        "--rows 10000000 --shards 4 --out data/synthetic",
    ),
}


def shares_work(args: argparse.Namespace) -> bool:
    """Returns whether many ranks can share what these arguments ask for."""
    return LOADERS[args.preprocess_name]().share is not None and getattr(args, "shard_bytes", 0) is not None


def run(args: argparse.Namespace, team: Team = ONE_MEMBER) -> int:
    """Makes the files, prints which ones, and returns the exit code.

    Collective over the ranks that share the work.
    Raises UserError for bad options or input.
    """
    work = LOADERS[args.preprocess_name]()
    options = {f.name: getattr(args, f.name) for f in fields(work.options) if hasattr(args, f.name)}
    for key, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{key.replace('_', '-')}: got {value}, expected a finite number")
        if isinstance(value, list):
            options[key] = tuple(value)
    made: Any
    if shares_work(args):
        assert work.share is not None
        made = work.share(work.options(**options), team)
    else:
        if getattr(args, "test_shards", 0):
            raise UserError(
                f"--test-shards {args.test_shards}: got it without --shard-bytes, which it goes with"
            )
        made = work.prepare(work.options(**options))
    if team.rank != 0 and team.connected:
        return EXIT_OK
    if made is None:
        print(f"{args.out} is up to date")
        return EXIT_OK
    reports, best = made if isinstance(made, tuple) else (made, {})  # synthetic knows what can be reached
    for line in [*reports, *constant_labels(reports)]:
        print(line)
    if getattr(args, "preset", None):
        print(criteo_syn.PRESETS[args.preset])
    if best:
        print(f"best possible on test: AUC {best['bayes_auc']:.5f}, logloss {best['bayes_logloss']:.5f}")
    return EXIT_OK
