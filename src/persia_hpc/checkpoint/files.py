"""Creates, completes and removes the directory of a checkpoint.

A checkpoint is written into `step-XXXXXXXX.partial`, fsynced and renamed, and only then does `latest` point
to it: whatever is named `step-XXXXXXXX` is complete. Only files that a checkpoint consists of are ever
removed, and links are not followed: what they lead to belongs to somebody else. Nothing here is collective.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from persia_hpc.config import Config
from persia_hpc.durable import replace_whole, sync_path
from persia_hpc.errors import DataError, PersiaError
from persia_hpc.samples.identity import SampleRange
from persia_hpc.samples.schema import DatasetSchema

from .manifest import FORMAT_VERSION, WITH_COLD, file_sha256, read_manifest, sealed
from .names import (
    BEST,
    BEST_NOTE,
    LATEST,
    MANIFEST,
    PARTIAL,
    STEP_NAME,
    is_cold,
    is_part,
    is_shard,
    step_name,
    step_of,
)

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of linux/falloc.h
_NOTE = ".json"  # beside a part: its size and checksum, until they are in the manifest
_REMOVED = ".removed" + PARTIAL
_DAMAGED, _KEPT = ".damaged", ".kept"
_HALF_WRITTEN = re.compile(rf"{STEP_NAME.pattern}(\.removed)?\.partial")


def begin_checkpoint(run_dir: Path, step: int) -> Path:
    """Makes the directory that the parts of a checkpoint are written into.

    Raises PersiaError if it can't be made.
    """
    path = run_dir / f"{step_name(step)}{PARTIAL}"
    try:
        _make_way(path)  # of a job that died while it wrote
        path.mkdir(parents=True)
    except OSError as error:
        raise writing_failed(path, error) from error
    return path


def writing_failed(path: Path, error: OSError) -> PersiaError:
    """Returns the error that tells the user why a part can't be written, and what to do."""
    return PersiaError(
        f"can't write the checkpoint {path}: {_reason(error)}; those before are as they were. Make "
        "room (or lower checkpoint.keep), and go on with --resume"
    )


def _reason(error: OSError) -> str:
    text = error.strerror or str(error)
    number = re.search(r"errno = (\d+)", text)  # HDF5 says much around it
    return os.strerror(int(number[1])) if number else " ".join(text.split())


def reserve_space(path: Path, num_bytes: int) -> None:
    """Reserves disk space for a file that is about to grow.

    Where a file system can't reserve (EOPNOTSUPP), the free space is only compared with what is needed.
    Raises OSError (no space, quota) if there isn't enough.
    """
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    with path.open("rb+") as file:
        if fallocate(file.fileno(), _KEEP_SIZE, 0, max(1, num_bytes)) == 0:
            return
        number = ctypes.get_errno()
        room = os.fstatvfs(file.fileno())
    if number in (errno.EOPNOTSUPP, errno.ENOSYS):
        number = errno.ENOSPC if room.f_bavail * room.f_frsize < num_bytes else 0
    if number:
        raise OSError(number, f"{os.strerror(number)}, {num_bytes:,} bytes are needed")


def finish_part(path: Path, **more: Any) -> dict[str, Any]:
    """Fsyncs a part, and notes its size and checksum in a file beside it; returns the note.

    `finish_checkpoint` puts these notes into the manifest, together with `more`.
    """
    with ThreadPoolExecutor(1) as beside:
        synced = beside.submit(sync_path, path)
        note = {"bytes": path.stat().st_size, "sha256": file_sha256(path), **more}
        synced.result()
    note_part(path, note)
    return note


def note_part(path: Path, note: Mapping[str, Any]) -> None:
    """Notes the size and checksum of a part in a file beside it."""
    path.with_name(path.name + _NOTE).write_text(json.dumps(note))


