"""Writes the scripts of jobs around a training job: one that prepares its data, one that evaluates its run.

They are pure functions of the options, as the script of the training itself (slurm.py).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from persia_hpc.reporting.seeds import EVALUATION, seed_directory

from .slurm import log_file, site_lines
from .slurm_options import JobOptions, without_gpus


def preprocess_job(options: JobOptions) -> JobOptions:
    """Returns what the job that prepares data asks for: no GPUs, where the servers and workers would be."""
    return replace(
        options,
        job_name=f"{options.job_name}-preprocess",
        partition=options.cpu_partition or options.partition,
        gpus_per_node=0,
        extra=tuple(without_gpus(options.extra)),
        seeds=f"0-{options.preprocess_parts - 1}" if options.preprocess_parts > 1 else None,
    )


def evaluate_job(options: JobOptions) -> JobOptions:
    """Returns what the job that evaluates a run asks for: one process, with a GPU if trainers have some."""
    return replace(
        options, job_name=f"{options.job_name}-evaluate", gpus_per_node=min(options.gpus_per_node, 1)
    )


def preprocess_script(options: JobOptions, words: Sequence[str]) -> str:
    """Returns the script that runs `persia-hpc preprocess` with these arguments, in parts if asked for."""
    parts = options.preprocess_parts
    part = f' --part "$SLURM_ARRAY_TASK_ID/{parts}"' if parts > 1 else ""
    lines = [
        "export POLARS_MAX_THREADS=$SLURM_CPUS_PER_TASK",
        f"persia-hpc preprocess {shlex.join(words)}{part}",
    ]
    return _script("Prepares the data of a run; what is there already isn't made again.", options, lines)


def evaluate_script(options: JobOptions, words: Sequence[str], run_dir: str) -> str:
    """Returns the script that runs `persia-hpc evaluate` with these arguments on a run, or each seed's."""
    seed = "" if options.seeds is None else f"/{seed_directory('$SLURM_ARRAY_TASK_ID')}"
    command = shlex.join(words)
    lines = [
        f"run_dir={shlex.quote(run_dir)}{seed}",
        "export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK",
        f'persia-hpc evaluate "$run_dir"{" " * bool(command)}{command} | tee "$run_dir/{EVALUATION}.partial"',
        f'mv "$run_dir/{EVALUATION}.partial" "$run_dir/{EVALUATION}"',
    ]
    return _script("Evaluates a run that is complete.", options, lines)


def _script(title: str, options: JobOptions, lines: Sequence[str]) -> str:
    header = [
        f"--job-name={options.job_name}",
        f"--output={log_file(options)}",
        "--open-mode=append",
        "--requeue",
        *([f"--array={options.seeds}"] if options.seeds is not None else []),
        *([f"--account={options.account}"] if options.account else []),
        *([f"--partition={options.partition}"] if options.partition else []),
        f"--time={options.time}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={options.cpus_per_task}",
        *([f"--gpus-per-node={options.gpus_per_node}"] if options.gpus_per_node else []),
    ]
    header += options.extra
    return "\n".join(
        [
            "#!/bin/bash",
            f"# {title}",
            "# Made by `persia-hpc submit`, and yours to change.",
            *(f"#SBATCH {line}" for line in header),
            "",
            *site_lines(options),
            "set -euo pipefail",
            *lines,
            "",
        ]
    )
