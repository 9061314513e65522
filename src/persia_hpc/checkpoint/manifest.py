"""Reads the manifest of a checkpoint and checks it, once and for all readers, with the files that it names.

What `read_manifest` returns has the documented keys with values of the documented types, and its names stay
inside the checkpoint: nobody who uses it has to look again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persia_hpc.errors import DataError, PersiaError, UserError
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

from .manifest_rules import MOST_LEVELS, SEAL, is_count, is_too_deep, manifest_problems, short
from .names import MANIFEST, STEP_NAME, step_name

FORMAT_VERSION = 2
WITH_COLD = 3  # the version of a checkpoint that has rows in files of their own, see parts.py
_BYTES_AT_ONCE = 1 << 20
_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
_SHORT_TEXT = re.compile(
    r"can't allocate memory|memory allocation failed|can't start new thread|Resource temporarily unavailable"
)
_TOO_DEEP = f"values are nested more than {MOST_LEVELS} levels deep"


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a manifest with the checksum of its own values, which `read_manifest` compares."""
    plain: dict[str, Any] = json.loads(json.dumps({k: v for k, v in manifest.items() if k != SEAL}))
    return {**plain, SEAL: _digest(plain)}


def _digest(manifest: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in manifest.items() if key != SEAL}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint, whose keys and types are as docs/checkpoints.md says.

    Raises UserError if there is none or this package can't read its format, DataError if it is damaged.
    """
    manifest, problems = examine_manifest(directory)
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise DataError(f"{directory / MANIFEST} is damaged ({problems[0]}{more}); use an older checkpoint")
    return manifest


def examine_manifest(directory: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the manifest of a checkpoint with all that is wrong with it; with any problem it is {}.

    Raises UserError if there is none or this package can't read its format, DataError for a link that leads
    out of the run.
    """
    path = directory / MANIFEST
    try:
        if not path.is_file():  # a FIFO would never end
            raise UserError(
                f"{directory} is not a checkpoint (No such file or directory: {MANIFEST}); expected a folder "
                "like runs/1/latest"
            )
        manifest = json.loads(part_path(directory, MANIFEST).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error
    except RecursionError:
        return {}, [_TOO_DEEP]
    except ValueError as error:
        return {}, [f"it is not JSON: {error}"]
    if not isinstance(manifest, dict):
        return {}, [f"it is {short(manifest)}, expected an object"]
    if is_too_deep(manifest):
        return {}, [_TOO_DEEP]
    version = manifest.get("format_version")
    whole = SEAL not in manifest or manifest[SEAL] == _digest(manifest)
    if is_count(version) and version not in (FORMAT_VERSION, WITH_COLD) and whole:
        raise UserError(
            f"{directory} has checkpoint format {version}, this package reads {FORMAT_VERSION} and "
            f"{WITH_COLD}; use the persia-hpc that wrote it" + (", or update" if version > WITH_COLD else "")
        )
    problems = list(manifest_problems(manifest))
    if not problems and not whole:
        problems.append("its checksum is not that of its values")
    name, step = directory.resolve().name, manifest.get("step")
    if STEP_NAME.fullmatch(name) and is_count(step) and name != step_name(step):
        problems.append(f"it is of step {step}, the directory is {name}")
    return ({} if problems else manifest), problems


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


def sources_of(directory: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Returns a checkpoint and, if it is incremental, its base, each with its manifest.

    Raises UserError if `directory` is no checkpoint, DataError if one of them is damaged or they don't fit.
    """
    manifest = read_manifest(directory)
    base = base_of(directory, manifest)
    if base is None:
        return [(directory, manifest)]
    of_base = read_manifest(base)
    if of_base["base"] is not None:
        raise DataError(
            f"{directory} holds the changes since {base}, which isn't full itself; use an older checkpoint"
        )
    return [(directory, manifest), (base, of_base)]


def part_path(directory: Path, name: str) -> Path:
    """Returns the path of a checkpoint's file.

    Raises DataError unless it is a file in the run's directory, and not only a link that leads out of it.
    """
    path = directory / name
    try:
        real, run_dir = path.resolve(strict=True), directory.resolve().parent
        if not real.is_file():
            raise DataError(f"{path}: can't be read (it is not a file); use an older checkpoint")
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise unreadable(path, error) from error
    if not real.is_relative_to(run_dir):
        raise DataError(
            f"{path} is a link to {real}, outside of {run_dir}: it is not read; put the file itself "
            "there, or use an older checkpoint"
        )
    return path


def unreadable(what: object, error: Exception) -> PersiaError:
    """Returns the error that says that a part of a checkpoint can't be read.

    It is a DataError, after which an older checkpoint is tried; but a process that is short of memory or open
    files, or a file server that has lost its handle, says nothing about the checkpoint.
    """
    text = " ".join(str(error).split())
    reason = getattr(error, "strerror", None) or text or type(error).__name__
    noted = re.search(r"errno = (\d+)", text)  # HDF5 says it within its text
    number = getattr(error, "errno", None) or (int(noted[1]) if noted else None)
    if isinstance(error, MemoryError) or number in _SHORT_OF or _SHORT_TEXT.search(text):
        return PersiaError(
            f"{what}: can't be read now ({reason}): this process is short of memory or open files, or lost "
            "the file's server; the checkpoint may be whole: give it more, and start again"
        )
    return DataError(f"{what}: can't be read ({' '.join(reason.split())}); use an older checkpoint")


def check_part(directory: Path, manifest: Mapping[str, Any], name: str, *, content: bool) -> None:
    """Checks that a part of a checkpoint exists and has the size that its manifest notes.

    With `content` its checksum must be the noted one too.
    Raises DataError if anything is wrong, and what `unreadable` says.
    """
    path, note = part_path(directory, name), manifest["files"][name]
    try:
        size = path.stat().st_size
        got = file_sha256(path) if content and size == note["bytes"] else note[SEAL]
    except (OSError, MemoryError) as error:
        raise unreadable(path, error) from error
    _compare(path, note, size, got)


def read_part(directory: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    """Returns the content of a part of a checkpoint, once it is known to be what its manifest notes.

    Raises DataError if it isn't.
    """
    check_part(directory, manifest, name, content=False)
    path = directory / name
    try:
        content = path.read_bytes()
    except (OSError, MemoryError) as error:
        raise unreadable(path, error) from error
    _compare(path, manifest["files"][name], len(content), hashlib.sha256(content).hexdigest())
    return content


def _compare(path: Path, note: Mapping[str, Any], size: int, sha256: str) -> None:
    if size != note["bytes"]:
        raise DataError(
            f"{path} is damaged: it has {size} bytes, expected {note['bytes']}; use an older checkpoint"
        )
    if sha256 != note[SEAL]:
        raise DataError(f"{path} is damaged: its checksum is not the manifest's; use an older checkpoint")


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 digest of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BYTES_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def read_schema(manifest: Mapping[str, Any]) -> DatasetSchema:
    """Returns the schema of the dataset on which a checkpoint was trained."""
    fields = dict(manifest["schema"])
    features = tuple(FeatureSchema(**f) for f in fields.pop("features"))
    rest: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return DatasetSchema(features, **rest)
