"""Makes `summary.json`: what a run was and did. Schema in docs/summary.md; its fields are a contract."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persia_hpc.config import Config
from persia_hpc.durable import replace_whole

from .events import without_nan
from .outcomes import JobOutcome, ServerOutcome, TrainerOutcome, WorkerOutcome

SCHEMA_VERSION = 1


def package_versions() -> dict[str, str]:
    """Versions of everything whose change could change a result."""
    from importlib.metadata import PackageNotFoundError, version

    result = {}
    for name, package in {
        "package": "persia-hpc",
        "mpi4py": "mpi4py",
        "torch": "torch",
        "horovod": "horovod",
        "numpy": "numpy",
        "h5py": "h5py",
    }.items():
        try:
            result[name] = version(package)
        except PackageNotFoundError:
            result[name] = "not installed"
    return result


def _train_seconds(workers: Sequence[WorkerOutcome], servers: Sequence[ServerOutcome]) -> float:
    """Returns the seconds from first pull to last apply, summed over segments.

    Evaluations and checkpoints lie between segments.
    """
    total = 0.0
    for first in sorted({int(s) for w in workers for s in w.first_pull}):
        begin = min(w.first_pull[first] for w in workers if first in w.first_pull)
        ends = [s.last_apply[first] for s in servers if first in s.last_apply]
        total += max(0.0, max(ends, default=begin) - begin)
    return total


def _over_ranks(
    seconds: Mapping[str, Sequence[Mapping[str, float]]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns mean and largest over the ranks of each role."""
    return {
        role: {
            name: {"mean": sum(s[name] for s in each) / len(each), "max": max(s[name] for s in each)}
            for name in each[0]
        }
        for role, each in seconds.items()
        if each
    }


def _status(trainer: TrainerOutcome) -> str:
    if trainer.interrupted:
        return "interrupted"
    return "completed" if trainer.stop_reason is None else "stopped"


def _skipped(config: Config, trainers: Sequence[TrainerOutcome]) -> int:
    """Returns the skipped steps: all trainers skip the same ones, but in `async` each its own."""
    counts = [t.skipped_steps for t in trainers]
    return sum(counts) if config.mode == "async" else counts[0]


def _staleness(config: Config, outcome: JobOutcome) -> dict[str, Any]:
    histogram: Counter[int] = Counter()
    for server in outcome.servers:
        histogram.update(server.histogram)
    return {
        "bound": 0 if config.synchronous else config.staleness_bound,
        "max": max([*histogram, *(w.max_staleness for w in outcome.workers)], default=0),
        "histogram": {str(k): histogram[k] for k in sorted(histogram)},
    }


def _embedding(servers: Sequence[ServerOutcome]) -> dict[str, float]:
    rows = sum(s.rows for s in servers)
    num_bytes = sum(s.bytes for s in servers)
    overhead = num_bytes - sum(s.row_bytes for s in servers)
    return {
        "rows": rows,
        "bytes": num_bytes,
        "overhead_bytes_per_row": overhead / rows if rows else 0.0,
        "disk_rows": sum(s.disk_rows for s in servers),
        "disk_bytes": sum(s.disk_bytes for s in servers),
        **{name: sum(s.ledger[name] for s in servers) for name in servers[0].ledger},
    }


def make_summary(config: Config, outcome: JobOutcome, *, mpi_library: str) -> dict[str, Any]:
    """Puts together what the ranks have counted; of the trainers, trainer 0 knows what they all did."""
    trainer = outcome.trainers[0]
    by_role = outcome.by_role()
    times = {role: [o.times for o in each if o.times is not None] for role, each in by_role.items()}
    seconds = _train_seconds(outcome.workers, outcome.servers)
    checkpoints = dict(trainer.checkpoints)
    samples = trainer.samples - trainer.first_samples
    return {
        "schema_version": SCHEMA_VERSION,
        "status": _status(trainer),
        "stop_reason": trainer.stop_reason,
        "seed": config.seed,
        "config_sha256": config.sha256,
        "mode": config.mode,
        "reducer": config.reducer(len(outcome.trainers)),
        "roles": {f"{role}s": len(each) for role, each in by_role.items()},
        "steps": trainer.steps,
        "samples": trainer.samples,
        "skipped_steps": _skipped(config, outcome.trainers),
        "this_run": {"steps": trainer.steps - trainer.first_step, "samples": samples},
        "train_seconds": seconds,
        "evaluate_seconds": trainer.evaluate_seconds,
        "compile_seconds": max(t.compile_seconds for t in outcome.trainers),
        "checkpoint_seconds": checkpoints.pop("paused_seconds", 0.0),
        "checkpoints": checkpoints,
        "export": trainer.export,
        "samples_per_second": samples / seconds if seconds else 0.0,
        "steady": trainer.steady,
        "valid": trainer.results.get("valid"),
        "test": trainer.results.get("test"),
        "progressive": trainer.results.get("progressive"),
        "best": trainer.best,
        "restored_step": trainer.restored_step,
        "staleness": _staleness(config, outcome),
        "embedding": _embedding(outcome.servers),
        "follow": trainer.follow,
        "wait_seconds": _over_ranks({role: [t.wait for t in each] for role, each in times.items()}),
        "phase_seconds": _over_ranks({role: [t.phases for t in each] for role, each in times.items()}),
        "versions": {**package_versions(), "mpi": mpi_library},
    }


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is either whole or not there, also after a crash."""
    replace_whole(path, (json.dumps(without_nan(value), indent=2) + "\n").encode())
