"""Runs a test program under the real mpiexec of this environment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def mpiexec() -> str:
    """The launcher of the MPI that mpi4py uses: the one beside the interpreter (mpich wheel), else the
    site's.
    """
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    assert found, "no mpiexec beside the interpreter or on PATH"
    return found


def environment(**extra: str) -> dict[str, str]:
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), env.get("PYTHONPATH", "")]))
    env.update(
        OMPI_ALLOW_RUN_AS_ROOT="1",
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
        OMPI_MCA_mpi_yield_when_idle="1",
        OMPI_MCA_osc="^ucx",
        PRTE_MCA_rmaps_default_mapping_policy=":oversubscribe",
        OMPI_MCA_rmaps_base_oversubscribe="1",
        OMP_NUM_THREADS="1",
    )
    env.update(extra)
    return env


def run_mpi(
    num_ranks: int,
    program: Path | str,
    *arguments: str,
    timeout: float = 120,
    check: bool = True,
    guarded: bool = True,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """`mpiexec -n num_ranks python -m mpi4py program …`; asserts exit code 0 unless check is False. Without
    `-m mpi4py` if it isn't guarded: then nobody but the program ends the job when a rank fails.
    """
    guard = ["-m", "mpi4py"] if guarded else []
    command = [mpiexec(), "-n", str(num_ranks), sys.executable, *guard, str(program), *arguments]
    process = subprocess.Popen(
        command,
        env=environment(**env),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # the ranks too: they would go on polling beside other tests
        process.communicate()
        raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done
