"""Measures what a batch costs ranks beyond its rows and bytes, where there are many tables and servers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from .measure import Result

SUMMARY = "a batch's cost beyond rows and bytes, with many tables and servers"
EXAMPLES = "example: persia-hpc bench scale --core 1"
CASES = ((26, 64, 2048), (300, 64, 512), (8, 1, 2048))  # tables, servers, ids of each in a batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares no options but those that all parts have."""


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Measures a server's record in each case."""
    from .scale_server import measure_server  # loads MPI, which `bench --help` needn't

    for tables, servers, ids in CASES:
        yield measure_server(tables, servers, options.repeats, ids=ids)
