"""Checks MPI: two ranks by mpiexec, and by Slurm's srun, whose PMI must be that of the MPI library."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from typing import Any

from persia_hpc.errors import UserError

from .doctor_lines import BAD, GOOD, NOTE, Line, last_line, run_probe, version_of
from .mpiexec import MPI_PYTHON, find_launcher

SLOW_PUT_SECONDS = 100e-6  # between nodes; InfiniBand needs 2 us, TCP by cheap switches 50
SLOW_PUT_RATE = 200e6  # bytes a second
MOST_SKEW_SECONDS = 1.0
_INSTALL_MPI = "pip install 'persia-hpc[mpich]', or load your site's MPI and reinstall mpi4py against it"
_LIBRARY_VARIABLES = ("MPI4PY_LIBMPI", "MPI4PY_MPIABI")

# Rank 1 stays inside of MPI while rank 0 puts: between nodes nothing moves otherwise.
_PROBE = """
import json, os, socket, time
from mpi4py import MPI
import numpy as np
world, last = MPI.COMM_WORLD, MPI.COMM_WORLD.size - 1
window = MPI.Win.Allocate(1 << 20, 1, comm=world)
unified = window.Get_attr(MPI.WIN_MODEL) == MPI.WIN_UNIFIED
window.Lock_all()
got = np.zeros(1, np.int64)
window.Put(np.array([world.rank + 41], np.int64), (world.rank + 1) % world.size)
window.Flush_all()
world.Barrier()
window.Get(got, world.rank)
window.Flush_all()
world.Barrier()

def fastest(num_bytes, times):
    data, best = np.zeros(num_bytes, np.uint8), 1e9
    for _ in range(times):
        begin = time.perf_counter()
        window.Put(data, last)
        window.Flush(last)
        best = min(best, time.perf_counter() - begin)
    return best

put = large = skew = 0.0
if world.size > 1 and world.rank == 0:
    put, large = fastest(8, 200), fastest(1 << 20, 10)
    world.send(None, last)
    rounds = []
    for _ in range(20):
        begin = time.time()
        world.send(None, last)
        other = world.recv(source=last)
        end = time.time()
        rounds.append((end - begin, other - (begin + end) / 2))
    skew = min(rounds)[1]
elif world.rank == last and last > 0:
    while not world.Iprobe(0):
        time.sleep(0)
    world.recv(source=0)
    for _ in range(20):
        world.recv(source=0)
        world.send(time.time(), 0)
window.Unlock_all()
window.Free()
places = world.gather((socket.gethostname(), sorted(os.sched_getaffinity(0))))
if world.rank == 0:
    print("PROBE" + json.dumps({
        "size": world.size, "unified": unified, "moved": int(got[0]) == 41 + world.size - 1,
        "multiple": MPI.Query_thread() >= MPI.THREAD_MULTIPLE, "thread": MPI.Query_thread(),
        "library": " ".join(MPI.Get_library_version().split("\\n")[0].split(",")[0].strip("\\0").split()),
        "put": put, "large": large, "skew": skew, "places": places,
    }), flush=True)
