"""Checks an installation and machine, and says how to repair what isn't right."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from persia_hpc.errors import EXIT_FAILURE, EXIT_OK
from persia_hpc.printable import printable

from .disk_speed import FILE_BYTES, is_memory, measure_disk
from .doctor_gpu import check_torch
from .doctor_lines import BAD, GOOD, NOTE, Line, last_line, run_probe, version_of
from .doctor_machine import check_machine, check_run_dir
from .doctor_mpi import check_mpi
from .mpiexec import ELSEWHERE

SLOW_READS = 5_000  # a second: less than what any solid-state drive does

_HOROVOD_PROBE = """
import json, re, os
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
import horovod.torch as hvd
import torch
maps = open("/proc/self/maps").read()
found = {os.path.realpath(p) for p in re.findall(r"(/\\S*/libmpi(?:ch)?\\.so[.\\d]*)", maps)}
print("PROBE" + json.dumps({"mpi": bool(hvd.mpi_built()), "libraries": sorted(found),
      "nccl": bool(hvd.nccl_built()), "gpus": torch.cuda.device_count()}))
"""
_BUILD_HOROVOD = (
    'train.reducer = "mpi" does without it; tools/build_horovod.sh of the source tree builds it '
    "(the mpicxx of the same MPI first on PATH)"
)


@dataclass(frozen=True)
class Wanted:
    """Holds what is asked of `doctor`.

    trainers, reducer: of the jobs here; several trainers need Horovod, if it is the reducer. disks:
    directories for rows beyond the memory of tables, which are measured. run_dir: where runs are to be.
    shared_bytes, ranks: what the rings of a configuration want on a node, and how many ranks it has there.
    srun: also try that, with this --mpi; None: don't.
    """

    trainers: int = 1
    reducer: str = "horovod"
    disks: Sequence[str] = ()
    run_dir: str = "runs"
    shared_bytes: int | None = None
    ranks: int = 0
    srun: str | None = None


def examine(wanted: Wanted) -> Iterator[Line]:
    """Yields a line for each check; training can't work here if one of them is BAD."""
    yield from _python()
    yield from _native()
    yield from _data()
    yield from check_mpi(wanted.srun)
    yield from check_torch(wanted.reducer)
    yield from _horovod(wanted.trainers if wanted.reducer == "horovod" else 1)
    yield from check_machine(wanted.shared_bytes, wanted.ranks)
    yield from check_run_dir(Path(wanted.run_dir))
    for folder in wanted.disks:
        yield from _disk(Path(folder))


def show(lines: Iterable[Line]) -> int:
    """Prints lines as they come; returns exit code 1 if one is BAD."""
    worst = EXIT_OK
    for level, what, found, fix in lines:
        text = f"{level:<5} {what:<18} {printable(found)}" + (f"\n{'':<24} -> {fix}" if fix else "")
        print(text, flush=True)
        worst = EXIT_FAILURE if level == BAD else worst
    return worst


def show_json(lines: Iterable[Line]) -> int:
    """Prints lines as JSON; returns exit code 1 if one is BAD."""
    checks = [line._asdict() for line in lines]
    good = all(check["level"] != BAD for check in checks)
    print(json.dumps({"schema_version": 1, "ok": good, "checks": checks}, indent=1), flush=True)
    return EXIT_OK if good else EXIT_FAILURE


def _python() -> list[Line]:
    good = sys.version_info >= (3, 10)
    lines = [
        Line(
            GOOD if good else BAD,
            "python",
            f"{platform.python_version()} ({sys.executable})",
            "" if good else "3.10 or newer is needed",
        )
    ]
    version = version_of("persia-hpc")
    if version is None:
        lines.append(Line(NOTE, "persia-hpc", "runs from its source, not installed", "pip install ."))
    else:
        lines.append(Line(GOOD, "persia-hpc", version))
    return lines


