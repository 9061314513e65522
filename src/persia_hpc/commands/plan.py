"""persia-hpc plan: which roles a job needs on a cluster, what they hold, and how fast it would be."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from persia_hpc.config import load_config, parse_bytes, parse_set
from persia_hpc.cost_model.cluster import Cluster
from persia_hpc.errors import EXIT_OK, UserError

if TYPE_CHECKING:
    from persia_hpc.job.planner import Given

SUMMARY = "predict samples/s and memory of a job on a cluster, and which role to add next"
DESCRIPTION = """\
Predicts from measured constants how many samples per second a configuration would train on a cluster, which
stage bounds it, how busy all others are, what one rank more of each role would bring, and the memory and
network traffic of each node (docs/scaling.md). Reads the first samples of the data, and trains a few steps of
the model in this process for the time of its dense part; starts no job, writes nothing but what is asked for.
--measure takes half a minute on an idle machine, best one of the cluster's nodes."""
EXAMPLES = """\
examples:
  persia-hpc plan --measure node.toml
  persia-hpc plan train.toml --constants node.toml --cores 8
  persia-hpc plan train.toml --set ranks.trainers=4 --suggest
  persia-hpc plan train.toml --from runs/1
  persia-hpc plan train.toml --nodes 8 --gpus 8 --cores 96 --cpu-nodes 4 --cpu-cores 64 \\
      --link 12.5 --latency 3 --dense-rate 150000 --memory '480 GiB' --json plan.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="TOML file (docs/configuration.md)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replaces a key")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes (default: 1)")
    parser.add_argument("--cores", type=int, metavar="N", help="cores of a node (default: this machine's)")
    parser.add_argument(
        "--gpus", type=int, default=0, metavar="N", help="GPUs of a node; each trainer has one"
    )
    parser.add_argument(
        "--cpu-nodes", type=int, default=0, metavar="N", help="servers and workers there, trainers on --nodes"
    )
    parser.add_argument(
        "--cpu-cores", type=int, metavar="N", help="cores of each of these (default: --cores)"
    )
    parser.add_argument("--link", type=float, metavar="GB/S", help="of a node, in each direction")
    parser.add_argument("--latency", type=float, metavar="US", help="microseconds between two nodes")
    parser.add_argument("--memory", metavar="BYTES", help="of a node, for instance '480 GiB'")
    parser.add_argument("--cpu-memory", metavar="BYTES", help="of each of --cpu-nodes (default: --memory)")
    parser.add_argument(
        "--dense-rate",
        type=float,
        metavar="N",
        help="samples/s of a trainer alone, pooling included (default: timed here, without --gpus)",
    )
    parser.add_argument(
        "--allreduce-rate",
        type=float,
        metavar="GB/S",
        help="bytes that a trainer sends, by the time it takes (default: of ranks on one CPU node)",
    )
    parser.add_argument(
        "--unique-share", type=float, metavar="X", help="of a batch's ids (default: counted in the data)"
    )
    parser.add_argument(
        "--new-rows",
        type=float,
        default=0.0,
        metavar="X",
        help="share of new rows in pulls (default: 0)",
    )
    parser.add_argument("--constants", type=Path, metavar="FILE", help="made by --measure")
    parser.add_argument("--from", dest="from_run", type=Path, metavar="RUN", help="take phases from this run")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="measure constants, write them there")
    parser.add_argument("--suggest", action="store_true", help="add ranks one by one while that pays")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write it all as JSON")


def run(options: argparse.Namespace) -> int:
    """Prints the plan.

    Raises UserError for bad input, and for figures that are neither given nor measured.
    """
    if options.config is None and options.measure is None:
        raise UserError("no CONFIG: give a TOML file, or --measure FILE alone to measure this machine")
    if options.measure is not None and options.constants is not None:
        raise UserError("--measure and --constants exclude each other: one makes what the other reads")
    for flag, path in (("--measure", options.measure), ("--json", options.json)):
        if path is not None:
            _check_target(flag, path)
    # All that can be wrong is found before the half minute that measuring takes.
    config = None if options.config is None else load_config(options.config, parse_set(options.set))
    cluster, given = _cluster(options), _given(options)
    given.check(cluster.gpus)
    if config is not None:
        cluster.place(config.ranks, config.ranks.counts(cluster.nodes))
    if options.measure is not None:
        _measure(options.measure)
    if config is None:
        return EXIT_OK
    from persia_hpc.job.planner import make_report

    report = make_report(config, cluster, given, suggest=options.suggest)
    print("\n".join(report.lines()))
    if options.json is not None:
        _write("--json", options.json, json.dumps(report.as_dict(), indent=2) + "\n")
    return EXIT_OK


def _check_target(flag: str, path: Path) -> None:
    """UserError unless a file can be written there."""
    if not path.resolve().parent.is_dir():
        raise UserError(f"{flag} {path}: there is no directory {path.parent}; make it or name another")
    if path.is_dir():
        raise UserError(f"{flag} {path}: got a directory, expected the name of a file to write")
    if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
        raise UserError(f"{flag} {path}: no permission to write there; name a file elsewhere")


def _write(flag: str, path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise UserError(f"{flag} {path} can't be written: {error.strerror}; name a file elsewhere") from None


def _measure(path: Path) -> None:
    from persia_hpc.bench.constants import measure_constants
    from persia_hpc.cost_model.constants import constants_text

    constants = measure_constants(lambda text: print(f"measuring: {text}", file=sys.stderr, flush=True))
    _write("--measure", path, constants_text(constants))


def _given(options: argparse.Namespace) -> Given:
    from persia_hpc.job.planner import Given

    return Given(
        constants=options.constants or options.measure,
        run=options.from_run,
        dense_rate=options.dense_rate,
        allreduce_rate=None if options.allreduce_rate is None else options.allreduce_rate * 1e9,
        unique_share=options.unique_share,
        new_rows=options.new_rows,
    )


def _cluster(options: argparse.Namespace) -> Cluster:
    from persia_hpc.bench.measure import available_cores

    cores = len(available_cores()) if options.cores is None else options.cores
    memory: dict[str, int | None] = {}
    for flag in ("memory", "cpu_memory"):
        text = getattr(options, flag)
        name = f"--{flag.replace('_', '-')}"
        try:
            memory[flag] = None if text is None else parse_bytes(text)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
        if memory[flag] == 0:
            raise UserError(f"{name} {text}: expected more than 0 bytes, such as '480 GiB'")
    for name, value in (("--cpu-cores", options.cpu_cores), ("--cpu-memory", options.cpu_memory)):
        if value is not None and not options.cpu_nodes:
            raise UserError(f"{name} {value}, but no --cpu-nodes: it is of these; give how many there are")
    cluster = Cluster(
        nodes=options.nodes,
        cores=cores,
        gpus=options.gpus,
        cpu_nodes=options.cpu_nodes,
        cpu_cores=cores if options.cpu_cores is None else options.cpu_cores,
        link_bytes=None if options.link is None else options.link * 1e9,
        latency_seconds=None if options.latency is None else options.latency * 1e-6,
        memory_bytes=memory["memory"],
        cpu_memory_bytes=memory["cpu_memory"] or memory["memory"],
    )
    cluster.check()
    return cluster
