"""Measures what a batch costs ranks beyond its rows and bytes, where there are many tables and servers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from .measure import Result

SUMMARY = "a batch's cost beyond rows and bytes, with many tables and servers"
EXAMPLES = "example: persia-hpc bench scale --core 1"
# tables, servers, ids of each table in a batch
CASES = ((8, 1, 2048), (26, 1, 2048), (26, 8, 2048), (26, 64, 2048), (300, 1, 512), (300, 64, 512))
# and workers; a server's rows must fit into memory
SERVER_CASES = ((8, 1, 2048, 1), (26, 64, 2048, 1), (300, 64, 512, 1), (26, 30, 512, 64))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares no options but those that all parts have."""


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Measures a worker's batch in each case, and a server's record in some."""
    from .scale_server import measure_server  # both load MPI, which `bench --help` needn't
    from .scale_worker import measure_worker

    for tables, servers, ids in CASES:
        yield measure_worker(tables, servers, options.repeats, ids=ids)
    for tables, servers, ids, workers in SERVER_CASES:
        yield measure_server(tables, servers, options.repeats, ids=ids, workers=workers)
