"""Preprocessing Criteo's layout from uncompressed TSV in the page cache, beside TorchRec's own in turns.

    make bench-peers        # once, for TorchRec; without it only ours is measured
    python benchmarks/preprocessing.py --input criteo_137k.tsv.xz

The input is `--input` repeated `--copies` times; for TorchRec, which takes minutes where ours takes seconds
and 1.5 kB of memory a row, `--peer-copies` times. All cases run in turns, `--repeats` rounds. Printed are
rows/s of the whole command, start-up included: the median, in brackets the least and the most. The files
differ: ours are compressed, with checksums, and synced to disk; TorchRec's are plain arrays.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from persia_hpc.preprocess.lines import num_newlines, whole_lines

ROOT = Path(__file__).parents[1]
PEER = ROOT / "build" / "torchrec-venv"
MIN_COUNT = "3"  # TorchRec's default


@dataclass(frozen=True)
class Case:
    """A command that preprocesses `num_rows` rows into the folder that is its last argument."""

    name: str
    command: tuple[str, ...]
    num_rows: int
    rival: str | None = None  # of TorchRec, for the ratio


def repeat(source: Path, target: Path, copies: int) -> int:
    """The source's lines `copies` times; how many lines that are."""
    lines = 0
    with target.open("wb") as file:
        for _ in range(copies):
            for text in whole_lines(source):
                file.write(text)
                lines += num_newlines(text)
    return lines


def ours(text: Path, num_rows: int) -> list[Case]:
    """One process and two ranks, without and with a second pass over the ids."""
    program = [sys.executable, "-m", "mpi4py", "-m", "persia_hpc.cli"]
    arguments = ["preprocess", "criteo", "--input", str(text)]
    shard_bytes = str(-(-text.stat().st_size // 8))
    one = (*program[:1], *program[3:], *arguments, "--train-fraction", "1")
    two = ("mpiexec", "-n", "2", *program, *arguments, "--shard-bytes", shard_bytes)
    rare = ("--min-count", MIN_COUNT)
    return [
        Case("persia-hpc, 1 process", (*one, "--out"), num_rows, "TorchRec, 1 process"),
        Case("persia-hpc, 2 ranks", (*two, "--out"), num_rows, "TorchRec, 2 processes"),
        Case("persia-hpc, 1 process, rare ids", (*one, *rare, "--out"), num_rows, "TorchRec, 2, vocabulary"),
        Case("persia-hpc, 2 ranks, rare ids", (*two, *rare, "--out"), num_rows, "TorchRec, 2, vocabulary"),
    ]


def peers(whole: Path, halves: list[Path], num_rows: int) -> list[Case]:
    """One file, two files at a time, and those two with the vocabulary."""
    program = (str(PEER / "bin" / "python"), str(ROOT / "benchmarks" / "peers" / "torchrec_criteo.py"))
    both = (*program, *map(str, halves))
    return [
        Case("TorchRec, 1 process", (*program, str(whole), "--out"), num_rows),
        Case("TorchRec, 2 processes", (*both, "--out"), num_rows),
        Case("TorchRec, 2, vocabulary", (*both, "--vocabulary", MIN_COUNT, "--out"), num_rows),
    ]


def measure(case: Case, out: Path) -> float:
    """Rows a second; the command's output is removed."""
    environment = dict(os.environ)
    if "mpiexec" in case.command[0]:  # one thread a rank
        environment |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run([*case.command, str(out)], capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - start
    shutil.rmtree(out, ignore_errors=True)
    if done.returncode:
        raise SystemExit(f"{case.name} failed:\n{done.stderr}")
    return case.num_rows / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="a file of Criteo's layout")
    parser.add_argument("--copies", type=int, default=32)
    parser.add_argument("--peer-copies", type=int, default=4, help="an even number")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for inputs and outputs (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        num_rows = repeat(options.input, folder / "big.tsv", options.copies)
        cases = ours(folder / "big.tsv", num_rows)
        print(f"{num_rows:,} rows, {(folder / 'big.tsv').stat().st_size / 1e9:.2f} GB", flush=True)
        if (PEER / "done").exists():
            whole, halves = folder / "whole.tsv", [folder / "half0.tsv", folder / "half1.tsv"]
            peer_rows = repeat(options.input, whole, options.peer_copies)
            for half in halves:
                repeat(options.input, half, options.peer_copies // 2)
            cases += peers(whole, halves, peer_rows)
            print(f"TorchRec: {peer_rows:,} rows", flush=True)
        else:
            print("no TorchRec: make bench-peers", flush=True)
        rates: dict[str, list[float]] = {case.name: [] for case in cases}
        for repeat_number in range(options.repeats):
            for case in cases:
                rates[case.name].append(measure(case, folder / "out"))
            print(f"round {repeat_number + 1} of {options.repeats} done", file=sys.stderr, flush=True)
    print(f"| {'command':<32} | rows/s (least to most) | times TorchRec |\n|---|---|---|")
    for case in cases:
        found = rates[case.name]
        middle = statistics.median(found)
        ratio = f"{middle / statistics.median(rates[case.rival]):.0f}" if rates.get(case.rival or "") else ""
        print(f"| {case.name:<32} | {middle:,.0f} ({min(found):,.0f} to {max(found):,.0f}) | {ratio} |")


if __name__ == "__main__":
    main()
