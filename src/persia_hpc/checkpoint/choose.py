"""Chooses among checkpoints: one that a path names, and one that a run can continue from."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from persia_hpc.config import Config
from persia_hpc.errors import DataError, UserError
from persia_hpc.printable import say
from persia_hpc.samples.encoding import WAY_OUT, short
from persia_hpc.samples.identity import SampleRange
from persia_hpc.samples.schema import DatasetSchema

from .files import best_name, whole_checkpoints
from .foreign import check_foreign, foreign_source
from .manifest import read_manifest, read_schema
from .matching import check_match
from .names import BEST, BEST_NOTE, MANIFEST

LOG = logging.getLogger("persia_hpc")


def find_checkpoint(path: Path) -> Path:
    """Returns `path` if it is a checkpoint, else of the run directory that it is the best or the latest one.

    The best one is what `train.keep_best` keeps. `--resume` doesn't ask here: it continues from the latest.
    Raises UserError if it is neither, or if the best checkpoint isn't there.
    """
    if (path / MANIFEST).exists():
        return path.resolve()
    if (best := best_name(path)) is not None:
        if not (path / best / MANIFEST).exists():
            raise UserError(
                f"{path / BEST} points to {best}, which isn't there; name another checkpoint, such as "
                f"{path / 'latest'}"
            )
        return (path / best).resolve()
    if (path / "latest" / MANIFEST).exists():
        return (path / "latest").resolve()
    found = whole_checkpoints(path)
    if found:
        return found[0]
    raise UserError(
        f"{path} is neither a checkpoint nor a run with one; expected something like runs/1 or runs/1/latest"
    )


def say_choice(path: Path) -> None:
    """Tells the user, on standard error, if `find_checkpoint` takes a run's best checkpoint for `path`."""
    best, latest = best_name(path), path / "latest"
    if best is None or (path / MANIFEST).exists():
        return
    value = ""
    odd = (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)
    with contextlib.suppress(*odd):  # the note only says more
        note = json.loads((path / BEST_NOTE).read_text())
        if note["checkpoint"] == best and note["metric"].isprintable():
            value = f" (valid {note['metric']} {note['value']:.4f})"
    last = latest.is_symlink() and latest.readlink().name == best
    other = "it is also the latest" if last else f"the latest is {latest}"
    say(f"{path}: using the best checkpoint, {best}{value}; {other}")


def init_source(config: Config, part: str) -> Path | None:
    """Returns the checkpoint from which a new run takes its "dense" part or its "embeddings", or None.

    None too if it takes its embeddings from files of others (`checkpoint.foreign`).
    Raises UserError if `checkpoint.init_from` names none.
    """
    settings = config.checkpoint
    if settings.init_from is None or settings.init_parts not in ("all", part):
        return None
    if foreign_source(config) is not None:
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

    Without one it checks what a new run begins with, as `check_initial`.
    Raises UserError if the run is to continue from it and doesn't fit.
    """
    found = whole_checkpoints(Path(run_dir))[:1] if config.checkpoint.resume and run_dir is not None else []
    for path in found:
        with contextlib.suppress(DataError):  # another will be tried then
            check_match(str(path), read_manifest(path), config, schema, num_samples, data)
    if not found:
        check_initial(config, schema)


def check_initial(config: Config, schema: DatasetSchema) -> None:
    """Checks that the rows with which a new run begins (`checkpoint.init_from`) are of its data's encoding.

    Of the dense part alone it only warns: it is trained further, and a wrong id can't be in it. Files of
    others say no encoding; of them it checks that they have tables that fit.
    Raises UserError if they are of another one, or don't fit.
    """
    if config.checkpoint.init_from is None or check_foreign(config, schema):
        return
    source = find_checkpoint(Path(config.checkpoint.init_from))
    other = read_schema(read_manifest(source)).encoding
    if None in (other, schema.encoding) or other == schema.encoding:
        return
    what = f"{short(str(other))}, this run's data have {short(str(schema.encoding))}"
    if config.checkpoint.init_parts != "dense":
        raise UserError(
            f"checkpoint.init_from: {source} was trained on data of encoding {what}: its rows would be taken "
            f'for other ids; {WAY_OUT}; or take its dense part alone: checkpoint.init_parts = "dense"'
        )
    LOG.warning(
        "%s was trained on data of encoding %s: a number may mean another value; %s", source, what, WAY_OUT
    )
