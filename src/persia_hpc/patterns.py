"""Reads names and globs of files, in which a name that exists is never taken for a glob."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable


def names_of(given: str | Iterable[str]) -> tuple[str, ...]:
    """Returns names or globs; a single string is one of them, not its letters."""
    return (given,) if isinstance(given, str) else tuple(given)


def literal_first(pattern: str) -> str:
    """Returns the glob, escaped as far as its leading folders, or all of it, exist under their literal names.

    So `data [v2]/day*.csv` finds the files of a folder of that name.
    """
    if not glob.has_magic(pattern):
        return pattern
    end = len(pattern)
    while end > 0:
        if os.path.lexists(pattern[:end]):
            return glob.escape(pattern[:end]) + pattern[end:]
        end = pattern.rfind(os.sep, 0, end)
    return pattern
