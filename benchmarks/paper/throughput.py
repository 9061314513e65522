"""How fast the modes are where the network is slow (the paper's hybrid: 2.6 times sync at scale).

Simulated in two ways, as one small machine can't compute for many trainers: the dense step is a sleep, and
nodes are network namespaces of this machine whose links are limited to some rate each way. Node 0 holds the
server, every other node a trainer and its worker, so all rows cross links; rows and AllReduce share a link
fairly. The server's link is unlimited, or has the rate --server-link. Ranks, MPI over TCP, Horovod, tables
and gradients are real. Weak scaling: every trainer has its own batch, so a step's bytes on a link stay
the same. Needs root, tc (iproute2), and MPICH or Open MPI 5.

What to expect: sync pulls, trains and pushes one after the other, so a step takes about the sum; hybrid and
async overlap them, so it takes the longest. In fresh gradients are waited for, most rows aren't. "link /
dense" is how long a link is busy each way in a step over the dense part's time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.paper.report import Report, markdown
from persia_hpc.config import load_config, to_toml
from persia_hpc.launch.registry import read_summary
from tests.support.mpi import environment
from tests.support.netns import Part, virtual_nodes

DIM, FEATURES, BATCH = 64, 8, 256  # of a trainer
MODES = {mode: {"mode": mode} for mode in ("sync", "fresh", "hybrid", "async")}
PAPER = "paper, 64 A100, 100 T parameters: hybrid 2.6 × sync, async 2.9 ×"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trainers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--links", type=float, nargs="+", default=[1000, 40, 20], help="Mbit/s")
    parser.add_argument("--server-link", type=float, help="Mbit/s of the server's own link")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--lookahead", type=int, default=2, help="of fresh")
    parser.add_argument("--reducer", default="horovod", choices=["horovod", "mpi"])
    parser.add_argument("--dense-wire", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--sleep", type=float, default=0.2, help="seconds of a dense step")
    parser.add_argument("--ahead", type=float, default=0.0, help="share of it that needs no rows")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=1)


def run(options: argparse.Namespace, scratch: Path) -> Report:
    data = scratch / "data"
    rows = BATCH * max(options.trainers) * options.steps
    shape = ["--features", str(FEATURES), "--vocabulary", "100000", "--exponent", "1.05", "--dense", "4"]
    command = ["preprocess", "synthetic", "--out", str(data), "--rows", str(rows), "--test-rows", "0", *shape]
    subprocess.run([sys.executable, "-m", "persia_hpc.cli", *command], check=True, stdout=subprocess.DEVNULL)
    figures: list[dict[str, Any]] = []
    for link in options.links:
        for trainers in options.trainers:
            for repeat in range(options.repeats):
                for mode in options.modes:
                    name = f"{link:g}-{trainers}-{mode}-{repeat}"
                    settings = _settings(options, trainers, data, MODES[mode])
                    summary = job(scratch, name, settings, link, options.server_link)
                    figures.append(_figures(summary, link, trainers, mode, options))
                    print(name, f"{figures[-1]['samples_per_second']:,.0f} samples/s", file=sys.stderr)
    return Report(_table(figures), figures)


def _settings(
    options: argparse.Namespace, trainers: int, data: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    bound = 0 if settings["mode"] in ("sync", "fresh") else 4
    if settings["mode"] == "fresh":
        settings = {**settings, "lookahead": options.lookahead}
    return {
        **settings,
        "staleness_bound": bound,
        "ranks": {"parameter_servers": 1, "embedding_workers": trainers, "trainers": trainers},
        "data": {"train": str(data / "train-000.h5"), "batch_size": BATCH * trainers},
        "tables": {"default": {"dim": DIM, "capacity": "64 MiB"}},
        "model": {
            "class": "benchmarks.paper.sleeping:Sleeping",
            "seconds": options.sleep,
            "ahead": options.ahead,
        },
        "train": {
            "max_steps": options.steps,
            "evaluate_at_end": False,
            "save": False,
            "reducer": options.reducer,
            "dense_wire": options.dense_wire,
        },
    }


def job(
    scratch: Path, name: str, settings: dict[str, Any], link: float, server_link: float | None
) -> dict[str, Any]:
    """Trains on nodes whose links have the rate `link`, but for the server's; the summary."""
    trainers = settings["ranks"]["trainers"]
    config, run_dir = scratch / f"{name}.toml", scratch / name
    config.write_text(to_toml(load_config(settings).resolved()))
    program = ["-m", "mpi4py", "-m", "persia_hpc.cli", "train", str(config)]
    program += ["--launcher", "none", "--quiet", "--run-dir", str(run_dir)]
    with virtual_nodes(1 + trainers, shared=[scratch]) as nodes:
        for node in range(1, 1 + trainers):
            nodes.limit(node, link, hub=0)
        if server_link is not None:
            nodes.limit(0, server_link, hub=0)
        # A trainer's Horovod thread looks for work in cycles; at its default of 1 ms eight of them would keep
        # two cores busy.
        env = environment(UCX_NET_DEVICES="eth0", HOROVOD_CYCLE_TIME="5")
        launch = nodes.command(
            Part([0], 1, program, {"PERSIA_HPC_ROLES": "parameter_servers"}),
            Part(range(1, 1 + trainers), 2, program, {"PERSIA_HPC_ROLES": "embedding_workers,trainers"}),
        )
        done = subprocess.run(launch, env=env, text=True, capture_output=True, timeout=600)
    summary = read_summary(run_dir)
    if done.returncode or summary is None:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return summary


