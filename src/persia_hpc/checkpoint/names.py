"""Defines the names of a checkpoint's directory and of the files in it."""

from __future__ import annotations

import re
from pathlib import Path

MANIFEST = "manifest.json"
DENSE = "dense.pt"
LATEST = "latest"  # a link to the newest checkpoint of a run
BEST = "best"  # a link beside it, to the one that `train.keep_best` keeps
BEST_NOTE = "best.json"
PARTIAL = ".partial"
STEP_NAME = re.compile(r"step-[0-9]{8,18}")
_SHARD_NAME = re.compile(r"server-[0-9]{4,18}\.h5")
_COLD_NAME = re.compile(r"cold-([0-9]{4,18})-([0-9]{4,18})\.h5")


def step_name(step: int) -> str:
    """Returns the name of the directory of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Returns the step in a checkpoint's name."""
    return int(path.name.partition("-")[2])


def shard_name(server_rank: int) -> str:
    """Returns the name of the file that holds a server's part of a checkpoint."""
    return f"server-{server_rank:04d}.h5"


def is_shard(name: str) -> bool:
    """Returns whether a server's part of a checkpoint may have this name."""
    return _SHARD_NAME.fullmatch(name) is not None


def cold_name(server_rank: int, number: int) -> str:
    """Returns the name of a file with a server's rows from disk, the given one of those it has written."""
    return f"cold-{server_rank:04d}-{number:04d}.h5"


def is_cold(name: str) -> bool:
    """Returns whether a file of a server's rows from disk may have this name."""
    return _COLD_NAME.fullmatch(name) is not None


def cold_numbers(name: str) -> tuple[int, int]:
    """Returns the server's rank and the number in the name of a file with rows from disk."""
    found = _COLD_NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else (-1, 0)


def is_part(name: str) -> bool:
    """Returns whether a checkpoint may have a file of this name beside its manifest."""
    return name == DENSE or is_shard(name) or is_cold(name)
