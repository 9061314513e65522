"""A Slurm of its own for tests: munged, slurmctld and slurmds in a temporary folder, on free ports.

Nothing outside the folder is read or written. The nodes are slurmds of this machine: they share its host name
and memory, claim more CPUs than there are, and use no cgroups. Needs root and Debian's `slurm-wlm`; else the
test is skipped.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from persia_hpc.launch.supervisor import die_with_parent
from tests.support.jobs import user_environment, wait_for

START_SECONDS = 20
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
# Where Debian has daemons, which isn't on everybody's PATH.
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])

# cred_expire is also how long a requeued job waits; Slurm's own intervals are made for large clusters.
SETTINGS = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=1,bf_continue
ReturnToService=2
KillWait=30
MinJobAge=600
JobRequeue=1
SlurmdTimeout=15
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PropagateResourceLimits=NONE
TmpFS={folder}/tmp/%n
GresTypes=gpu
{nodes}
PartitionName=main Nodes=n[1-{count}] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=gentle Nodes=n[1-{count}] MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n[1-{count}] MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""


class Cluster:
    """A running Slurm with nodes n1, n2, … of which the last has two GPUs that don't exist."""

    def __init__(self, folder: Path, count: int, cpus: int) -> None:
        self.folder = folder
        self.count = count
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}  # the slurmd of each
        for name in ("state", "spool", "log", "tmp"):
            (folder / name).mkdir()
        host = socket.gethostname().partition(".")[0]
        ports = _free_ports(count + 1)
        nodes = []
        for i in range(1, count + 1):
            (folder / "spool" / f"n{i}").mkdir()
            (folder / "tmp" / f"n{i}").mkdir()
            gpus = " Gres=gpu:2" if i == count else ""
            nodes.append(
                f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[i]} CPUs={cpus} "
                f"RealMemory=1000 State=UNKNOWN{gpus}"
            )
        text = SETTINGS.format(host=host, port=ports[0], folder=folder, nodes="\n".join(nodes), count=count)
        (folder / "slurm.conf").write_text(text)
        for i in range(2):  # Slurm wants device nodes; the last digit becomes the GPU's number
            os.mknod(folder / f"gpu{i}", 0o20666, os.makedev(1, 3))
        (folder / "gres.conf").write_text(f"NodeName=n{count} Name=gpu File={folder}/gpu[0-1]\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)

    @property
    def environment(self) -> dict[str, str]:
        """Of a user of this cluster, outside of any job, with the environment's programs first on PATH."""
        env = user_environment()
        for name in [n for n in env if n.startswith(("SBATCH_", "SRUN_"))]:
            del env[name]
        programs = str(Path(sys.executable).parent)
        return {
            **env,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": os.pathsep.join([programs, SEARCH]),
        }

    def start(self) -> None:
        """Starts the daemons and waits until all nodes can take jobs."""
        at = self.folder
        munge = [f"--key-file={at}/munge.key", f"--socket={at}/munge.socket", f"--pid-file={at}/munged.pid"]
        munge += [f"--log-file={at}/log/munged.log", f"--seed-file={at}/munge.seed"]
        self._spawn("munged", "--foreground", "--force", "--num-threads=2", *munge)
        wait_for((at / "munge.socket").exists, START_SECONDS)
        self._spawn("slurmctld", "-D", "-c", "-i")
        for i in range(1, self.count + 1):
            self._nodes[f"n{i}"] = self._spawn("slurmd", "-D", "-N", f"n{i}")

        def idle() -> bool:
            done = self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False)
            return len(set(done.stdout.split())) == self.count

        try:
            wait_for(idle, START_SECONDS)
        except AssertionError:
            logs = "\n".join(f"{p.name}: {p.read_text()[-2000:]}" for p in (at / "log").iterdir())
            raise AssertionError(f"Slurm didn't start\n{logs}") from None

    def kill_node(self, node: str) -> None:
        """Kills a node's slurmd and all that it has started, as a crash does."""
        self._nodes[node].kill()
        self._nodes[node].wait()
        mine = [f"SLURM_CONF={self.folder}/slurm.conf".encode(), f"SLURMD_NODENAME={node}".encode()]
        for pid, environment in _environments():
            if all(mark in environment for mark in mine):
                with contextlib.suppress(OSError):
                    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                    if Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd"):
                        os.kill(parent, signal.SIGKILL)
                    os.kill(pid, signal.SIGKILL)

    def revive_node(self, node: str) -> None:
        """Starts a killed node again, and waits until it takes jobs."""
        self._nodes[node] = self._spawn("slurmd", "-D", "-N", node)
        wait_for(lambda: node in self.run("sinfo", "-hNt", "idle", "-o", "%N").stdout.split(), START_SECONDS)

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log" / f"{program}.out").open("ab") as log:
            daemon = subprocess.Popen(
                [_which(program), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),  # also when pytest itself is killed
            )
        self._daemons.append(daemon)
        return daemon

    def run(
        self,
        *command: str,
        cwd: Path | None = None,
        check: bool = True,
        timeout: float = 60,
        user: int | None = None,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """A command of a user, by default root; asserts exit code 0 unless check is False."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**self.environment, **env},
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        if check:
            assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, ExitCode, …; of an array, its first task."""
        line = self.run("scontrol", "-o", "show", "job", job_id).stdout.splitlines()[0]
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    def states(self, job_id: str) -> set[str]:
        """States of all tasks of an array, or components of a heterogeneous job."""
        return set(re.findall(r"JobState=(\w+)", self.run("scontrol", "-o", "show", "job", job_id).stdout))

    def wait(self, job_id: str, seconds: float) -> set[str]:
        """Waits for the end of a job and returns its states, by which it didn't merely vanish."""
        going = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"}
        limit = time.monotonic() + seconds
        while (states := self.states(job_id)) & going:
            if time.monotonic() > limit:
                show = self.run("scontrol", "show", "job", job_id).stdout
                raise AssertionError(f"job {job_id} didn't end in {seconds} s\n{show}")
            time.sleep(0.2)
        return states

    def stop(self) -> None:
        """Ends jobs and daemons, whatever state they are in."""
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            jobs = self.run("squeue", "-h", "-o", "%A", check=False, timeout=5).stdout.split()
            if jobs:
                self.run("scancel", "--signal=KILL", "--full", *jobs, check=False, timeout=5)
                self.run("scancel", *jobs, check=False, timeout=5)
        for daemon in self._daemons:  # an orderly end takes seconds, for a state that nobody needs
            daemon.kill()
            daemon.wait()
        # Job steps aren't children of their slurmd: they are known by the cluster's configuration.
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        for pid, environment in _environments():
            if mark in environment:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def slurm_cluster(count: int = 3, cpus: int = 8) -> Iterator[Cluster]:
    """A Slurm for the time of the context; skips the test where there can't be one."""
    missing = [program for program in PROGRAMS if _which(program) is None]
    if os.geteuid() != 0:
        pytest.skip("a Slurm of its own needs root: slurmd must start other users' jobs")
    if missing:
        pytest.skip(f"Slurm's programs aren't installed (Debian: slurm-wlm); missing: {', '.join(missing)}")
    # Not below pytest's folder: names of sockets are short.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        cluster = Cluster(Path(folder), count, cpus)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    """Yields the pid and the environment of each process of this machine."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            yield int(path.parent.name), path.read_bytes().split(b"\0")


def _which(program: str) -> str | None:
    return shutil.which(program, path=SEARCH)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
