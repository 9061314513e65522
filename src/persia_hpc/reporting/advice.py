"""Says where a run's time went, and what to change, by the rules of the cost model (docs/scaling.md).

The slowest stage is always busy and the others wait for it; one more rank of a role takes its share of that
role's work. The seconds are not modelled here, but the run's own.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from persia_hpc.cost_model.predict import SERVER, TRAINER, WORKER, Stage

from .run_record import RunRecord

WAITS = {SERVER: ("idle",), WORKER: ("idle", "read"), TRAINER: ("wait",)}
# What each trainer does once in a step, however small its part of the batch is.
WHOLE = ("allreduce", "optimizer")
SHOWN = {SERVER: "parameter servers", WORKER: "embedding workers", TRAINER: "trainers"}
STARVED = 0.15  # of its time that a trainer waits for batches before that is worth a word
WORTH = 1.05  # what one more rank must bring at least to be named
UNEVEN = 1.5  # times the mean that the busiest rank of a role works


@dataclass(frozen=True)
class Share:
    """Holds a part of a run's time in seconds, with the name of the field of summary.json that says it."""

    label: str
    field: str
    seconds: float


def spent(run: RunRecord) -> list[Share]:
    """Returns what a run's time went into, as far as its summary says."""
    fields = {
        "training": "train_seconds",
        "evaluations": "evaluate_seconds",
        "checkpoints": "checkpoint_seconds",
        "waiting for files": "follow.wait_seconds",
    }
    found = [(label, field, run.number(field)) for label, field in fields.items()]
    return [Share(label, field, max(0.0, value)) for label, field, value in found if value is not None]


def stages(run: RunRecord) -> list[Stage]:
    """Returns the seconds that each role works in a step, by the mean over its ranks, slowest first."""
    steps = run.number("this_run.steps") or 0
    found = []
    for role, waits in WAITS.items():
        phases = run.phases(role)
        if phases and steps > 0:
            busy = sum(mean for phase, (mean, _) in phases.items() if phase not in waits)
            found.append(Stage(SHOWN[role], busy / steps))
    return sorted(found, key=lambda stage: -stage.seconds)


def advice(run: RunRecord) -> list[str]:
    """Returns sentences on what a run waited for and what would make it faster, the weightiest first."""
    return [*_of_stages(run), *_of_ranks(run), *_of_pauses(run), *_of_rows(run)]


def _share(run: RunRecord, role: str, *names: str) -> float:
    """Returns the share of a role's time that phases took, 0 if it isn't known."""
    phases = run.phases(role)
    total = sum(mean for mean, _ in phases.values())
    return sum(phases[name][0] for name in names if name in phases) / total if total > 0 else 0.0


def _of_stages(run: RunRecord) -> Iterator[str]:
    if not run.phases(TRAINER):
        return
    waited, reading = _share(run, TRAINER, "wait"), _share(run, WORKER, "read")
    if not run.phases(WORKER):  # in one process
        own = _share(run, TRAINER, "read", "dedup")
        yield f"All roles ran in one process, which waited {own:.0%} of its time for samples."
        return
    if waited < STARVED:
        yield (
            f"The trainers are the bottleneck: they waited only {waited:.0%} of their time for batches. "
            + _about_trainers(run)
        )
        return
    causes = {
        SERVER: 1 - _share(run, SERVER, "idle"),
        WORKER: 1 - _share(run, WORKER, "idle", "read"),
        "reading": reading,
    }
    text = f"The trainers waited {waited:.0%} of their time for batches. "
    slowest = max(causes, key=lambda name: causes[name])
    if causes[slowest] < 0.5:
        yield text + _about_latency(run)
    elif slowest == "reading":
        yield (
            f"{text}The workers waited {reading:.0%} of theirs for their reading threads: read from a faster "
            "disk, or add embedding workers."
        )
    else:
        more = "server_threads, or parameter_servers" if slowest == SERVER else "embedding_workers"
        yield f"{text}The {SHOWN[slowest]} worked {causes[slowest]:.0%} of theirs: raise {more}."


