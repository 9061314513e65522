"""Small MPI jobs, several under one mpiexec."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.mpi import run_mpi
from tests.support.tiny import run_digest, tiny_config

PROGRAMS = Path(__file__).parents[1] / "system" / "programs"


def settings(data, run_dir, servers, workers, trainers, **changes):
    return tiny_config(
        data[0],
        **{
            "ranks": {"parameter_servers": servers, "embedding_workers": workers, "trainers": trainers},
            "run_dir": str(run_dir),
            "data.valid": [data[1]],
            "train.epochs": 2,
            **changes,
        },
    )


def run_cases(*cases):
    ranks = max(sum(c["ranks"].values()) for c in cases)
    run_mpi(ranks, PROGRAMS / "train_cases.py", json.dumps(cases), timeout=240)
    return [run_digest(Path(c["run_dir"])) for c in cases]


def summary(run_dir):
    return json.loads((Path(run_dir) / "summary.json").read_text())
