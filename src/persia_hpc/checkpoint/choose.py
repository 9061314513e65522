"""Chooses among checkpoints: one that a path names, and one that a run can continue from."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from persia_hpc.config import Config
from persia_hpc.errors import DataError, UserError
from persia_hpc.samples.identity import SampleRange
from persia_hpc.samples.schema import DatasetSchema

from .files import whole_checkpoints
from .manifest import read_manifest, read_schema
from .matching import check_match


def find_checkpoint(path: Path) -> Path:
    """Returns `path` if it is a checkpoint, else the latest one of the run directory that it is.

    Raises UserError if it is neither.
    """
    for candidate in (path, path / "latest"):
        if (candidate / "manifest.json").exists():
            return candidate.resolve()
    found = whole_checkpoints(path)
    if found:
        return found[0]
    raise UserError(
        f"{path} is neither a checkpoint nor a run with one; expected something like runs/1 or runs/1/latest"
    )


def init_source(config: Config, part: str) -> Path | None:
    """Returns the checkpoint from which a new run takes its "dense" part or its "embeddings", or None.

    Raises UserError if `checkpoint.init_from` names none.
    """
    settings = config.checkpoint
    if settings.init_from is None or settings.init_parts not in ("all", part):
        return None
    return find_checkpoint(Path(settings.init_from))


def resumed_schema(config: Config, run_dir: str | Path | None) -> DatasetSchema | None:
    """Returns the schema of the data of the run that continues in `run_dir`, None if no run does."""
    if config.checkpoint.resume and run_dir is not None:
        for path in whole_checkpoints(Path(run_dir)):
            with contextlib.suppress(DataError):
                return read_schema(read_manifest(path))
    return None


def refuse_mismatch(
    config: Config,
    run_dir: str | Path | None,
    schema: DatasetSchema,
    num_samples: Mapping[str, int],
    data: Sequence[SampleRange] = (),
) -> None:
    """Checks, before anything is changed, that the run fits the newest checkpoint in `run_dir`.

    Raises UserError if the run is to continue from it and doesn't fit.
    """
    if not config.checkpoint.resume or run_dir is None:
        return
    for path in whole_checkpoints(Path(run_dir))[:1]:
        with contextlib.suppress(DataError):  # another will be tried then
            check_match(str(path), read_manifest(path), config, schema, num_samples, data)