def _about_trainers(run: RunRecord) -> str:
    phases = {phase: mean for phase, (mean, _) in run.phases(TRAINER).items() if phase not in WAITS[TRAINER]}
    name = max(phases, key=lambda phase: phases[phase], default="other")
    texts = {
        "allreduce": "Most of it is the sum of dense gradients: a larger batch_size makes it rarer, "
        'train.dense_wire = "bf16" smaller.',
        "optimizer": "Most of it is the dense optimizer: a larger batch_size makes it rarer.",
        "push": "Most of it is sending row gradients: see wire.gradients and wire.reuse_steps.",
    }
    return texts.get(name, f"Most of it is {name}: a GPU, train.threads or more trainers make it faster.")


def _about_latency(run: RunRecord) -> str:
    bound, histogram = run.number("staleness.bound"), run.histogram()
    pulls = sum(histogram.values())
    if bound is not None and pulls and histogram.get(int(bound), 0.0) > pulls / 2:
        change = f"a staleness_bound above {bound:g}"
        if bound == 0:
            same = ', or "fresh" for the same bits,' if run.summary.get("mode") == "sync" else ""
            change = f'mode = "hybrid"{same}'
        return (
            f"No role was busy most of the time, and {histogram[int(bound)] / pulls:.0%} of pulls were "
            f"answered at the bound: {change} lets more steps be under way."
        )
    return (
        "No role was busy most of the time: ranks that share cores wait for each other (fewer ranks, or more "
        "cores), or data.prefetch is small."
    )


def _of_ranks(run: RunRecord) -> Iterator[str]:
    """Yields what one more rank of the slowest role would bring, and roles whose ranks differ."""
    found = stages(run)
    step = (run.number("train_seconds") or 0.0) / max(1.0, run.number("this_run.steps") or 1.0)
    if len(found) > 1 and step > 0 and found[0].seconds > 0.5 * step:
        role = next(role for role, name in SHOWN.items() if name == found[0].name)
        gain = found[0].seconds / max(_with_one_more(run, role, found[0].seconds), found[1].seconds)
        if gain >= WORTH:
            yield (
                f"One {role.replace('_', ' ')} more, with a core of its own, would bring at most "
                f"{gain - 1:+.0%} samples/s; {_plan(run)} says it for a cluster."
            )
    for role, waits in WAITS.items():
        for phase, (mean, most) in run.phases(role).items():
            weighs = phase not in (*waits, "other", "allreduce") and _share(run, role, phase) > 0.1
            if weighs and most > UNEVEN * mean:
                yield (
                    f"One of the {SHOWN[role]} spent {most / mean:.1f} times the mean in {phase}: their work "
                    "is uneven, or its node is slower."
                )


def _with_one_more(run: RunRecord, role: str, seconds: float) -> float:
    """Returns the seconds of a role's step if it had one rank more."""
    count = run.number(f"roles.{role}s") or 1.0
    whole = _share(run, role, *WHOLE) / max(1e-9, 1 - _share(run, role, *WAITS[role])) * seconds
    return whole + (seconds - whole) * count / (count + 1)


def _plan(run: RunRecord) -> str:
    where = shlex.quote(str(run.directory))
    return f"persia-hpc plan {where}/config.toml --from {where}"


def _of_pauses(run: RunRecord) -> Iterator[str]:
    shares = spent(run)
    whole = sum(share.seconds for share in shares)
    texts = {
        "evaluate_seconds": "a larger train.evaluate_every or data.evaluate_batch_size saves some of it",
        "checkpoint_seconds": "a larger checkpoint.every or checkpoint.full_every saves some of it",
    }
    for share in shares:
        if share.field in texts and whole and share.seconds > 0.15 * whole:
            yield f"{share.seconds / whole:.0%} of the time went into {share.label}: {texts[share.field]}."


def _of_rows(run: RunRecord) -> Iterator[str]:
    pulled = run.number("embedding.pulled_rows") or 0.0
    texts = {
        "evicted_in_flight_rows": "were evicted before their gradient came: the tables are too small "
        "(tables.NAME.capacity)",
        "nonfinite_rows": "had a gradient that isn't finite: see docs/sharp_bits.md",
        "dropped_rows": "lost their gradient: a loop of your own ended in the middle of a segment",
    }
    for name, text in texts.items():
        rows = run.number(f"embedding.{name}") or 0.0
        if pulled and rows > 1e-4 * pulled:
            yield f"{rows / pulled:.2%} of the pulled rows {text}."
    if skipped := run.number("skipped_steps"):
        yield f"{skipped:,.0f} steps changed nothing, as something wasn't finite: see docs/sharp_bits.md."
