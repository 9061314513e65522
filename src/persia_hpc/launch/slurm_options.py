"""Holds what a Slurm job asks for, and refuses what can't work."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from persia_hpc.config import Config
from persia_hpc.errors import UserError

SLURM_ARRAY_SIZE = 1001  # MaxArraySize by default, one more than the largest index of an array
_MOST_SEEDS = 1000
_GPUS = re.compile(r"-G|--gpu|--\w+-per-gpu\b|--tres-bind[= ].*\bgpu\b")
_RESOURCES = re.compile(r"(--(?:gres|tres-per-\w+)[= ]\s*)(.*)")  # a list, some of them perhaps GPUs
_GPU = re.compile(r"\b(gpu|mps|shard)\b")  # mps, shard: parts of one
_OF_THE_WHOLE_JOB = re.compile(r"-L|--(licenses|mail-|bbf?\b)")  # would be asked for, or sent, twice


@dataclass(frozen=True)
class JobOptions:
    """Holds what a job asks Slurm for, and how it starts its ranks; what is None is left to the site.

    `cpu_nodes` makes it a heterogeneous job: servers and workers on that many nodes of `cpu_partition`, only
    trainers on the `nodes`. `seeds` makes it an array, with a run for each. `preprocess` and `evaluate` are
    the arguments of these commands, which become jobs before and behind it. `path`: a folder for PATH.
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
    seeds: str | None = None
    preprocess: str | None = None
    preprocess_parts: int = 1
    evaluate: str | None = None
    env_file: str | None = None
    extra: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    path: str | None = None


def check_options(config: Config, options: JobOptions) -> None:
    """Checks the options.

    Raises UserError for what Slurm would refuse late, or misunderstand.
    """
    least = {"nodes": 1, "cpus_per_task": 1, "gpus_per_node": 0, "cpu_nodes": 0, "max_restarts": 0}
    least |= {"preprocess_parts": 1}
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
    if options.seeds is not None:
        seeds_of(options.seeds)
        if options.cpu_nodes:
            raise UserError(
                "--seeds and --cpu-nodes exclude each other: Slurm has no arrays of heterogeneous jobs; "
                "submit one job a seed, with --set seed=N"
            )
        if any(setting.split("=")[0].strip() == "seed" for setting in options.settings):
            raise UserError("--seeds and --set seed=... exclude each other; leave one of them out")
    if options.preprocess is None and options.preprocess_parts > 1:
        raise UserError("--preprocess-parts without --preprocess: say what it is to make")
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


def without_gpus(extra: Iterable[str]) -> list[str]:
    """Returns the options of sbatch for nodes that needn't have GPUs."""
    kept = []
    for line in extra:
        listed = _RESOURCES.fullmatch(line)
        if listed:
            others = [each for each in listed[2].split(",") if not _GPU.search(each)]
            kept += [listed[1] + ",".join(others)] * bool(others)
        elif not _GPUS.match(line):
            kept.append(line)
    return kept


def not_twice(extra: Iterable[str]) -> list[str]:
    """Returns the options of sbatch for a further part of a job whose first part has them all."""
    return [line for line in extra if not _OF_THE_WHOLE_JOB.match(line)]


def seeds_of(text: str) -> list[int]:
    """Returns the seeds that `--seeds` names: "1-5", "1,4,9", also with a bound on tasks at a time, "1-20%4".

    Raises UserError for another form.
    """
    named, _, limit = text.partition("%")
    seeds: list[int] = []
    for part in named.split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and last.isdecimal() == bool(dash) and int(first) <= int(last or first)):
            seeds = []
            break
        if int(last or first) - int(first) >= _MOST_SEEDS:
            raise UserError(f"--seeds {text!r}: expected at most {_MOST_SEEDS} seeds")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds or len(set(seeds)) != len(seeds) or ("%" in text and not re.fullmatch("[1-9][0-9]*", limit)):
        raise UserError(
            f"--seeds {text!r}: expected whole numbers, each once, such as 1-5 or 1,4,9; 1-20%4 runs at most "
            "4 at a time"
        )
    return seeds


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
