"""Makes text that comes from files safe to print, and does without a reader that has gone."""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import IO, Any

LINES = "\n\t"  # what a text of several lines may keep
# Control characters, invisible formats (which can turn the order of text), halves of pairs (bytes of file
# names that are no UTF-8), and the two characters that end lines in Unicode's view.
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: object, keep: str = "") -> str:
    """Returns the text with every character escaped that a terminal would obey rather than show.

    keep: characters that stay as they are, for instance a newline where text may have several lines.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        each if each in keep or unicodedata.category(each) not in _HIDDEN else _escaped(each) for each in text
    )


def open_streams() -> None:
    """Lets this process print to nowhere where it was started without stdout or stderr (`2>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for good


def stop_printing(stream: IO[Any]) -> None:
    """Sends to nowhere what is still printed on a stream of this process, also by Python's flush at its end.

    For one that can't be written any more, mostly because its reader has gone (`… | head`).
    """
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


def say(text: str) -> None:
    """Says something of a run on stderr; the run goes on where that can't be written."""
    with without_reader(sys.stderr):
        print(f"persia-hpc: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def without_reader(stream: IO[Any]) -> Iterator[None]:
    """Lets what prints on a stream go on when that can't be written any more; see `lose_reader`."""
    try:
        yield
    except OSError as error:
        lose_reader(stream, error)


def lose_reader(stream: IO[Any], error: OSError) -> None:
    """Says on stderr, if that can be, why nothing more is printed on `stream`, and stops that."""
    stop_printing(stream)
    text = f"nothing more is printed on {getattr(stream, 'name', 'a stream')}: {error.strerror or error}"
    try:
        print(f"persia-hpc: {text}; the run goes on", file=sys.stderr, flush=True)
    except OSError:
        stop_printing(sys.stderr)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