"""


def check_mpi(srun: str | None) -> list[Line]:
    """Returns lines on MPI and Slurm. srun: also try that, with this --mpi ("": what it is without)."""
    version = version_of("mpi4py")
    if version is None:
        return [Line(BAD, "mpi4py", "not installed", "pip install mpi4py")]
    lines = [Line(GOOD, "mpi4py", version)]
    try:
        launcher = find_launcher()
    except UserError as error:
        return [*lines, Line(BAD, "mpiexec", str(error), _INSTALL_MPI)]
    lines.append(Line(GOOD, "mpiexec", f"{launcher.path} ({launcher.flavour})"))
    command = launcher.command(2, [*MPI_PYTHON, "-c", _PROBE])
    code, probe, text = run_probe(command, launcher.environment(os.environ))
    if probe is None:
        found = f"two ranks didn't start (exit code {code}): {last_line(text)}"
        return [*lines, Line(BAD, "MPI", found, _find_mpi(os.environ)), *_check_slurm(None, srun)]
    lines += _judge(probe, "", "mpiexec and mpi4py belong to different MPIs", _INSTALL_MPI)
    return [*lines, *_check_slurm(probe["library"], srun)]


def _find_mpi(environment: Mapping[str, str]) -> str:
    """Returns how to get an MPI that starts: without variables by which mpi4py looks nowhere else, if any."""
    told = " and ".join(name for name in _LIBRARY_VARIABLES if environment.get(name))
    return f"unset {told}, if it isn't the MPI that you want; else {_INSTALL_MPI}" if told else _INSTALL_MPI


def _judge(probe: Mapping[str, Any], by: str, alone: str, fix: str) -> list[Line]:
    """Returns what a probe of two ranks has shown. by: "srun " if that started them."""
    lines = [Line(GOOD, f"{by}MPI", probe["library"])]
    if probe["size"] != 2:
        lines.append(Line(BAD, f"{by}ranks", f"each rank is alone: {alone}", fix))
    lines.append(
        Line(GOOD, f"{by}threads", "MPI_THREAD_MULTIPLE")
        if probe["multiple"]
        else Line(
            BAD,
            f"{by}threads",
            f"level {probe['thread']}, MPI_THREAD_MULTIPLE is needed",
            "use an MPI with thread support",
        )
    )
    if not (probe["unified"] and probe["moved"]):
        found = "separate memory model" if not probe["unified"] else "a one-sided Put didn't arrive"
        fix = "use another MPI, or another of its one-sided components"
        return [*lines, Line(BAD, f"{by}RMA", found, fix)]
    lines.append(Line(GOOD, f"{by}RMA", "unified memory model, one-sided Put arrives"))
    return lines if probe["size"] != 2 else [*lines, *_judge_places(probe, by)]


def _judge_places(probe: Mapping[str, Any], by: str) -> list[Line]:
    """Returns lines on the time of a put, on cores and on clocks of two ranks that see each other."""
    (first, cores), (second, others) = probe["places"]
    apart = first != second
    where = f"between {first} and {second}" if apart else f"on {first}"
    rate = (1 << 20) / max(probe["large"], 1e-9)
    found = f"8 bytes in {probe['put'] * 1e6:.1f} us, 1 MiB at {rate / 1e9:.2f} GB/s, {where}"
    slow = apart and (probe["put"] > SLOW_PUT_SECONDS or rate < SLOW_PUT_RATE)
    fix = (
        "name the fast network (UCX_NET_DEVICES, UCX_TLS in slurm/env.sh), or use an MPI that is built for it"
    )
    lines = [Line(NOTE, f"{by}put", f"{found}: slow", fix) if slow else Line(GOOD, f"{by}put", found)]
    here = len(set(cores) | set(others))
    if not apart and here < 2 <= (os.cpu_count() or 1):
        found = f"both ranks are bound to core {cores[0]} of {os.cpu_count()}: each keeps the other waiting"
        fix = "srun: --cpus-per-task, --cpu-bind=none; mpiexec: -bind-to none; I_MPI_PIN=off"
        lines.append(Line(NOTE, f"{by}pinning", found, fix))
    else:
        told = f"{here} cores" if not apart else f"{len(cores)} and {len(others)} cores"
        lines.append(Line(GOOD, f"{by}pinning", f"two ranks have {told}"))
    if abs(probe["skew"]) > MOST_SKEW_SECONDS:
        found = (
            f"{second} is {probe['skew']:+.1f} s from {first}: times of logs and traces don't fit together"
        )
        lines.append(
            Line(NOTE, f"{by}clocks", found, "let NTP set both (chronyc tracking says how they are)")
        )
    else:
        lines.append(Line(GOOD, f"{by}clocks", f"differ by {abs(probe['skew']) * 1e3:.1f} ms"))
    return lines


def _check_slurm(library: str | None, srun: str | None) -> list[Line]:
    path = shutil.which("srun")
    if path is None:
        if srun is None:
            return [Line(GOOD, "slurm", "none: jobs start with mpiexec")]
        return [Line(BAD, "slurm", "no srun on PATH", "run it on a cluster with Slurm, or without --srun")]
    job = os.environ.get("SLURM_JOB_ID")
    lines = [Line(GOOD, "slurm", f"{path}" + (f", inside job {job}" if job else ""))]
    lines += _check_pmi(path, library, srun)
    return lines if srun is None else [*lines, *_try_srun(path, library, srun)]


def pmi_for(library: str | None) -> str | None:
    """Returns srun's --mpi that an MPI library needs, by its name; None for one that isn't known."""
    if library is None:
        return None
    if re.search("CRAY MPICH", library, re.IGNORECASE):
        return "cray_shasta"
    if re.search(r"MPICH|Intel|MVAPICH", library, re.IGNORECASE):
        return "pmi2"
    return "pmix" if "Open MPI" in library else None


def _check_pmi(path: str, library: str | None, srun: str | None) -> list[Line]:
    """Returns a line on whether srun has the PMI of the MPI library, and takes it."""
    wanted = pmi_for(library)
    if wanted is None:
        return []
    listed = run_probe([path, "--mpi=list"])[2]
    known = re.findall(r"^\s+(?:srun: )?(\w+)$", listed, re.MULTILINE) or re.findall(
        r"\b(?:none|pmi2|pmix\w*|cray_shasta)\b", listed
    )
    told = ", ".join(dict.fromkeys(known))
    if known and not any(each.startswith(wanted) for each in known):
        fix = (
            "start ranks by mpiexec (submit --launcher mpiexec), or use an MPI that is built for one of these"
        )
        return [Line(NOTE, "PMI", f"{library} needs --mpi={wanted}, but srun has {told}", fix)]
    chosen = srun or os.environ.get("SLURM_MPI_TYPE") or _mpi_default()
    if chosen is not None and not chosen.startswith(wanted):
        fix = f"export SLURM_MPI_TYPE={wanted}, or submit --mpi {wanted}"
        return [Line(NOTE, "PMI", f"{library} needs --mpi={wanted}, but srun would take {chosen}", fix)]
    return [Line(GOOD, "PMI", f"--mpi={wanted}, which {library} needs")]


def _mpi_default() -> str | None:
    text = run_probe(["scontrol", "show", "config"])[2]
    found = re.search(r"^MpiDefault\s*=\s*(\S+)", text, re.MULTILINE)
    return found and found[1]


def _try_srun(path: str, library: str | None, mpi: str) -> list[Line]:
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    spread = ["-N2", "--ntasks-per-node=1"] if nodes.isdigit() and int(nodes) > 1 else []
    command = [path, "-n2", *spread, "--kill-on-bad-exit=1", *([f"--mpi={mpi}"] if mpi else [])]
    code, probe, text = run_probe([*command, *MPI_PYTHON, "-c", _PROBE])
    wanted = pmi_for(library)
    fix = f"srun --mpi={wanted}" if wanted else "another --mpi; srun --mpi=list has what there is"
    if probe is None:
        found = f"two ranks didn't start (exit code {code}): {last_line(text)}"
        inside = "" if "SLURM_JOB_ID" in os.environ else ", and try it inside of salloc"
        return [Line(BAD, "srun MPI", found, f"{fix}{inside}")]
    return _judge(probe, "srun ", "the PMI of srun isn't that of the MPI library", fix)
