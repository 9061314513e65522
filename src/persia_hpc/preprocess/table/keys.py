"""Reads the tables of a schema file by typed keys, with hints for misspelt ones."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

from persia_hpc.errors import UserError


class KeyReader:
    """Reads one TOML table by typed keys; `done` refuses keys that were never read."""

    def __init__(self, path: Path, where: str, table: object) -> None:
        self._path = path
        self._where = where
        if not isinstance(table, dict):
            raise UserError(f"{path}: [{where}]: got {table!r}, expected a table of keys")
        self._table: dict[str, Any] = table
        self._asked: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._table

    def fail(self, key: str, expected: str) -> UserError:
        """Returns the refusal of a key's value."""
        name = f"{self._where}.{key}" if self._where else key
        got = repr(self._table[key]) if key in self._table else "nothing"
        return UserError(f"{self._path}: {name}: got {got}, expected {expected}")

    def get(self, key: str, kinds: type | tuple[type, ...], expected: str, default: Any = None) -> Any:
        """Returns the value of a key.

        Raises UserError for one of another type.
        """
        self._asked.append(key)
        value = self._table.get(key, default)
        # In Python True is an integer, in TOML it isn't.
        wrong_bool = isinstance(value, bool) and kinds is not bool
        if key in self._table and (not isinstance(value, kinds) or wrong_bool):
            raise self.fail(key, expected)
        return value

    def text(self, key: str, default: str | None = None) -> Any:
        """Returns a string, as `get` does."""
        return self.get(key, str, "a string", default)

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None) -> Any:
        """Returns one of the `choices`.

        Raises UserError for another word.
        """
        value = self.text(key, default)
        if value is not None and value not in choices:
            raise self.fail(key, f"one of {', '.join(choices)}{nearest(value, choices)}")
        return value

    def texts(self, key: str, expected: str = "a list of strings") -> tuple[str, ...]:
        """Returns strings; one alone is a list of one.

        Raises UserError for anything else.
        """
        value = self.get(key, (str, list), expected, [])
        items = [value] if isinstance(value, str) else value
        if not all(isinstance(item, str) for item in items):
            raise self.fail(key, expected)
        return tuple(items)

    def words(self, key: str, *, one: bool = False) -> tuple[str, ...]:
        """Returns values as the words that stand for them; they are compared by type (rules.py).

        one: refuses a list
        Raises UserError for what is no word.
        """
        value = self._table.get(key, ())
        self._asked.append(key)
        items = value if isinstance(value, (list, tuple)) and not (one and key in self._table) else [value]
        if not all(isinstance(item, (str, int, float)) for item in items):
            kinds = "a word, a number, true or false"
            raise self.fail(key, kinds if one else kinds + ", or a list of them")
        return tuple(str(item).lower() if isinstance(item, bool) else str(item).strip() for item in items)

    def tables(self, key: str) -> dict[str, KeyReader]:
        """Returns the sub-tables of a table of tables; a string stands for a table that names the column."""
        table = self.get(key, dict, "a table, like [" + key + ".name]", {})
        where = f"{self._where}.{key}" if self._where else key
        return {
            name: KeyReader(
                self._path, f"{where}.{name}", {"column": entry} if isinstance(entry, str) else entry
            )
            for name, entry in table.items()
        }

    def numbers(self, key: str, expected: str) -> tuple[float, ...]:
        """Returns a list of numbers; () if the key isn't there.

        Raises UserError for anything else.
        """
        value = self.get(key, list, expected, [])
        if not all(type(item) in (int, float) and math.isfinite(item) for item in value):
            raise self.fail(key, expected)
        return tuple(map(float, value))

    def done(self) -> None:
        """Checks that all keys have been asked for.

        Raises UserError for one that nobody has.
        """
        for key in self._table:
            if key not in self._asked:
                where = f" in [{self._where}]" if self._where else ""
                raise UserError(
                    f"{self._path}: got key {key!r}{where}, expected one of {', '.join(self._asked)}"
                    f"{nearest(key, self._asked)}"
                )


def nearest(word: str, words: list[str] | tuple[str, ...]) -> str:
    """Returns a hint at the word that was probably meant."""
    close = difflib.get_close_matches(word, words, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
