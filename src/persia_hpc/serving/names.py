"""Defines the names of what an export directory holds."""

from __future__ import annotations

import re
from pathlib import Path

MANIFEST = "manifest.json"
DENSE = "dense.pt"
LATEST = "latest"
PROGRESS = "progress"
LOCK = "export.lock"
PARTIAL = ".partial"
VERSION_NAME = re.compile(r"version-[0-9]{8,18}")
_OURS = re.compile(r"(version|base)-[0-9]{8,18}(\.partial|\.removed)?")
_SINGLE = (LATEST, LATEST + PARTIAL, PROGRESS, LOCK)
_PART_NAME = re.compile(r"server-[0-9]{4,18}\.rows")


def version_name(number: int) -> str:
    """Returns the name of a version's directory."""
    return f"version-{number:08d}"


def base_name(number: int) -> str:
    """Returns the name of the directory that has all rows as of a version."""
    return f"base-{number:08d}"


def number_of(path: Path) -> int:
    """Returns the number in the name of a version or a base."""
    return int(path.name.partition("-")[2])


def part_name(server_rank: int) -> str:
    """Returns the name of the file that holds a server's part of a version or a base."""
    return f"server-{server_rank:04d}.rows"


def is_part(name: str) -> bool:
    """Returns whether a server's part may have this name."""
    return _PART_NAME.fullmatch(name) is not None


def is_ours(name: str) -> bool:
    """Returns whether an export directory may have an entry of this name."""
    return name in _SINGLE or _OURS.fullmatch(name) is not None
