"""Checks an installation and machine, and says how to repair what isn't right."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from persia_hpc.errors import EXIT_FAILURE, EXIT_OK, UserError

from .disk_speed import FILE_BYTES, is_memory, measure_disk
from .mpiexec import ELSEWHERE, MPI_PYTHON, find_launcher

GOOD, NOTE, BAD = "ok", "note", "BAD"
SLOW_READS = 5_000  # a second: less than what any solid-state drive does
Line = tuple[str, str, str, str]  # level, what, what was found, how to repair it

_MPI_PROBE = """
import json, re
from mpi4py import MPI
import numpy as np
world = MPI.COMM_WORLD
window = MPI.Win.Allocate(64, 1, comm=world)
unified = window.Get_attr(MPI.WIN_MODEL) == MPI.WIN_UNIFIED
window.Lock_all()
got = np.zeros(1, np.int64)
window.Put(np.array([world.rank + 41], np.int64), (world.rank + 1) % world.size)
window.Flush_all()
world.Barrier()
window.Get(got, world.rank)
window.Flush_all()
window.Unlock_all()
window.Free()
if world.rank == 0:
    print("PROBE" + json.dumps({
        "size": world.size, "unified": unified, "moved": int(got[0]) == 41 + world.size - 1,
        "multiple": MPI.Query_thread() >= MPI.THREAD_MULTIPLE, "thread": MPI.Query_thread(),
        "library": " ".join(MPI.Get_library_version().split("\\n")[0].split(",")[0].strip("\\0").split()),
    }), flush=True)
"""
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
_TORCH_PROBE = """
import json, torch
kernels = ""
if torch.cuda.is_available():
    from persia_hpc.trainer.pooling.cuda_kernel import cuda_module
    kernels = cuda_module(torch.device("cuda", 0))[1]
