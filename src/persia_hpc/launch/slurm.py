"""Writes a job's sbatch script: a pure function of the configuration and the options.

slurm/train.sbatch and slurm/train_hetjob.sbatch are its results for an example; tests compare them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from persia_hpc.config import Config
from persia_hpc.reporting.seeds import seed_directory

from .mpiexec import COMPONENT_ROLES
from .slurm_options import JobOptions, check_options, not_twice, without_gpus


def run_directory(options: JobOptions, job_id: str) -> str:
    """Returns where the run of a job with this id has its results, or an array's runs have theirs."""
    return options.run_dir or f"runs/job-{job_id}"


def log_file(options: JobOptions, job_id: str | None = None) -> str:
    """Returns where Slurm writes the job's output: with the results, if their directory is known by then.

    Without an id it has Slurm's patterns for it and for the job's name; with one, N for an array's tasks.
    """
    array = options.seeds is not None
    if job_id is None:
        name = "%x-%A-%a.out" if array else "%x-%j.out"
    else:
        name = f"{options.job_name}-{job_id}{'-N' if array else ''}.out"
    return f"{options.run_dir}/{name}" if options.run_dir else name


def job_script(config: Config, options: JobOptions) -> str:
    """Returns the script.

    Raises UserError, naming the option, for what can't work.
    """
    check_options(config, options)
    counts = config.ranks.counts(options.nodes)
    servers, workers, trainers = counts.values()
    header = [
        f"--job-name={options.job_name}",
        f"--output={log_file(options)}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{options.signal_seconds}",
        *([f"--array={options.seeds}"] if options.seeds is not None else []),
    ]
    if options.cpu_nodes:
        suffix = "_HET_GROUP_1"
        header += _component(options, options.cpu_nodes, servers + workers, options.cpu_partition, gpus=0)
        header += [*without_gpus(options.extra), "hetjob", "--requeue"]
        header += _component(options, options.nodes, trainers, options.partition, gpus=options.gpus_per_node)
        header += not_twice(options.extra)
    else:
        suffix, total = "", servers + workers + trainers
        header += _component(options, options.nodes, total, options.partition, gpus=options.gpus_per_node)
        header += options.extra
    threads = f"SLURM_CPUS_PER_TASK{suffix}"
    fixed = "" if config.train.threads else f' --set train.threads="${threads}"'
    if options.seeds is not None:
        fixed += ' --set seed="$SLURM_ARRAY_TASK_ID"'
    changes = "".join(f" --set {shlex.quote(each)}" for each in options.settings)
    site = site_lines(options)
    if options.mpi:
        site.append(f"export SLURM_MPI_TYPE={shlex.quote(options.mpi)}")
    values = {
        "ROLES": _roles(config, options),
        "HEADER": "\n".join(f"#SBATCH {line}" for line in header),
        "CONFIG": shlex.quote(options.config),
        "RUN_DIR": _shell_run_dir(options),
        "MAX_RESTARTS": str(options.max_restarts),
        "SITE": "".join(f"{line}\n" for line in site),
        "THREADS": threads,
        "JOB": _shell_job(options),
        "TRAIN": f"--launcher {options.launcher} --resume{fixed}{changes}",
    }
    return re.sub(r"@([A-Z_]+)@", lambda match: values[match.group(1)], TEMPLATE)


def site_lines(options: JobOptions) -> list[str]:
    """Returns the lines of a script that make the site's programs and this package known to it."""
    lines = []
    if options.env_file:
        lines = ["# shellcheck source=/dev/null", f"source {shlex.quote(options.env_file)}"]
    if options.path:
        lines.append(f"export PATH={shlex.quote(options.path)}:$PATH")
    return lines


def _shell_run_dir(options: JobOptions) -> str:
    """Returns the run's directory in the words of the shell of a job."""
    base = shlex.quote(options.run_dir) if options.run_dir else "runs/job-$SLURM_JOB_ID"
    if options.seeds is None:
        return base
    base = base.replace("$SLURM_JOB_ID", "$SLURM_ARRAY_JOB_ID")
    return f"{base}/{seed_directory('$SLURM_ARRAY_TASK_ID')}"


def _shell_job(options: JobOptions) -> str:
    """Returns the job's id in the words of the shell of a job.

    One task of an array has the SLURM_JOB_ID that names the array as a whole.
    """
    return "$SLURM_JOB_ID" if options.seeds is None else "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"


TEMPLATE = """\
#!/bin/bash
# @ROLES@
# Made by `persia-hpc submit`; what follows up to the traps is yours to change.
@HEADER@

config=@CONFIG@
run_dir=@RUN_DIR@
max_restarts=@MAX_RESTARTS@
@SITE@export OMP_NUM_THREADS=$@THREADS@
set -u

# Before the time limit Slurm sends USR1 to this shell alone: the job is to write a checkpoint and end with
# exit code 75. At scancel Slurm itself sends TERM to every process; a second one would end the job at once.
train='' signalled='' cancelled=''
trap 'signalled=1; [ -z "$train" ] || kill -USR1 "$train"' USR1
trap 'signalled=1; cancelled=1' TERM

persia-hpc train "$config" --run-dir "$run_dir" @TRAIN@ &
train=$!
while # a trapped signal ends `wait`, not the job
    signalled=''
    wait "$train"
    code=$?
    [ -n "$signalled" ]
do :; done

[ "$code" -ne 138 ] || code=75 # USR1 met it before it listened: nothing is lost
if [ "$code" -eq 75 ] && [ -z "$cancelled" ]; then
    restarts=${SLURM_RESTART_COUNT:-0}
    if [ "$restarts" -ge "$max_restarts" ]; then
        echo "not requeued after $restarts restarts (max_restarts); submit it again to go on" >&2
    elif scontrol requeue "@JOB@"; then
        echo "requeued: goes on from its checkpoint when Slurm starts it again"
        sleep 60 # until Slurm ends this script
    fi
fi
exit "$code"
"""


def _component(options: JobOptions, nodes: int, tasks: int, partition: str | None, *, gpus: int) -> list[str]:
    """Lists what one part of a job asks for; the parts of a heterogeneous job share none of it."""
    even = tasks % nodes == 0
    return [
        *([f"--account={options.account}"] if options.account else []),
        *([f"--partition={partition}"] if partition else []),
        f"--time={options.time}",
        f"--nodes={nodes}",
        f"--ntasks-per-node={tasks // nodes}" if even else f"--ntasks={tasks}",
        f"--cpus-per-task={options.cpus_per_task}",
        *([f"--gpus-per-node={gpus}"] if gpus else []),
    ]


def _roles(config: Config, options: JobOptions) -> str:
    def counted(counts: Iterable[tuple[str, int]]) -> str:
        return ", ".join(f"{n} {name.replace('_', ' ').removesuffix('s' * (n == 1))}" for name, n in counts)

    if config.ranks.per_node is not None:
        each = counted(config.ranks.counts().items())
        return f"Nodes: {options.nodes}, each with {each}."
    counts = config.ranks.counts()
    if options.cpu_nodes:
        first = COMPONENT_ROLES[2][0].split(",")
        here = counted((name, n) for name, n in counts.items() if name in first)
        there = counted([("trainers", counts["trainers"])])
        return f"CPU nodes: {options.cpu_nodes} with {here}; GPU nodes: {options.nodes} with {there}."
    return f"Nodes: {options.nodes} with {counted(counts.items())}."
