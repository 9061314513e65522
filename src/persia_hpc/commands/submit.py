"""persia-hpc submit: writes the sbatch script of a run and hands it to Slurm."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType

from persia_hpc.config import load_config, parse_set
from persia_hpc.durable import replacing
from persia_hpc.errors import EXIT_OK, UserError
from persia_hpc.launch.slurm import job_script, log_file, run_directory
from persia_hpc.launch.slurm_chain import evaluate_job, evaluate_script, preprocess_job, preprocess_script
from persia_hpc.launch.slurm_options import SLURM_ARRAY_SIZE, JobOptions
from persia_hpc.reporting.seeds import seed_directory

from . import evaluate, preprocess

SUMMARY = "write a Slurm job for a run and submit it"
DESCRIPTION = """\
Writes an sbatch script from the configuration, shows or submits it, and says where the results will be. The
job requeues itself before its time limit and goes on from its last checkpoint until the training is done.
--preprocess and --evaluate submit jobs before and behind it, each of which starts when the one before has
succeeded; --seeds trains once for each seed, as an array of jobs."""
EXAMPLES = """\
examples:
  persia-hpc submit train.toml --nodes 2 --gpus-per-node 4 --time 04:00:00 --dry-run
  persia-hpc submit train.toml --nodes 2 --gpus-per-node 4 --time 04:00:00 --account proj --env-file env.sh
  persia-hpc submit train.toml --nodes 4 --cpu-nodes 2 --cpu-partition cpu --partition gpu
  persia-hpc submit train.toml --extra=--constraint=ib --extra=--exclusive --set train.epochs=2
  persia-hpc submit train.toml --extra=--mail-type=END,FAIL --extra=--licenses=lustre --extra=--exclude=n17
  persia-hpc submit train.toml --seeds 1-5 --evaluate
  persia-hpc submit train.toml --preprocess 'table clicks.toml --out data --shard-bytes 1GiB' \\
      --preprocess-parts 8 --evaluate='--split valid'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options; their names and defaults are the fields of `JobOptions`."""
    default = JobOptions("")
    parser.add_argument("config", metavar="CONFIG", help="TOML file (docs/configuration.md)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="replaces a key of the configuration",
    )

    def add(flag: str, meaning: str, **more: object) -> None:
        name = flag.lstrip("-").replace("-", "_")
        value = getattr(default, name)
        shown = "" if value is None or value == () else f" (default: {value})"
        kind = {"type": int, "metavar": "N"} if isinstance(value, int) else {"metavar": "TEXT"}
        parser.add_argument(flag, default=value, help=meaning + shown, **{**kind, **more})  # type: ignore[arg-type]

    add("--nodes", "nodes of the job, with --cpu-nodes those of the trainers")
    add("--time", "time limit of one start; a longer training takes several", metavar="D-HH:MM:SS")
    add("--job-name", "name of the job and its log")
    add("--partition", "partition of the nodes")
    add("--account", "whom the time is charged to")
    add("--gpus-per-node", "GPUs of a node; each trainer takes one")
    add("--cpus-per-task", "cores of a rank, and threads of a trainer")
    add("--cpu-nodes", "as a heterogeneous job: so many nodes without GPUs for servers and workers")
    add("--cpu-partition", "partition of the --cpu-nodes")
    add("--run-dir", "directory of the results (default: runs/job-ID)", metavar="DIR")
    add(
        "--mpi",
        "srun's --mpi, by the MPI library: pmi2, pmix, cray_shasta (default: SLURM_MPI_TYPE, or the site's)",
    )
    add("--launcher", "what starts the ranks", choices=("srun", "mpiexec"), metavar="{srun,mpiexec}")
    add("--signal-seconds", "time before the limit at which the job stops and writes a checkpoint")
    add("--max-restarts", "how often the job requeues itself at most")
    add("--seeds", "trains once for each of these seeds, as an array of jobs: 1-5, 1,4,9, 1-20%%4")
    add(
        "--preprocess",
        "a job before it: the arguments of `persia-hpc preprocess`, as one word",
        metavar="ARGUMENTS",
    )
    add("--preprocess-parts", "makes that an array of so many jobs, each with --part I/N")
    add(
        "--evaluate",
        "a job behind it: the arguments of `persia-hpc evaluate` after the run, if any, as one word",
        metavar="ARGUMENTS",
        nargs="?",
        const="",
    )
    add(
        "--env-file", "shell file that loads modules and sets variables (slurm/env.sh is one)", metavar="FILE"
    )
    parser.add_argument(
        "--extra",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of sbatch, for each job: --extra=--exclusive",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")


def run(options: argparse.Namespace) -> int:
    """Prints the script, or submits it and prints the job's id and where its files are.

    Raises UserError for bad input.
    """
    config = load_config(options.config, parse_set(options.settings))
    if options.env_file and not Path(options.env_file).is_file():
        raise UserError(f"--env-file {options.env_file}: there is no such file; expected a shell script")
    given = {f.name: getattr(options, f.name) for f in fields(JobOptions) if f.name != "path"}
    given |= {"extra": tuple(options.extra), "settings": tuple(options.settings)}
    if options.env_file and "/" not in options.env_file:
        given["env_file"] = f"./{options.env_file}"  # `source` would look for a bare name on PATH
    job = JobOptions(**given, path=_missing_path())
    script = job_script(config, job)
    before = _words("--preprocess", preprocess, job.preprocess)
    behind = _words("--evaluate", evaluate, job.evaluate, "RUN")[1:]
    if options.dry_run:
        if before:
            print(preprocess_script(preprocess_job(job), before))
        print(script, end="")
        if job.evaluate is not None:
            print("\n" + evaluate_script(evaluate_job(job), behind, run_directory(job, "ID")), end="")
        return EXIT_OK
    first = None
    if before:
        data_job = preprocess_job(job)
        first = _sbatch(preprocess_script(data_job, before), data_job)
        print(f"submitted job {first} for the data; log {log_file(data_job, first)}")
    job_id = _sbatch(script, job, *_behind("afterok", first), earlier=[] if first is None else [first])
    directory = Path(run_directory(job, job_id))
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in {"job.sbatch": script, "slurm_job": f"{job_id}\n"}.items():
        with replacing(directory / name) as partial:
            partial.write_text(text)
    print(f"submitted job {job_id}")
    print(f"  log       {log_file(job, job_id)}")
    if job.seeds is None:
        print(f"  results   {directory}")
        print(f"  progress  persia-hpc status {directory}")
    else:
        print(f"  results   {directory / seed_directory('N')} for each seed N")
        print(f"  summary   persia-hpc report {directory}")
    if job.evaluate is not None:
        last_job = evaluate_job(job)
        text = evaluate_script(last_job, behind, str(directory))
        when = "afterok" if job.seeds is None else "aftercorr"
        last = _sbatch(text, last_job, *_behind(when, job_id), earlier=[*filter(None, [first]), job_id])
        print(f"submitted job {last} for the evaluation; log {log_file(last_job, last)}")
    return EXIT_OK


def _words(flag: str, command: ModuleType, text: str | None, *first: str) -> list[str]:
    """Returns the arguments of another command, which its parser takes.

    Raises UserError for those it doesn't.
    """
    if text is None:
        return []
    parser = argparse.ArgumentParser(prog=f"persia-hpc submit {flag}", add_help=False)
    command.add_arguments(parser)
    said = io.StringIO()
    try:
        words = [*first, *shlex.split(text)]
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parser.parse_args(words)
    except ValueError as error:
        raise UserError(f"{flag} {text!r}: {error}") from None
    except SystemExit:
        reason = said.getvalue().strip().rpartition("\n")[2].partition("error: ")[2]
        what = reason or "expected no --help"
        raise UserError(f"{flag} {text!r}: {what}; it takes the arguments of that command") from None
    return words


def _behind(when: str, job_id: str | None) -> list[str]:
    """Returns the options of sbatch for a job that waits for another, and ends if that one fails."""
    return [] if job_id is None else [f"--dependency={when}:{job_id}", "--kill-on-invalid-dep=yes"]


def _missing_path() -> str | None:
    """The folder of this environment's programs, unless the job finds the same `persia-hpc` by PATH."""
    here = Path(sys.executable).parent
    found = shutil.which("persia-hpc")
    if found is not None and Path(found).parent == here:
        return None
    return str(here) if (here / "persia-hpc").exists() else None


