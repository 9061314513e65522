"""Jobs whose gradients are summed by other means, or in other pieces, end with the same bits."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tests.support.cases import run_cases, settings, summary
from tests.support.tiny import write_tiny


def test_two_trainers_end_alike_with_every_reducer(tmp_path: Path) -> None:
    """Interrupted or not, in whatever buckets, with a step that is skipped because of one trainer's loss."""
    data = write_tiny(tmp_path / "train.h5", 333), write_tiny(tmp_path / "valid.h5", 40, seed=1)
    changes = {"train.loss": "tests.support.models:nan_at_5_of_one", "train.evaluate_at_end": False}
    runs = {
        "mpi": {"train.reducer": "mpi"},
        "mpi, many buckets": {"train.reducer": "mpi", "train.bucket_bytes": 64},
        **(
            {"horovod, many buckets": {"train.reducer": "horovod", "train.bucket_bytes": 64}}
            if find_spec("horovod") is not None
            else {}
        ),
    }
    cases = []
    for name, reducer in runs.items():
        for steps in (7,) if name == "mpi" else (4, 7):  # the second resumes the first
            more = {**changes, **reducer, "train.max_steps": steps, "checkpoint.resume": steps == 7}
            cases.append(settings(data, tmp_path / name, 1, 1, 2, **more))
    cases.append(
        settings(
            data,
            tmp_path / "bf16",
            1,
            1,
            2,
            **changes,
            **runs["mpi"],
            **{"train.dense_wire": "bf16", "train.max_steps": 7},
        )
    )
    *digests, narrow = run_cases(*cases)
    assert len(set(digests)) == 1
    assert narrow != digests[0]
    for name, reducer in {**runs, "bf16": runs["mpi"]}.items():
        assert summary(tmp_path / name)["skipped_steps"] == 1
        assert summary(tmp_path / name)["reducer"] == reducer["train.reducer"]
