"""The Persia paper's experiments, one command each, from the repository's root:

    python -m benchmarks.paper accuracy --sets adult criteo movielens --data DIR
    python -m benchmarks.paper staleness --sets criteo --data DIR
    python -m benchmarks.paper throughput
    python -m benchmarks.paper capacity

Each prints a table and leaves it in --out (Markdown), with all figures (JSON) and a plot if matplotlib is
there. The fifth, against other systems: `make bench-peers && persia-hpc bench train`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from types import ModuleType

from benchmarks.paper import capacity, modes, throughput
from benchmarks.paper.report import save

EXPERIMENTS: dict[str, ModuleType] = {
    "accuracy": modes,
    "staleness": modes,
    "throughput": throughput,
    "capacity": capacity,
}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=raw
    )
    commands = parser.add_subparsers(dest="experiment", required=True)
    for name, module in EXPERIMENTS.items():
        command = commands.add_parser(name, description=module.__doc__, formatter_class=raw)
        command.add_argument("--out", type=Path, default=Path("build/paper"))
        module.add_arguments(command)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report = EXPERIMENTS[options.experiment].run(options, Path(scratch))
    print(report.text)
    save(report, options.out / options.experiment)


if __name__ == "__main__":
    main()
