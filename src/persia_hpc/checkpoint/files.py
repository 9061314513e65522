"""Creates, completes, checks and removes the directory of a checkpoint, and reads its manifest.

A checkpoint is written into `step-XXXXXXXX.partial`, fsynced and renamed, and only then does `latest` point
to it: whatever is named `step-XXXXXXXX` is complete. Nothing here is collective.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from persia_hpc.config import Config
from persia_hpc.durable import sync_path
from persia_hpc.errors import DataError, PersiaError, UserError
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
DENSE = "dense.pt"
PORTION = ("path", "num_samples", "first_time")  # what is noted of each file of one
_BYTES_AT_ONCE = 1 << 20
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of linux/falloc.h
_NAME = re.compile(r"step-(\d{8,})")


def step_name(step: int) -> str:
    """Returns the name of the directory of a step's checkpoint."""
    return f"step-{step:08d}"


def shard_name(server_rank: int) -> str:
    """Returns the name of the file that holds a server's part of a checkpoint."""
    return f"server-{server_rank:04d}.h5"


def begin_checkpoint(run_dir: Path, step: int) -> Path:
    """Makes the directory that the parts of a checkpoint are written into.

    Raises PersiaError if it can't be made.
    """
    path = run_dir / f"{step_name(step)}.partial"
    try:
        remove_checkpoint(path)  # of a job that died while it wrote
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


def finish_part(path: Path, **more: Any) -> None:
    """Fsyncs a part, and notes its size and checksum in a file beside it.

    `finish_checkpoint` puts these notes into the manifest, together with `more`.
    """
    with ThreadPoolExecutor(1) as beside:
        synced = beside.submit(sync_path, path)
        note = {"bytes": path.stat().st_size, "sha256": file_sha256(path), **more}
        synced.result()
    path.with_name(path.name + ".json").write_text(json.dumps(note))


