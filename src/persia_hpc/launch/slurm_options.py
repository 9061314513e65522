"""Holds what a Slurm job asks for, and refuses what can't work."""

from __future__ import annotations

import re
from dataclasses import dataclass

from persia_hpc.config import Config
from persia_hpc.errors import UserError


@dataclass(frozen=True)
class JobOptions:
    """Holds what a job asks Slurm for, and how it starts its ranks; what is None is left to the site.

    `cpu_nodes` makes it a heterogeneous job: servers and workers on that many nodes of `cpu_partition`, only
    trainers on the `nodes`. `path`: a folder to put before PATH.
    """

    config: str
    nodes: int = 1
    time: str = "01:00:00"
    job_name: str = "persia-hpc"
    partition: str | None = None
    account: str | None = None
    gpus_per_node: int = 0
    cpus_per_task: int = 4
    cpu_nodes: int = 0
    cpu_partition: str | None = None
    run_dir: str | None = None
    mpi: str | None = None
    launcher: str = "srun"
    signal_seconds: int = 90
    max_restarts: int = 20
    env_file: str | None = None
    extra: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    path: str | None = None


def check_options(config: Config, options: JobOptions) -> None:
    """Checks the options.

    Raises UserError for what Slurm would refuse late, or misunderstand.
    """
    least = {"nodes": 1, "cpus_per_task": 1, "gpus_per_node": 0, "cpu_nodes": 0, "max_restarts": 0}
    for name, minimum in least.items():
        if getattr(options, name) < minimum:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {getattr(options, name)}: expected a whole number, at least {minimum}")
    seconds = time_seconds(options.time)
    if not 1 <= options.signal_seconds < min(seconds, 65536):
        raise UserError(
            f"--signal-seconds {options.signal_seconds}: expected at least 1 and less than the time limit "
            f"({options.time} is {seconds} s) and 65536; it is the time to stop and write a checkpoint in"
        )
    words = {"job-name": options.job_name, "partition": options.partition, "account": options.account}
    words |= {"cpu-partition": options.cpu_partition, "run-dir": options.run_dir, "mpi": options.mpi}
    for flag, text in words.items():
        if text is not None and not re.fullmatch(r"[\w./,+:@=-]+", text):
            raise UserError(
                f"--{flag} {text!r}: expected letters, digits and ./,+:@=-_ only; an #SBATCH line takes "
                "other characters for something else"
            )
    for line in options.extra:
        if not re.fullmatch(r"-\S[^\n]*", line):
            raise UserError(
                f"--extra {line!r}: expected one option of sbatch, such as --extra=--constraint=ib"
            )
    if options.cpu_nodes:
        if config.ranks.per_node is not None:
            raise UserError(
                "--cpu-nodes and [ranks.per_node] exclude each other: nodes with different roles need "
                "[ranks] with counts for the whole job"
            )
        if options.launcher != "srun":
            raise UserError("--cpu-nodes needs --launcher srun: mpiexec sees only a job's first component")
    counts = config.ranks.counts(options.nodes)
    trainers = -(-counts["trainers"] // options.nodes)
    if 0 < options.gpus_per_node < trainers:
        raise UserError(
            f"--gpus-per-node {options.gpus_per_node}: a node has up to {trainers} trainers, and each needs "
            "a GPU of its own; ask for more GPUs or nodes, or fewer trainers in [ranks]"
        )
    places = {"nodes": (options.nodes, sum(counts.values()))}
    if options.cpu_nodes:
        places = {
            "nodes": (options.nodes, counts["trainers"]),
            "cpu-nodes": (options.cpu_nodes, sum(counts.values()) - counts["trainers"]),
        }
    for flag, (nodes, ranks) in places.items():
        if ranks < nodes:
            raise UserError(
                f"--{flag} {nodes}: there are only {ranks} ranks for them; change [ranks] or --{flag}"
            )


def time_seconds(text: str) -> int:
    """Returns the seconds of a Slurm time limit: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS.

    Raises UserError for another form.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise UserError(
            f"--time {text!r}: expected minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS, "
            "such as 04:00:00"
        )
    days, *parts = match.groups()
    given = [int(part) for part in parts if part is not None]
    units = (60, 1, 0) if days is None and len(given) < 3 else (3600, 60, 1)
    return int(days or 0) * 86400 + sum(n * unit for n, unit in zip(given, units, strict=False))
