"""Says which code a run makes a process import, and asks for consent if it is another user's run."""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path

from persia_hpc.config import Config
from persia_hpc.errors import UserError
from persia_hpc.printable import say
from persia_hpc.user_objects import module_file, named_code


def agree_to_import(config: Config, checkpoint: Path, *, trust: bool) -> None:
    """Prints what scoring with a checkpoint imports on the user's behalf, if anything.

    trust: also if the checkpoint belongs to somebody else.
    Raises UserError without trust, when the checkpoint is another user's and names code.
    """
    named = named_code(config)
    if not named:
        return
    said = "; ".join(f"{what} {path} ({_files(path)})" for what, path in named.items())
    others = {user for path in (checkpoint, *checkpoint.iterdir()) for user in _owners(path)} - {os.geteuid()}
    if others and not trust:
        raise UserError(
            f"{checkpoint} belongs to {_name_of(min(others))} and makes this process import {said}; if you "
            "trust that code, say so with --trust, in Python ph.load(..., trust=True)"
        )
    say(f"the run imports {said}")


def _owners(path: Path) -> set[int]:
    """Returns who a file belongs to; for a link whose link and whose target it is, if there is one."""
    owners = {path.lstat().st_uid}
    with contextlib.suppress(OSError):
        owners.add(path.stat().st_uid)
    return owners


def _files(paths: str) -> str:
    found = [module_file(path) or "found nowhere" for path in paths.split(", ")]
    return ", ".join(dict.fromkeys(found))


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
