"""Decides what a run starts from: its newest readable checkpoint, another run's, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from persia_hpc.checkpoint.choose import init_source
from persia_hpc.checkpoint.foreign import foreign_source, load_foreign
from persia_hpc.checkpoint.manifest import read_manifest
from persia_hpc.checkpoint.rows import load_initial_rows, load_rows
from persia_hpc.config import Config
from persia_hpc.errors import EXIT_DATA, DataError, PersiaError
from persia_hpc.parameter_server.engine import ParameterServer

T = TypeVar("T")


def first_sound_checkpoint(
    paths: Iterable[Path],
    prepare: Callable[[Path | None], T],
    say: Callable[[str], None],
    use: Callable[[Path], None],
) -> T:
    """Returns the result of `prepare` for the first checkpoint that it doesn't find damaged, or for None.

    prepare: called with one checkpoint after another, with None if there is none; a damaged one makes it fail
    with DataError's exit code. use: called with the chosen checkpoint. say: called with what happens.

    Raises DataError if all checkpoints are damaged.
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


def load_start(server: ParameterServer, config: Config, start: Path | None) -> None:
    """Gives a new server the rows of the checkpoint `start`, from which the run continues.

    Without one it gets the rows of `checkpoint.init_from`, if that is set.
    """
    if start is not None:
        load_rows(start, server)
        manifest = read_manifest(start)
        # What all servers have counted is from now on the first one's.
        counters = manifest["counters"] if server.server_rank == 0 else {"ledger": {}, "staleness": {}}
        server.restore(manifest["step"], counters["ledger"], counters["staleness"])
    elif (source := init_source(config, "embeddings")) is not None:
        load_initial_rows(source, server)
    elif (tables := foreign_source(config)) is not None:
        load_foreign(tables, config, server)
