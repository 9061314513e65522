"""Makes text that comes from files safe to print, and does without a reader that has gone."""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
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
