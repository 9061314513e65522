"""Holds what a check of `doctor` says, and runs the small programs that checks need."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple

GOOD, NOTE, BAD = "ok", "note", "BAD"
PROBE_SECONDS = 60


class Line(NamedTuple):
    """Says how one thing is. level: GOOD, NOTE or BAD. fix: how to repair it; "" if there is nothing to."""

    level: str
    what: str
    found: str
    fix: str = ""


def run_probe(command: Sequence[str], env: dict[str, str] | None = None) -> tuple[int, Any, str]:
    """Returns (exit code, JSON that the program printed after "PROBE" or None, all its output).

    The last line of the output says so if a signal ended it, or nothing within a minute, and else if the
    JSON is cut off.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            check=False,
            env=env,
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        return -1, None, str(error)
    except subprocess.TimeoutExpired:  # whose text is the whole program
        return -1, None, f"{command[0]} didn't end within {PROBE_SECONDS} s"
    text, probe = done.stdout + done.stderr, None
    _, found, rest = done.stdout.partition("PROBE")
    if found:
        try:
            probe = json.loads(rest.partition("\n")[0])
        except ValueError:  # whoever printed it was killed, perhaps one of several ranks
            text += f"\nits answer is cut off: {rest.strip() or 'nothing'}"
    if done.returncode < 0:
        text += f"\nended by signal {-done.returncode} ({signal.strsignal(-done.returncode)})"
    return done.returncode, probe, text


def last_line(text: str) -> str:
    """Returns the last line that isn't empty."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def version_of(package: str) -> str | None:
    """Returns the version of an installed package, None without it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
