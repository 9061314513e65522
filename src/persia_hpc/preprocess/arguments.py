"""Defines the arguments of sources whose samples have histories; cli.py has those of the others."""

from __future__ import annotations

import argparse
from pathlib import Path

SAME_IDS = "refuse data whose ids wouldn't mean the same as those of other data"


def add_number(
    parser: argparse.ArgumentParser, flag: str, kind: type[int] | type[float], default: float, meaning: str
) -> None:
    """Adds an option that takes a number, with its default in the help."""
    parser.add_argument(
        flag,
        type=kind,
        default=default,
        metavar="N" if kind is int else "X",
        help=f"{meaning} (default: {default})",
    )


def add_max_bad_lines(parser: argparse.ArgumentParser) -> None:
    """Adds the option that leaves bad lines out."""
    add_number(
        parser, "--max-bad-lines", int, 0, "leave out up to N lines that aren't of the layout, and say which"
    )


def add_encoding(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Adds the option that names the encoding of other data."""
    parser.add_argument(
        "--encoding",
        type=Path,
        metavar="DIR",
        help=f"{meaning}: a folder that preprocess made, or a run trained on it",
    )


def _add_shared(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--shards", int, 1, "training files; all ranks of an MPI job share the files")
    add_max_bad_lines(parser)
    add_encoding(parser, SAME_IDS)


def add_movielens(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `preprocess movielens`."""
    from .movielens import prepare as movielens

    defaults = movielens.MovieLensOptions(Path(), Path())
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="DIR",
        help="holds ratings.dat, users.dat and movies.dat (1M), or ratings.csv and movies.csv (20M, 25M)",
    )
    parser.add_argument(
        "--task",
        choices=movielens.TASKS,
        default=defaults.task,
        help="ctr: ratings of 3 left out, label rating > 3; all: label rating >= 4; next_item: the last "
        "movies of each user, and all movies in items.h5",
    )
    parser.add_argument(
        "--history",
        type=int,
        metavar="N",
        help="give each sample the user's last N ratings before it (default: none; all with next_item)",
    )
    add_number(
        parser, "--hold-out", int, defaults.hold_out, "with next_item: 1, test, or 2, validation and test"
    )
    parser.add_argument(
        "--fractions",
        type=float,
        nargs=3,
        default=defaults.fractions,
        metavar=("TRAIN", "VALID", "TEST"),
        help="parts of the split (default: 0.8 0.1 0.1)",
    )
    parser.add_argument(
        "--split",
        choices=movielens.SPLITS_BY,
        default=defaults.split,
        help="random (default); time: the earliest ratings for training; user: each user in one part only",
    )
    add_number(parser, "--seed", int, defaults.seed, "of the split and the order of rows")
    _add_shared(parser)


def add_amazon(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `preprocess amazon`."""
    from .amazon import prepare as amazon

    defaults = amazon.AmazonOptions(Path(), ())
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="reviews of 2014, 2018 or 2023 as JSON lines, or ratings only as CSV; plain or compressed",
    )
    parser.add_argument("--meta", type=Path, metavar="FILE", help="products, for their categories")
    parser.add_argument(
        "--task",
        choices=amazon.TASKS,
        default=defaults.task,
        help="next_item: the last products of each user, and all products in items.h5; ctr: each review with "
        "its history, and as often another product",
    )
    add_number(
        parser, "--min-count", int, defaults.min_count, "leave out users and products with fewer reviews"
    )
    parser.add_argument(
        "--history",
        type=int,
        metavar="N",
        help="the most earlier reviews that a sample has (default: all; 100 with ctr)",
    )
    add_number(parser, "--hold-out", int, defaults.hold_out, "1, test, or 2, validation and test")
    add_number(parser, "--seed", int, defaults.seed, "of the other products, with ctr")
    _add_shared(parser)


def add_kuairand(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `preprocess kuairand`."""
    from . import kuairand

    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"holds {', '.join(kuairand.LOGS)} and others",
    )
    defaults = kuairand.KuaiRandOptions(Path(), Path())
    add_number(parser, "--history", int, defaults.history, "the most earlier videos that a sample has")
    _add_shared(parser)


def add_yambda(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `preprocess yambda`."""
    from .yambda import prepare as yambda

    defaults = yambda.YambdaOptions(Path(), Path())
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="multi_event.parquet, flat or sequential"
    )
    parser.add_argument(
        "--mappings", type=Path, metavar="DIR", help="holds the mappings of items to artists and albums"
    )
    parser.add_argument(
        "--windows",
        type=int,
        nargs=2,
        metavar=("FIRST", "TEST"),
        help="train on the windows from FIRST on, evaluate on TEST (default: 0 and the last one)",
    )
    add_number(parser, "--window-seconds", int, defaults.window_seconds, "length of a window")
    parser.add_argument(
        "--until", type=int, metavar="SECONDS", help="leave out later events (dlrm_v4: 25911800)"
    )
    add_number(parser, "--history", int, defaults.history, "most events in a history")
    parser.add_argument(
        "--min-history",
        type=int,
        metavar="N",
        help="events of any type that a listen needs before it to be a sample (default: as --history)",
    )
    parser.add_argument(
        "--selection",
        choices=("pools", "last"),
        default=defaults.selection,
        help="pools: the latest listens, likes and skips, a third each (default); last: the latest of all",
    )
    add_number(parser, "--scan", int, defaults.scan, "events before a listen that are looked at")
    add_number(parser, "--stride", int, defaults.stride, "make a sample of every N-th such listen of a user")
    add_number(parser, "--piece-rows", int, defaults.piece_rows, "events that a rank holds at a time")
    add_number(parser, "--max-bad-lines", int, 0, "refused: rows of Parquet are no lines")
    add_encoding(parser, SAME_IDS)
