"""persia-hpc checkpoint: what checkpoints hold, whether they are sound, what differs, and as Parquet."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from persia_hpc.errors import EXIT_FAILURE, EXIT_OK, DataError, UserError
from persia_hpc.printable import LINES, printable

SUMMARY = "list, verify, compare and export checkpoints"
DESCRIPTION = """\
Looks into checkpoints, incremental ones together with their base. One process, no MPI; memory doesn't
grow with the tables. A path is a checkpoint (runs/1/latest, runs/1/step-00000100) or a run directory."""
EXAMPLES = """\
examples:
  persia-hpc checkpoint ls runs/1
  persia-hpc checkpoint ls runs/1/latest --json
  persia-hpc checkpoint verify runs/1 runs/2/latest
  persia-hpc checkpoint diff runs/1/step-00000100 runs/2/step-00000100
  persia-hpc checkpoint export runs/1 --table item --ids --out item.parquet
  persia-hpc checkpoint export runs/1 --table item user --out tables/
  persia-hpc checkpoint export runs/1 --out tables/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the actions and their options."""
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)

    ls = actions.add_parser("ls", help="the checkpoints of a run, or the tables of one")
    ls.add_argument("path", metavar="PATH", type=Path, help="run directory or checkpoint")
    ls.add_argument("--json", action="store_true", help="as JSON, with the tables of every checkpoint")
    ls.set_defaults(act=_ls)

    verify = actions.add_parser("verify", help="read everything and say what is damaged (exit code 3)")
    verify.add_argument("paths", metavar="PATH", type=Path, nargs="+", help="of a run: all its checkpoints")
    verify.set_defaults(act=_verify)

    diff = actions.add_parser("diff", help="what differs between two checkpoints (exit code 1 if anything)")
    for name in ("a", "b"):
        diff.add_argument(name, metavar=name.upper(), type=Path, help="checkpoint; of a run: best or latest")
    diff.add_argument(
        "--limit", metavar="N", type=int, default=10, help="rows to name in each table (default: 10)"
    )
    diff.set_defaults(act=_diff)

    export = actions.add_parser("export", help="write tables as Parquet")
    export.add_argument("path", metavar="PATH", type=Path, help="checkpoint; of a run: best or latest")
    export.add_argument("--table", metavar="NAME", nargs="+", help="tables to write (default: all)")
    export.add_argument(
        "--out", metavar="OUT", type=Path, required=True, help="a .parquet file; for several tables a folder"
    )
    export.add_argument("--ids", action="store_true", help="a column with the ids as in the dataset")
    export.add_argument("--state", action="store_true", help="columns with the optimizer's state")
    export.set_defaults(act=_export)


def run(options: argparse.Namespace) -> int:
    """Does what was asked; UserError for bad input, DataError for damage."""
    return int(options.act(options))


def _ls(options: argparse.Namespace) -> int:
    from persia_hpc.checkpoint import listing

    if listing.is_run(options.path):
        listed = listing.list_run(options.path)
        text = listing.run_text(listed)
    else:
        listed = listing.describe(options.path.resolve())
        text = listing.checkpoint_text(listed)
    print(json.dumps(listed, indent=1) if options.json else printable(text, LINES))
    return EXIT_OK


def _verify(options: argparse.Namespace) -> int:
    from persia_hpc.checkpoint.listing import checkpoints_of, is_run
    from persia_hpc.checkpoint.verify import Verification, verify
    from persia_hpc.trainer.dense.saved import dense_problem

    runs = [is_run(path) for path in options.paths]  # says what isn't there before hours of reading
    known: dict[Path, Verification] = {}
    damaged: list[str] = []
    empty: list[str] = []
    count = 0
    for path, of_run in zip(options.paths, runs, strict=True):
        if of_run and len(options.paths) > 1:
            print(f"{printable(path)}:")
        found = checkpoints_of(path) if of_run else [path]
        empty += [] if found else [str(path)]
        for directory in found:
            report = verify(directory, dense_problem, known)
            print(printable(report.text, LINES), flush=True)
            count += 1
            damaged += [str(directory)] if report.problems else []
    if damaged:
        raise DataError(f"{len(damaged)} of {count} damaged: {', '.join(damaged)}; use one that is ok")
    if empty:
        raise DataError(
            f"{', '.join(empty)}: no whole checkpoint, only what a job left half-written; start the run anew"
        )
    return EXIT_OK


def _diff(options: argparse.Namespace) -> int:
    if options.limit < 0:
        raise UserError(f"--limit {options.limit}: expected 0 or more")
    from persia_hpc.checkpoint.choose import find_checkpoint, say_choice
    from persia_hpc.checkpoint.diff import differences
    from persia_hpc.checkpoint.merged import CheckpointReader
    from persia_hpc.trainer.dense.saved import dense_differences

    paths = [find_checkpoint(path) for path in (options.a, options.b)]
    for path in (options.a, options.b):
        say_choice(path)
    with CheckpointReader(paths[0]) as a, CheckpointReader(paths[1]) as b:
        same = True
        for text in differences(a, b, dense_differences, options.limit):
            if same:
                print(printable(f"A {paths[0]}\nB {paths[1]}", LINES))
            same = False
            print(printable(text, LINES), flush=True)
    if same:
        print("no difference")
    return EXIT_OK if same else EXIT_FAILURE


def _export(options: argparse.Namespace) -> int:
    is_file = options.out.suffix == ".parquet"
    if not is_file and (options.out.suffix or options.out.is_file()) and not options.out.is_dir():
        raise UserError(f"--out {options.out}: expected a name that ends in .parquet, or a folder")
    from persia_hpc.checkpoint.choose import find_checkpoint, say_choice
    from persia_hpc.checkpoint.export import export_table
    from persia_hpc.checkpoint.merged import CheckpointReader
    from persia_hpc.checkpoint.tables import file_name

    path = find_checkpoint(options.path)
    say_choice(options.path)
    with CheckpointReader(path) as checkpoint:
        names = list(dict.fromkeys(options.table or checkpoint.tables))
        if is_file and len(names) > 1:
            raise UserError(
                f"--out {options.out}: got {len(names)} tables for one file; name a folder, or one table"
            )
        unknown = [name for name in names if name not in checkpoint.tables]
        if unknown:
            raise UserError(
                f"there is no table {unknown[0]!r}; this checkpoint has: {', '.join(checkpoint.tables)}"
            )
        for name in names:
            out = options.out if is_file else options.out / f"{file_name(name)}.parquet"
            done = export_table(checkpoint, name, out, ids=options.ids, state=options.state)
            print(printable(f"{done.rows} rows of table {name} written to {out}"))
            for note in done.notes:
                print(f"  {printable(note)}")
            if done.expired:
                print(f"  {done.expired} rows left out: past their time to live")
    return EXIT_OK
