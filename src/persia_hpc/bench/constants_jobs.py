"""Corrects the cost model's constants by jobs under mpiexec, where each rank has a core of its own.

A trial in one process finds in its cache what it has just written itself. In a job another core has written
it, and it passes rings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persia_hpc.config import load_config
from persia_hpc.cost_model.constants import Constants
from persia_hpc.cost_model.costs import Costs, Dense, Job, count_costs
from persia_hpc.cost_model.predict import SERVER, TRAINER, WORKER
from persia_hpc.cost_model.work import batch_work
from persia_hpc.job.trial import Trial, count_batches
from persia_hpc.topology.roles import make_plan

from .train_jobs import run_job, w0_settings

SMALL_BATCH, SMALL_STEPS = 32, 2000
LARGE_BATCH, LARGE_STEPS = 4096, 400
Phase = tuple[str, str]  # role and phase
# Constants, and the phases that grow with the batch as they say. What a job does beside its phases ("other")
# grows as well: it touches and frees what passes.
GROWING: tuple[tuple[tuple[str, ...], tuple[Phase, ...]], ...] = (
    (("pull_row", "pull_byte"), ((SERVER, "pull"),)),
    (("push_row", "push_byte"), ((SERVER, "push"),)),
    (("dedup_id",), ((WORKER, "dedup"),)),
    (("worker_byte",), ((WORKER, "pull"), (WORKER, "feed"), (WORKER, "push"), (WORKER, "other"))),
    (("pool_id", "pool_byte"), ((TRAINER, "pool"),)),
    (("trainer_byte",), ((TRAINER, "push"), (TRAINER, "other"), (TRAINER, "allreduce"))),
)
WAITS = {
    SERVER: ("idle",),
    WORKER: ("idle", "read"),
    TRAINER: ("wait", "forward", "backward", "optimizer"),
}


@dataclass(frozen=True)
class SeenJob:
    """Holds the seconds of a job's steps by role and phase, and what is needed to predict them."""

    seconds: Mapping[Phase, float]
    job: Job

    def costs(self, constants: Constants) -> Costs:
        """Returns what these constants predict for it, but for the model."""
        return count_costs(dataclasses.replace(self.job, constants=constants))

    def busy(self, role: str) -> float:
        """Returns the seconds in which a role's rank did something other than wait, or compute the model."""
        return self.seconds[role, "total"] - sum(self.seconds[role, phase] for phase in WAITS[role])


def see_job(folder: Path, path: Path, batch: int, steps: int, constants: Constants) -> SeenJob:
    """Runs W0 on `path` with a server, a worker and a trainer."""
    settings = w0_settings(path, batch, batch * steps)
    config = load_config(settings)
    trial = Trial(config)
    source = trial.sources["train"]
    counts = count_batches(trial.stream.worker, source.read(0, source.num_samples), batch)
    work = batch_work(config, trial.layout, trial.schema, batch, counts)
    new = new_share(trial, steps * work.rows)
    summary = run_job(folder, settings)
    plan = make_plan({"parameter_servers": 1, "embedding_workers": 1, "trainers": 1}, [0] * 3)
    seconds = {
        (role, phase): each["mean"] / summary["steps"]
        for role, phases in summary["phase_seconds"].items()
        for phase, each in phases.items()
    }
    model = Dense(0, 0, 0, "")
    return SeenJob(seconds, Job(config, trial.layout, plan, work, model, constants, new_rows=new))


def correct(constants: Constants, small: SeenJob, large: SeenJob) -> Constants:
    """Returns constants that predict how phases grow from a small batch to a large one, and what is left.

    The rest of the small job is what a step costs each role beside its work.
    """
    grown: dict[str, Any] = {}
    less, more = small.costs(constants).seconds, large.costs(constants).seconds
    for names, phases in GROWING:
        seen = sum(large.seconds[phase] - small.seconds[phase] for phase in phases)
        said = sum(more[role][phase] - less[role][phase] for role, phase in phases)
        factor = max(0.0, seen / said) if said > 0 else 1.0  # the trials may have found nothing that grows
        grown |= {name: factor * getattr(constants, name) for name in names}
    constants = dataclasses.replace(constants, **grown)
    costs = small.costs(constants)
    rest = {role: 1e9 * max(0.0, small.busy(role) - costs.total(role)) for role in WAITS}
    return dataclasses.replace(
        constants, worker_batch=rest[WORKER], server_step=rest[SERVER], trainer_step=rest[TRAINER]
    )


def new_share(trial: Trial, pulled_rows: float) -> float:
    """Returns how many rows a job that sees all its data makes, as a share of all rows that it pulls."""
    source = trial.sources["train"]
    sample = source.read(0, source.num_samples)
    return sum(count_batches(trial.stream.worker, sample, sample.num_samples).rows) / pulled_rows
