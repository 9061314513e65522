"""persia-hpc bench: how fast each part is on this machine, beside its limit."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from persia_hpc.bench import PARTS
from persia_hpc.bench.measure import machine, pinned, table_lines
from persia_hpc.errors import EXIT_OK

SUMMARY = "how fast each part is on this machine, beside its limit"
DESCRIPTION = """\
Measures one part of the system and, in turns with it, what the machine could do at best. Median and half the
interquartile range of the repetitions; in brackets the share of the limit that is reached."""
EXAMPLES = """\
examples:
  persia-hpc bench table                        pulls and pushes against bare prefetched memory access
  persia-hpc bench train --json train.json      end to end, with the time each role spends on what"""
ALIASES = {"read": ("feed",)}  # what a part was called before


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parts = parser.add_subparsers(metavar="PART", required=True, dest="part")
    for name in PARTS:
        module = importlib.import_module(f"persia_hpc.bench.{name}")
        part = parts.add_parser(
            name,
            aliases=ALIASES.get(name, ()),
            help=module.SUMMARY,
            description=module.__doc__,
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        part.add_argument("--repeats", type=int, default=7, help="counted repetitions (default: 7)")
        part.add_argument("--core", type=int, default=None, help="the core to run on (default: any)")
        part.add_argument("--json", type=Path, default=None, help="also write the results to this file")
        module.add_arguments(part)
        part.set_defaults(bench_module=module)


def run(options: argparse.Namespace) -> int:
    """Prints a line per case as it is done."""
    results = []
    with pinned(options.core):
        for result in options.bench_module.measure(options):
            results.append(result)
            for line in table_lines([result]):
                print(line, flush=True)
    if options.json is not None:
        report = {
            "schema_version": 1,
            "part": options.part,
            "machine": machine(),
            "results": [result.as_dict() for result in results],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return EXIT_OK