def _native() -> list[Line]:
    code, _, text = run_probe(
        [sys.executable, "-c", ELSEWHERE + "import persia_hpc._native as n; print('PROBE1')"]
    )
    if code == 0:
        return [Line(GOOD, "native extension", "loads")]
    found, how = last_line(text), "pip install . (needs a C++17 compiler and CMake 3.20)"
    if code == -signal.SIGILL:
        found += ": this processor lacks instructions that it was built for (by default AVX2)"
        how = f"CMAKE_ARGS=-DPERSIA_HPC_ARCH=native {how}"
    elif importlib.util.find_spec("persia_hpc._native") is None:
        found = "not built"
    return [Line(BAD, "native extension", found, f"in the source tree: {how}")]


def _data() -> list[Line]:
    lines: list[Line] = []
    for package, without in (
        ("hdf5plugin", "data is written without LZ4, and files that have it can't be read"),
        ("polars", "no `inspect`, no `checkpoint export`, no Parquet, no `preprocess` but of synthetic data"),
    ):
        found = version_of(package) if importlib.util.find_spec(package) is not None else None
        lines.append(
            Line(NOTE, package, f"not installed: {without}", f"pip install {package}")
            if found is None
            else Line(GOOD, package, found)
        )
    return lines


def _horovod(trainers: int) -> list[Line]:
    if importlib.util.find_spec("horovod") is None:
        if trainers == 1:
            return [
                Line(
                    NOTE,
                    "horovod",
                    "not installed: more than one trainer needs it by default",
                    _BUILD_HOROVOD,
                )
            ]
        return [Line(BAD, "horovod", f"not installed; {trainers} trainers need it", _BUILD_HOROVOD)]
    _, probe, text = run_probe([sys.executable, "-c", ELSEWHERE + _HOROVOD_PROBE])
    if probe is None:
        return [Line(BAD, "horovod", f"can't be imported: {last_line(text)}", _BUILD_HOROVOD)]
    if not probe["mpi"]:
        return [Line(BAD, "horovod", "built without MPI", _BUILD_HOROVOD)]
    if len(probe["libraries"]) > 1:
        found = f"not the MPI of mpi4py: {', '.join(probe['libraries'])} are both loaded"
        return [Line(BAD, "horovod", found, _BUILD_HOROVOD)]
    found = f"{version_of('horovod')}, with MPI, the same library as mpi4py"
    if probe["gpus"] and not probe["nccl"]:
        return [
            Line(NOTE, "horovod", f"{found}, without NCCL: GPUs' gradients take host memory", _BUILD_HOROVOD)
        ]
    return [Line(GOOD, "horovod", found + (", and with NCCL" if probe["nccl"] else ""))]


def _disk(folder: Path) -> list[Line]:
    what = f"disk {folder}"
    fix = "name a directory on a local drive that you may write to"
    if not folder.is_dir():
        return [Line(BAD, what, "there is no such directory", fix)]
    if is_memory(folder):
        return [Line(NOTE, what, "is memory (tmpfs): rows there take what they should spare", fix)]
    free = shutil.disk_usage(folder).free
    if free < 2 * FILE_BYTES:
        return [Line(NOTE, what, f"not measured: only {free / 2**20:.0f} MiB are free", "make room")]
    try:
        speed = measure_disk(folder)
    except OSError as error:
        return [Line(BAD, what, f"can't be written or read: {error.strerror or error}", fix)]
    rates = " / ".join(f"{rate:,.0f}" for rate in speed.reads.values())
    found = f"random reads of 4 KiB: {rates} a second with {' / '.join(map(str, speed.reads))} at a time"
    found += f", fsync {speed.fsync_seconds * 1e3:.2f} ms, {free / 2**30:,.0f} GiB free"
    if not speed.direct:
        found += "; the file system reads only through memory, so these may be its own"
        return [Line(NOTE, what, found, fix)]
    if max(speed.reads.values()) < SLOW_READS:
        return [
            Line(
                NOTE, what, f"{found}: slow", "rows that come back from there will be waited for; see `plan`"
            )
        ]
    return [Line(GOOD, what, found)]