print("PROBE" + json.dumps({"version": torch.__version__, "cuda": torch.version.cuda,
      "kernels": kernels,
      "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]}))
"""
_INSTALL_MPI = "pip install 'persia-hpc[mpich]', or load your site's MPI and reinstall mpi4py against it"
_BUILD_KERNELS = "pip install . with nvcc on PATH (PERSIA_HPC_CUDA=on says what it lacks)"
_BUILD_HOROVOD = (
    'train.reducer = "mpi" does without it; tools/build_horovod.sh of the source tree builds it '
    "(the mpicxx of the same MPI first on PATH)"
)


def examine(trainers: int = 1, reducer: str = "horovod", disks: Sequence[str] = ()) -> int:
    """Prints one line per check; returns exit code 1 if training can't work here.

    trainers: how many the jobs here are to have; only several need Horovod, if it is the `reducer`. disks:
    directories for rows beyond the memory of tables, which are measured.
    """
    worst = EXIT_OK
    horovod = partial(_horovod, trainers if reducer == "horovod" else 1)
    checks: Sequence[Callable[[], list[Line]]]
    checks = (_python, _native, _data, _mpi, _torch, horovod, _memory, _slurm)
    checks = (*checks, *(partial(_disk, Path(folder)) for folder in disks))
    for check in checks:
        for level, what, found, fix in check():
            print(f"{level:<5} {what:<18} {found}" + (f"\n{'':<24} -> {fix}" if fix else ""), flush=True)
            worst = EXIT_FAILURE if level == BAD else worst
    return worst


def _python() -> list[Line]:
    good = sys.version_info >= (3, 10)
    lines = [
        (
            GOOD if good else BAD,
            "python",
            f"{platform.python_version()} ({sys.executable})",
            "" if good else "3.10 or newer is needed",
        )
    ]
    version = _version("persia-hpc")
    if version is None:
        lines.append((NOTE, "persia-hpc", "runs from its source, not installed", "pip install ."))
    else:
        lines.append((GOOD, "persia-hpc", version, ""))
    return lines


def _native() -> list[Line]:
    code, _, text = _run(
        [sys.executable, "-c", ELSEWHERE + "import persia_hpc._native as n; print('PROBE1')"]
    )
    if code == 0:
        return [(GOOD, "native extension", "loads", "")]
    missing = importlib.util.find_spec("persia_hpc._native") is None
    found = "not built" if missing else _last_line(text)
    return [(BAD, "native extension", found, "pip install . (needs a C++17 compiler and CMake 3.20)")]


def _mpi() -> list[Line]:
    version = _version("mpi4py")
    if version is None:
        return [(BAD, "mpi4py", "not installed", "pip install mpi4py")]
    lines: list[Line] = [(GOOD, "mpi4py", version, "")]
    try:
        launcher = find_launcher()
    except UserError as error:
        return [*lines, (BAD, "mpiexec", str(error), "")]
    lines.append((GOOD, "mpiexec", f"{launcher.path} ({launcher.flavour})", ""))
    command = launcher.command(2, [*MPI_PYTHON, "-c", _MPI_PROBE])
    code, probe, text = _run(command, launcher.environment(os.environ))
    if probe is None:
        return [
            *lines,
            (BAD, "MPI", f"two ranks didn't start (exit code {code}): {_last_line(text)}", _INSTALL_MPI),
        ]
    lines.append((GOOD, "MPI", probe["library"], ""))
    if probe["size"] != 2:
        lines.append(
            (BAD, "ranks", "each rank is alone: mpiexec and mpi4py belong to different MPIs", _INSTALL_MPI)
        )
    lines.append(
        (GOOD, "threads", "MPI_THREAD_MULTIPLE", "")
        if probe["multiple"]
        else (
            BAD,
            "threads",
            f"level {probe['thread']}, MPI_THREAD_MULTIPLE is needed",
            "use an MPI with thread support",
        )
    )
    if probe["unified"] and probe["moved"]:
        lines.append((GOOD, "RMA", "unified memory model, one-sided Put arrives", ""))
    else:
        found = "separate memory model" if not probe["unified"] else "a one-sided Put didn't arrive"
        lines.append((BAD, "RMA", found, "use another MPI, or another of its one-sided components"))
    return lines


def _torch() -> list[Line]:
    code, probe, text = _run([sys.executable, "-c", ELSEWHERE + _TORCH_PROBE])
    if probe is None:
        return [(BAD, "torch", f"can't be imported ({code}): {_last_line(text)}", "pip install torch")]
    lines: list[Line] = [(GOOD, "torch", probe["version"], "")]
    if probe["devices"]:
        lines.append(
            (GOOD, "GPU", f"{len(probe['devices'])} x {probe['devices'][0]} (CUDA {probe['cuda']})", "")
        )
        lines.append(
            (NOTE, "CUDA kernels", f"{probe['kernels']}: slow", _BUILD_KERNELS)
            if probe["kernels"]
            else (GOOD, "CUDA kernels", "load", "")
        )
    elif probe["cuda"]:
        lines.append((NOTE, "GPU", f"none seen, though torch has CUDA {probe['cuda']}", "check nvidia-smi"))
    else:
        lines.append((NOTE, "GPU", "this torch is for CPUs: trainers compute on the CPU", ""))
    return lines


def _data() -> list[Line]:
    lines: list[Line] = []
    for package, without in (
        ("hdf5plugin", "data is written without LZ4, and files that have it can't be read"),
        ("polars", "no `inspect`, no `checkpoint export`, no Parquet, no `preprocess` but of synthetic data"),
    ):
        found = _version(package) if importlib.util.find_spec(package) is not None else None
        lines.append(
            (NOTE, package, f"not installed: {without}", f"pip install {package}")
            if found is None
            else (GOOD, package, found, "")
        )
    return lines


def _horovod(trainers: int) -> list[Line]:
    if importlib.util.find_spec("horovod") is None:
        if trainers == 1:
            return [
                (NOTE, "horovod", "not installed: more than one trainer needs it by default", _BUILD_HOROVOD)
            ]
        return [(BAD, "horovod", f"not installed; {trainers} trainers need it", _BUILD_HOROVOD)]
    _, probe, text = _run([sys.executable, "-c", ELSEWHERE + _HOROVOD_PROBE])
    if probe is None:
        return [(BAD, "horovod", f"can't be imported: {_last_line(text)}", _BUILD_HOROVOD)]
    if not probe["mpi"]:
        return [(BAD, "horovod", "built without MPI", _BUILD_HOROVOD)]
    if len(probe["libraries"]) > 1:
        found = f"not the MPI of mpi4py: {', '.join(probe['libraries'])} are both loaded"
        return [(BAD, "horovod", found, _BUILD_HOROVOD)]
    found = f"{_version('horovod')}, with MPI, the same library as mpi4py"
    if probe["gpus"] and not probe["nccl"]:
        return [(NOTE, "horovod", f"{found}, without NCCL: GPUs' gradients take host memory", _BUILD_HOROVOD)]
    return [(GOOD, "horovod", found + (", and with NCCL" if probe["nccl"] else ""), "")]


def _memory() -> list[Line]:
    lines: list[Line] = []
    cores = len(os.sched_getaffinity(0))
    lines.append(
        (GOOD, "cores", f"{cores} for this process", "")
        if cores > 1
        else (NOTE, "cores", "1 for this process: all ranks share it", "ask for more, e.g. --cpus-per-task")
    )
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    mode = pages.read_text().partition("[")[2].partition("]")[0] if pages.exists() else "unknown"
    lines.append(
        (GOOD, "huge pages", mode, "")
        if mode in ("always", "madvise")
        else (
            NOTE,
            "huge pages",
            f"{mode}: look-ups in large tables are 2-3 times slower",
            f"echo madvise > {pages}",
        )
    )
    if not Path("/dev/shm").is_dir():
        lines.append(
            (BAD, "/dev/shm", "doesn't exist", "mount a tmpfs there: ranks of a node share memory in it")
        )
        return lines
    usage = shutil.disk_usage("/dev/shm")
    text = f"{usage.free / 2**20:.0f} MiB free of {usage.total / 2**20:.0f}"
    lines.append(
        (GOOD, "/dev/shm", text, "")
        if usage.free >= 256 << 20
        else (
            NOTE,
            "/dev/shm",
            f"{text}: rings between ranks may not fit",
            "docker run --shm-size=2g, or smaller rings",
        )
    )
    return lines


def _disk(folder: Path) -> list[Line]:
    what = f"disk {folder}"
    fix = "name a directory on a local drive that you may write to"
    if not folder.is_dir():
        return [(BAD, what, "there is no such directory", fix)]
    if is_memory(folder):
        return [(NOTE, what, "is memory (tmpfs): rows there take what they should spare", fix)]
    free = shutil.disk_usage(folder).free
    if free < 2 * FILE_BYTES:
        return [(NOTE, what, f"not measured: only {free / 2**20:.0f} MiB are free", "make room")]
    try:
        speed = measure_disk(folder)
    except OSError as error:
        return [(BAD, what, f"can't be written or read: {error.strerror or error}", fix)]
    rates = " / ".join(f"{rate:,.0f}" for rate in speed.reads.values())
    found = f"random reads of 4 KiB: {rates} a second with {' / '.join(map(str, speed.reads))} at a time"
    found += f", fsync {speed.fsync_seconds * 1e3:.2f} ms, {free / 2**30:,.0f} GiB free"
    if not speed.direct:
        found += "; the file system reads only through memory, so these may be its own"
        return [(NOTE, what, found, fix)]
    if max(speed.reads.values()) < SLOW_READS:
        return [
            (NOTE, what, f"{found}: slow", "rows that come back from there will be waited for; see `plan`")
        ]
    return [(GOOD, what, found, "")]


def _slurm() -> list[Line]:
    path = shutil.which("srun")
    if path is None:
        return [(NOTE, "slurm", "no srun on PATH: jobs start with mpiexec", "")]
    job = os.environ.get("SLURM_JOB_ID")
    return [(GOOD, "slurm", f"{path}" + (f", inside job {job}" if job else ""), "")]


def _run(command: Sequence[str], env: dict[str, str] | None = None) -> tuple[int, Any, str]:
    """Returns (exit code, JSON that the program printed after "PROBE" or None, all its output)."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=env,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, None, str(error)
    text = done.stdout + done.stderr
    _, found, rest = done.stdout.partition("PROBE")
    return done.returncode, json.loads(rest.splitlines()[0]) if found else None, text


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