def _sbatch(script: str, job: JobOptions, *options: str, earlier: Sequence[str] = ()) -> str:
    """Submits the script and returns the job's id. earlier: the ids of jobs of the chain before it.

    Raises UserError, with what was submitted already, if it isn't taken.
    """
    program = shutil.which("sbatch")
    if program is None:
        raise UserError(
            "there is no sbatch on PATH: submit on a login node of a Slurm cluster, or print the script with "
            "--dry-run"
        )
    if job.run_dir:
        try:
            Path(job.run_dir).mkdir(parents=True, exist_ok=True)  # Slurm doesn't make the log's folder
        except OSError as error:
            raise UserError(f"--run-dir {job.run_dir}: can't be made ({error.strerror})") from None
    # Inside another job, its variables would be taken for options of this one.
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k in _KEPT}
    done = subprocess.run(
        [program, "--parsable", *options], input=script, env=env, text=True, capture_output=True
    )
    if done.returncode != 0:
        said = " ".join(line.removeprefix("sbatch: ") for line in done.stderr.split("\n") if line)
        ids = " ".join(earlier)
        submitted = f"; of its chain Slurm has already {ids} (scancel {ids} takes them back)" if ids else ""
        reason = f"{said or f'exit code {done.returncode}'}{_array_hint(job.seeds, said)}"
        raise UserError(f"sbatch refused the job {job.job_name}: {reason}{submitted}")
    return done.stdout.strip().partition(";")[0]


def _array_hint(seeds: str | None, said: str) -> str:
    """Returns why Slurm may have refused an array; "" if its indices are in bounds."""
    largest = max(map(int, re.findall(r"\d+", (seeds or "0").partition("%")[0])))
    if largest < SLURM_ARRAY_SIZE or "array" not in said.lower():
        return ""
    return (
        f"; the array {seeds} has an index of {largest}, and the largest that Slurm takes is "
        f"MaxArraySize - 1, {SLURM_ARRAY_SIZE - 1} by default (scontrol show config)"
    )


_KEPT = ("SLURM_CONF", "SLURM_MPI_TYPE")