def finish_checkpoint(
    directory: Path,
    *,
    step: int,
    config: Config,
    schema: DatasetSchema,
    num_samples: Mapping[str, int],
    versions: Mapping[str, str],
    base: str | None,
    data: Sequence[SampleRange] = (),
    portions: Sequence[Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """Completes a checkpoint: writes its manifest, renames its directory, moves `latest`.

    All parts must have been written. num_samples: of each split. base: name of the checkpoint whose changes
    this one holds, None for a full one. data: digests of the training samples. portions: with `data.follow`
    the files of each portion.
    """
    notes = [p for p in sorted(directory.glob(f"*{_NOTE}")) if is_part(p.name.removesuffix(_NOTE))]
    parts = {note.name.removesuffix(_NOTE): json.loads(note.read_text()) for note in notes}
    counters: dict[str, Counter[str]] = {"ledger": Counter(), "staleness": Counter()}
    for part in parts.values():
        for name, counter in counters.items():
            counter.update(part.pop(name, {}))
    manifest = {
        "format_version": WITH_COLD if any(map(is_cold, parts)) else FORMAT_VERSION,
        "step": step,
        "base": base,
        "shards": [name for name in parts if is_shard(name)],
        "files": parts,
        "counters": counters,
        "config": config.resolved(),
        "schema": _schema_fields(schema),
        "num_samples": dict(num_samples),
        "versions": dict(versions),
        **({"data": [dataclasses.asdict(r) for r in data]} if data else {}),
        **({} if portions is None else {"portions": portions}),
    }
    for note in notes:
        note.unlink()
    with (directory / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(sealed(manifest), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    final = directory.with_suffix("")
    _make_way(final)  # a damaged one, which this run didn't go on from
    sync_path(directory)
    directory.rename(final)
    _point(LATEST, final)
    return final


def _point(name: str, path: Path) -> None:
    """Makes the link `name` lead to a checkpoint of the same run."""
    link, aside = path.parent / name, path.parent / f"{name}{PARTIAL}"
    for place in (link, aside):
        if os.path.lexists(place) and not place.is_symlink():  # a copy made by a tool that follows links
            _move_aside(place, _KEPT)
    aside.unlink(missing_ok=True)
    aside.symlink_to(path.name)
    aside.replace(link)
    sync_path(path.parent)


def is_whole(run_dir: Path, step: int) -> bool:
    """Returns whether a run directory has a complete checkpoint of `step`."""
    return (run_dir / step_name(step) / MANIFEST).exists()


def name_best(run_dir: Path, best: Mapping[str, Any] | None) -> None:
    """Makes a complete checkpoint the best of its run, which `prune` keeps; with None there is no best one.

    best: its `step`, with the metric and value that made it the best, kept in a file beside the link.
    """
    if best is None:
        if best_name(run_dir) is not None:
            (run_dir / BEST).unlink()
        (run_dir / BEST_NOTE).unlink(missing_ok=True)
        return
    name = step_name(best["step"])
    replace_whole(run_dir / BEST_NOTE, (json.dumps({**best, "checkpoint": name}) + "\n").encode())
    _point(BEST, run_dir / name)


def best_name(run_dir: Path) -> str | None:
    """Returns the name of the best checkpoint of a run, None if none is kept as the best."""
    link = run_dir / BEST
    name = str(link.readlink()) if link.is_symlink() else ""
    return name if STEP_NAME.fullmatch(name) else None  # never a path out of the run directory


def make_newest(path: Path) -> None:
    """Makes a checkpoint the newest of its run, because the run continues from it.

    Checkpoints of later steps are damaged; they get other names, so that the run neither takes them for its
    own nor keeps them in place of good ones. `latest` points to `path` afterwards.

    Raises PersiaError if that can't be written.
    """
    try:
        for later in whole_checkpoints(path.parent):
            if step_of(later) > step_of(path):
                _move_aside(later, _DAMAGED)
        _point(LATEST, path)
    except OSError as error:
        raise PersiaError(
            f"can't make {path} the newest checkpoint: {_reason(error)}; make room, and go on with --resume"
        ) from error


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """Returns all complete checkpoints of a run directory, newest first."""
    found = [p for p in run_dir.glob("step-*") if STEP_NAME.fullmatch(p.name) and (p / MANIFEST).exists()]
    return sorted(found, key=step_of, reverse=True)


def prune(run_dir: Path, *, keep: int, keep_every: int) -> None:
    """Removes old checkpoints of a run.

    The newest `keep` stay, those of steps divisible by `keep_every` (0: none), the best one, and those on
    which a checkpoint that stays is based. Nothing is removed while the base of one that stays is unknown.
    """
    found, best = whole_checkpoints(run_dir), best_name(run_dir)
    kept = {p for i, p in enumerate(found) if i < keep or (keep_every and step_of(p) % keep_every == 0)}
    kept |= {p for p in found if p.name == best}
    bases = set()
    for path in kept:
        try:
            bases.add(read_manifest(path)["base"])
        except DataError:
            continue  # a damaged one has no use for a base
        except PersiaError:
            return  # one that can't be read at this moment may need its base
    for path in found:
        if path not in kept and path.name not in bases:
            remove_checkpoint(path)


def discard_partial(run_dir: Path) -> list[str]:
    """Removes checkpoints that a job left half-written or half-removed when it died.

    One without its manifest is damaged: it is kept under another name. Returns a text for each of these, and
    for whatever has the name of a half-written checkpoint and stays, because no run has made it.
    """
    told = []
    for path in sorted(run_dir.glob("step-*")):
        try:
            if _HALF_WRITTEN.fullmatch(path.name):
                remove_checkpoint(path)
            elif STEP_NAME.fullmatch(path.name) and _lacks_manifest(path):
                told.append(f"{path} has no {MANIFEST}: kept as {_move_aside(path, _DAMAGED).name}")
            if path.name.endswith(PARTIAL) and os.path.lexists(path):
                told.append(f"{path} stays: it is not, or not only, what a run writes there; move it away")
        except OSError as error:
            told.append(f"{path} stays: {error.strerror}")
    return told


def _lacks_manifest(path: Path) -> bool:
    return not path.is_symlink() and not (path / MANIFEST).exists() and any(map(_is_ours, path.glob("*")))


def remove_checkpoint(path: Path) -> None:
    """Removes the files of a checkpoint, and its directory if nothing else is in it.

    A link is removed, not what it leads to. The directory gets another name first: if the removal is
    interrupted, what is left is not taken for a complete or a damaged checkpoint.
    """
    if path.is_symlink():
        path.unlink()
        return
    if not path.is_dir():
        return
    entries = sorted(path.iterdir(), key=lambda p: p.name != MANIFEST)
    ours = [entry for entry in entries if _is_ours(entry)]
    if len(ours) == len(entries) and not path.name.endswith(PARTIAL):
        aside = path.with_name(path.name + _REMOVED)
        _make_way(aside)
        path.rename(aside)
        path, ours = aside, [aside / entry.name for entry in ours]
    for entry in ours:
        entry.unlink(missing_ok=True)
    if len(ours) == len(entries):
        path.rmdir()


def _is_ours(path: Path) -> bool:
    """Returns whether a run may have written this file of a checkpoint, by its name."""
    named = path.name == MANIFEST or is_part(path.name.removesuffix(_NOTE))
    return named and (path.is_symlink() or not path.is_dir())


def _make_way(path: Path) -> None:
    """Removes the checkpoint that has a path; what no run has made there gets another name."""
    remove_checkpoint(path)
    if os.path.lexists(path):
        _move_aside(path, _KEPT)


def _move_aside(path: Path, suffix: str) -> Path:
    """Gives a file, link or directory another name, which nothing else has; returns its new path."""
    names = (f"{path.name}{suffix}{'' if n == 1 else f'-{n}'}" for n in itertools.count(1))
    aside = next(p for name in names if not os.path.lexists(p := path.with_name(name)))
    path.rename(aside)
    return aside


def _schema_fields(schema: DatasetSchema) -> dict[str, Any]:
    """Returns the schema for JSON; what most features don't have is left out of them."""
    fields = dataclasses.asdict(schema)
    for feature in fields["features"]:
        if not feature["weighted"]:
            del feature["weighted"]
    return fields
