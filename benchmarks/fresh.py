"""`fresh` beside `sync` and `hybrid` on W0, in turns: samples/s, rows that are sent again, where time goes.

python -m benchmarks.fresh --data build/w0 --batches 2048 16384 --trainers 1 2
python -m benchmarks.fresh --data build/zipf --exponent 1.05 --modes fresh --lookahead 1 2 4   # bytes only
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.paper.report import markdown
from persia_hpc.bench.train_jobs import prepare_data, run_job, w0_settings


def arms(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The settings of each arm by name."""
    ahead = {f"fresh, lookahead {k}": {"mode": "fresh", "lookahead": k} for k in options.lookahead}
    modes: dict[str, dict[str, dict[str, Any]]] = {
        "sync": {"sync": {"mode": "sync"}},
        "hybrid": {"hybrid, bound 4": {"mode": "hybrid", "staleness_bound": 4}},
        "fresh": ahead,
    }
    return {name: arm for mode in options.modes for name, arm in modes[mode].items()}


def row(name: str, each: list[Mapping[str, Any]]) -> list[str]:
    """The cells of an arm: its median of samples/s, their range, shares of rows, milliseconds of a step."""
    rates = [s["steady"]["samples_per_second"] for s in each]
    last = each[-1]
    rows, steps = last["embedding"], last["this_run"]["steps"]
    pulled = max(1, rows["pulled_rows"])

    def milliseconds(role: str, phase: str) -> str:
        return f"{1e3 * last['phase_seconds'][role][phase]['mean'] / steps:.2f}"

    spans = [("trainer", "wait"), ("embedding_worker", "push"), ("parameter_server", "push")]
    spans += [("parameter_server", "patch"), ("embedding_worker", "patch"), ("parameter_server", "pull")]
    return [
        name,
        f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
        f"{rows['early_rows'] / pulled:.1%}",
        f"{rows['patched_rows'] / pulled:.1%}",
        *(milliseconds(*span) for span in spans),
        f"{1e9 * last['phase_seconds']['parameter_server']['patch']['mean'] / pulled:.1f}",
    ]


def tables(options: argparse.Namespace, scratch: Path) -> Iterator[str]:
    """A table for each batch size and number of trainers."""
    path = prepare_data(options.data, options.rows, options.exponent)
    head = ["mode", "samples/s", "early", "sent again"]
    head += ["trainer waits, ms a step", "worker: push", "server: push", "patch", "worker: patch"]
    head += ["server: pull", "patch, ns a pulled row"]
    for batch in options.batches:
        for trainers in options.trainers:
            found: dict[str, list[Mapping[str, Any]]] = {}
            for _ in range(options.repeats):
                for name, arm in arms(options).items():
                    settings = {**w0_settings(path, batch, options.samples, trainers), **arm}
                    settings["train"] = {**settings["train"], "reducer": "mpi"}
                    summary = run_job(scratch, settings)
                    found.setdefault(name, []).append(summary)
                    rate = summary["steady"]["samples_per_second"]
                    print(f"{batch} 1+1+{trainers} {name}: {rate:,.0f} samples/s", file=sys.stderr)
            rows = [row(name, each) for name, each in found.items()]
            yield f"batch {batch}, 1+1+{trainers}:\n\n{markdown(head, rows)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("build/w0"), help="folder of the samples")
    parser.add_argument("--rows", type=int, default=1 << 19, help="of the data")
    parser.add_argument("--exponent", type=float, default=1.2, help="of ids' Zipf law")
    parser.add_argument("--samples", type=int, default=1_000_000, help="of a run; its second half counts")
    parser.add_argument("--batches", type=int, nargs="+", default=[2048])
    parser.add_argument("--trainers", type=int, nargs="+", default=[1])
    parser.add_argument("--modes", nargs="+", default=["sync", "fresh", "hybrid"])
    parser.add_argument("--lookahead", type=int, nargs="+", default=[2])
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for table in tables(options, Path(scratch)):
            print(table, flush=True)


if __name__ == "__main__":
    main()
