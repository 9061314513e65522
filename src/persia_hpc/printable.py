"""Makes text that comes from files safe to print."""

from __future__ import annotations

import unicodedata

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


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