def _figures(
    summary: dict[str, Any], link: float, trainers: int, mode: str, options: argparse.Namespace
) -> dict[str, Any]:
    rows = summary["embedding"]["pulled_rows"] / summary["steps"] / trainers
    return {
        "link": link,
        "trainers": trainers,
        "mode": mode,
        "samples_per_second": summary["steady"]["samples_per_second"],
        "step_seconds": summary["steady"]["seconds"] / summary["steady"]["steps"],
        "row_bytes_per_step_and_trainer": rows * DIM * 4,
        "sleep_seconds": options.sleep,
        "phase_seconds": summary["phase_seconds"]["trainer"],
    }


def _table(figures: list[dict[str, Any]]) -> str:
    """A row a link and number of trainers."""
    lines = []
    modes = list(dict.fromkeys(f["mode"] for f in figures))
    cases = list(dict.fromkeys((f["link"], f["trainers"]) for f in figures))
    base: dict[tuple[float, str], float] = {}
    for link, trainers in cases:
        here = [f for f in figures if (f["link"], f["trainers"]) == (link, trainers)]
        rate = {
            mode: sum(f["samples_per_second"] for f in here if f["mode"] == mode)
            / sum(f["mode"] == mode for f in here)
            for mode in modes
        }
        busy = here[0]["row_bytes_per_step_and_trainer"] / (link * 1e6 / 8) / here[0]["sleep_seconds"]
        limit = trainers * BATCH / here[0]["sleep_seconds"]
        cells = [f"{link:g} Mbit/s", f"{busy:.2f}", str(trainers)]
        for mode in modes:
            first = base.setdefault((link, mode), rate[mode] / trainers)
            cells.append(f"{rate[mode]:,.0f} ({rate[mode] / trainers / first:.2f})")
        cells += [f"{rate[mode] / rate['sync']:.2f}" for mode in modes if mode != "sync" and "sync" in modes]
        lines.append([*cells, *(f"{rate[mode] / limit:.0%}" for mode in modes)])
    head = ["link", "link / dense", "trainers"]
    head += [f"{mode}, samples/s (of linear)" for mode in modes]
    head += [f"{mode} / sync" for mode in modes if mode != "sync" and "sync" in modes]
    head += [f"{mode} of dense-only" for mode in modes]
    return markdown(head, lines) + f"\n\n{PAPER}"
