"""Reads and writes the manifests of versions and bases, and finds the newest version."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from persia_hpc.checkpoint.manifest import sealed
from persia_hpc.errors import DataError, UserError

from .names import DENSE, LATEST, MANIFEST, VERSION_NAME, is_part

FORMAT_VERSION = 1
FORMATS = ("fp32", "fp16", "bf16", "int8")
_SEAL = "sha256"
_EXPORT = re.compile(r"[0-9a-f]{32}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_note(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_count(value.get(key)) for key in ("bytes", "crc32"))


def _are_files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        (is_part(name) or name == DENSE) and _is_note(note) for name, note in value.items()
    )


def _is_export(value: Any) -> bool:
    return isinstance(value, str) and _EXPORT.fullmatch(value) is not None


_VERSION_RULES: dict[str, Callable[[Any], bool]] = {
    "export": _is_export,
    "version": _is_count,
    "step": _is_count,
    "time": lambda value: isinstance(value, float) and math.isfinite(value),
    "base": _is_count,
    "files": _are_files,
}
_BASE_RULES: dict[str, Callable[[Any], bool]] = {
    "export": _is_export,
    "base": _is_count,
    "step": _is_count,
    "rows": lambda value: value in FORMATS,
    "files": _are_files,
    "config": lambda value: isinstance(value, dict),
    "schema": lambda value: isinstance(value, dict),
}


def write_manifest(directory: Path, values: Mapping[str, Any]) -> None:
    """Writes the manifest of a version or base, with its format and the checksum of its own values."""
    text = json.dumps(sealed({"format_version": FORMAT_VERSION, **values}))
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def read_version(directory: Path, export: str | None = None) -> dict[str, Any]:
    """Returns the manifest of a version, with documented keys and types.

    export: the id that it must have. Raises as `read_base`.
    """
    return _read(directory, _VERSION_RULES, "version", export)


def read_base(directory: Path, export: str) -> dict[str, Any]:
    """Returns the manifest of a base, with documented keys and types.

    Raises FileNotFoundError if it is gone, UserError for a format of another package, DataError for damage,
    and for what another run has written in its place.
    """
    return _read(directory, _BASE_RULES, "base", export)


def _read(
    directory: Path, rules: Mapping[str, Callable[[Any], bool]], number: str, export: str | None
) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        values = json.loads(path.read_bytes())
        whole = values == sealed(values)
        version = values.get("format_version")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged: it is not a JSON object ({' '.join(str(error).split())})"
        ) from error
    if not whole:
        raise DataError(f"{path} is damaged: its checksum is not that of its values")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{directory} has export format {version!a}, this package reads {FORMAT_VERSION}; use the "
            "persia-hpc that wrote it, or update"
        )
    for key, fits in rules.items():
        if not fits(values.get(key)):
            raise DataError(f"{path} is damaged: {key} is {str(values.get(key))[:60]!a}")
    name = directory.name
    if name != f"{number}-{values[number]:08d}":
        raise DataError(f"{path} is damaged: it is of {number} {values[number]}, the directory is {name}")
    if export is not None and values["export"] != export:
        raise DataError(f"{directory} is of another run than what `{LATEST}` leads to")
    return dict(values)


def newest_link(directory: Path) -> tuple[str, int, int] | None:
    """Returns the name of the newest version, and what differs if the link to it was made anew.

    None if there is none yet; cheap enough to be asked often.
    """
    try:
        found = os.lstat(
            directory / LATEST
        )  # first: what changes until the name is read is seen the next time
        name = os.readlink(directory / LATEST)
    except OSError:
        return None
    return (name, found.st_ino, found.st_ctime_ns) if VERSION_NAME.fullmatch(name) else None
