"""What a run begins with: the newest checkpoint that can be read of its own, another run's, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from persia_hpc.checkpoint.files import read_manifest, read_schema, whole_checkpoints
from persia_hpc.checkpoint.matching import check_match
from persia_hpc.checkpoint.rows import load_initial_rows, load_rows
from persia_hpc.config import Config
from persia_hpc.errors import EXIT_DATA, DataError, PersiaError, UserError
from persia_hpc.samples.schema import DatasetSchema

if TYPE_CHECKING:
    from persia_hpc.parameter_server.engine import ParameterServer

T = TypeVar("T")


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` is, or the latest one of the run directory that it is; UserError if none."""
    for candidate in (path, path / "latest"):
        if (candidate / "manifest.json").exists():
            return candidate.resolve()
    found = whole_checkpoints(path)
    if found:
        return found[0]
    raise UserError(
        f"{path} is neither a checkpoint nor a run with one; expected something like runs/1 or runs/1/latest"
    )


def first_sound_checkpoint(
    paths: Iterable[Path],
    prepare: Callable[[Path | None], T],
    say: Callable[[str], None],
    use: Callable[[Path], None],
) -> T:
    """What `prepare` makes of the first of the checkpoints that it doesn't find damaged (exit code of
    DataError), or of None if there is no checkpoint. DataError if all of them are. `use` is called with it.
    """
    damaged: list[Path] = []
    for path in paths:
        try:
            prepared = prepare(path)
        except PersiaError as error:
            if error.exit_code != EXIT_DATA:
                raise
            say(str(error))
            damaged.append(path)
            continue
        use(path)
        say(f"goes on from {path}")
        return prepared
    if damaged:
        raise DataError(
            f"none of the {len(damaged)} checkpoints in {damaged[0].parent} can be read; move them away to "
            "start anew"
        )
    return prepare(None)


def refuse_mismatch(
    config: Config, run_dir: str | Path | None, schema: DatasetSchema, num_samples: Mapping[str, int]
) -> None:
    """UserError if the run is to go on from a checkpoint that doesn't fit; before anything is changed."""
    if not config.checkpoint.resume or run_dir is None:
        return
    for path in whole_checkpoints(Path(run_dir))[:1]:
        with contextlib.suppress(DataError):  # another will be tried then
            check_match(str(path), read_manifest(path), config, schema, num_samples)


def resumed_schema(config: Config, run_dir: str | Path | None) -> DatasetSchema | None:
    """The schema of the data of the run that goes on in `run_dir`; None if there is none."""
    if config.checkpoint.resume and run_dir is not None:
        for path in whole_checkpoints(Path(run_dir)):
            with contextlib.suppress(DataError):
                return read_schema(read_manifest(path))
    return None


def load_start(server: ParameterServer, config: Config, start: Path | None) -> None:
    """Gives a new server the rows of the checkpoint `start`, that the run goes on from; without one those of
    `checkpoint.init_from`, if that is set.
    """
    if start is not None:
        load_rows(start, server)
        manifest = read_manifest(start)
        # What all servers have counted is from now on the first one's.
        counters = manifest["counters"] if server.server_rank == 0 else {"ledger": {}, "staleness": {}}
        server.restore(manifest["step"], counters["ledger"], counters["staleness"])
    elif (source := init_source(config, "embeddings")) is not None:
        load_initial_rows(source, server)


def init_source(config: Config, part: str) -> Path | None:
    """The checkpoint that a new run takes its "dense" part or its "embeddings" from, None if from none."""
    settings = config.checkpoint
    if settings.init_from is None or settings.init_parts not in ("all", part):
        return None
    return find_checkpoint(Path(settings.init_from))