def finish_checkpoint(
    directory: Path,
    *,
    step: int,
    config: Config,
    schema: DatasetSchema,
    num_samples: Mapping[str, int],
    versions: Mapping[str, str],
    base: str | None,
    portions: Sequence[Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """Completes a checkpoint: writes its manifest, renames its directory, moves `latest`.

    All parts must have been written. num_samples: of each split. base: name of the checkpoint whose changes
    this one holds, None for a full one. portions: with `data.follow` the files of each portion.
    """
    notes = sorted(directory.glob("*.json"))
    parts = {note.name.removesuffix(".json"): json.loads(note.read_text()) for note in notes}
    counters: dict[str, Counter[str]] = {"ledger": Counter(), "staleness": Counter()}
    for part in parts.values():
        for name, counter in counters.items():
            counter.update(part.pop(name, {}))
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "base": base,
        "shards": [name for name in parts if name != DENSE],
        "files": parts,
        "counters": counters,
        "config": config.resolved(),
        "schema": dataclasses.asdict(schema),
        "num_samples": dict(num_samples),
        "versions": dict(versions),
        **({} if portions is None else {"portions": portions}),
    }
    for note in notes:
        note.unlink()
    with (directory / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    final = directory.with_suffix("")
    remove_checkpoint(final)  # a damaged one, which this run didn't go on from
    sync_path(directory)
    directory.rename(final)
    _point_latest(final)
    return final


def _point_latest(path: Path) -> None:
    aside = path.parent / "latest.partial"
    aside.unlink(missing_ok=True)
    aside.symlink_to(path.name)
    aside.replace(path.parent / "latest")
    sync_path(path.parent)


def make_newest(path: Path) -> None:
    """Makes a checkpoint the newest of its run, because the run continues from it.

    Checkpoints of later steps are damaged; they get other names, so that the run neither takes them for its
    own nor keeps them in place of good ones. `latest` points to `path` afterwards.

    Raises PersiaError if that can't be written.
    """
    try:
        for later in whole_checkpoints(path.parent):
            if step_of(later) > step_of(path):
                aside = later.with_name(later.name + ".damaged")
                remove_checkpoint(aside)
                later.rename(aside)
        _point_latest(path)
    except OSError as error:
        raise PersiaError(
            f"can't make {path} the newest checkpoint: {_reason(error)}; make room, and go on with --resume"
        ) from error


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """Returns all complete checkpoints of a run directory, newest first."""
    found = [p for p in run_dir.glob("step-*") if _NAME.fullmatch(p.name) and (p / MANIFEST).exists()]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Returns the step in a checkpoint's name."""
    return int(path.name.partition("-")[2])


def prune(run_dir: Path, *, keep: int, keep_every: int) -> None:
    """Removes old checkpoints of a run.

    The newest `keep` stay, those of steps divisible by `keep_every` (0: none), and those on which a
    checkpoint that stays is based.
    """
    found = whole_checkpoints(run_dir)
    kept = {p for i, p in enumerate(found) if i < keep or (keep_every and step_of(p) % keep_every == 0)}
    bases = set()
    for path in kept:
        with contextlib.suppress(PersiaError):  # a damaged one has no use for a base
            bases.add(read_manifest(path)["base"])
    for path in found:
        if path not in kept and path.name not in bases:
            remove_checkpoint(path)


def discard_partial(run_dir: Path) -> None:
    """Removes checkpoints that a job left half-written or half-removed when it died.

    Raises PersiaError if one can't be removed.
    """
    for path in run_dir.glob("step-*"):
        if path.suffix == ".partial" or (_NAME.fullmatch(path.name) and not (path / MANIFEST).exists()):
            try:
                remove_checkpoint(path)
            except OSError as error:
                raise PersiaError(f"can't remove {path}, left half-written: {_reason(error)}") from error


def read_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint.

    Raises UserError if there is none or this package can't read its format, DataError if it is damaged.
    """
    try:
        manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
        version = int(manifest["format_version"])
        if version == FORMAT_VERSION:
            _ = [manifest[key] for key in ("base", "shards", "counters", "config", "schema", "num_samples")]
            _ = [manifest["files"][name]["sha256"] for name in (*manifest["shards"], DENSE)]
            _ = [file[key] for portion in manifest.get("portions", ()) for file in portion for key in PORTION]
            if _NAME.fullmatch(directory.resolve().name) and int(manifest["step"]) != step_of(
                directory.resolve()
            ):
                raise ValueError(f"it says step {manifest['step']}")
    except OSError as error:
        raise UserError(
            f"{directory} is not a checkpoint ({error.strerror}); expected a folder like runs/1/latest, with "
            f"{MANIFEST}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{directory / MANIFEST} is damaged ({error}); use an older checkpoint") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{directory} has checkpoint format {version}, this package reads {FORMAT_VERSION}; use the "
            "persia-hpc that wrote it" + (", or update" if version > FORMAT_VERSION else "")
        )
    return manifest


def base_of(directory: Path, manifest: Mapping[str, Any]) -> Path | None:
    """Returns the full checkpoint on which an incremental one is based, None for a full one.

    Raises DataError if the base is missing.
    """
    if manifest["base"] is None:
        return None
    base: Path = directory.resolve().parent / manifest["base"]
    if not (base / MANIFEST).exists():
        raise DataError(
            f"{directory} holds the changes since {base}, which isn't there; use an older checkpoint"
        )
    return base


def check_part(directory: Path, manifest: Mapping[str, Any], name: str, *, content: bool) -> None:
    """Checks that a part of a checkpoint exists and has the size that its manifest notes.

    With `content` its checksum must be the noted one too.
    Raises DataError if anything is wrong.
    """
    path, note = directory / name, manifest["files"][name]
    try:
        size = path.stat().st_size
        got = file_sha256(path) if content else note["sha256"]
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); use an older checkpoint") from error
    if size != note["bytes"]:
        raise DataError(
            f"{path} is damaged: it has {size} bytes, expected {note['bytes']}; use an older checkpoint"
        )
    if got != note["sha256"]:
        raise DataError(f"{path} is damaged: its checksum is not the manifest's; use an older checkpoint")


def read_schema(manifest: Mapping[str, Any]) -> DatasetSchema:
    """Returns the schema of the dataset on which a checkpoint was trained."""
    fields = dict(manifest["schema"])
    features = tuple(FeatureSchema(**f) for f in fields.pop("features"))
    rest: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return DatasetSchema(features, **rest)


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 digest of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BYTES_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint, its manifest first.

    If the removal is interrupted, what is left is therefore not taken for a complete checkpoint.
    """
    entries: Iterable[Path] = sorted(path.glob("*"), key=lambda p: p.name != MANIFEST)
    for entry in entries:
        entry.unlink(missing_ok=True)
    if path.exists():
        path.rmdir()
