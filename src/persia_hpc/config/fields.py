"""Makes the fields of a configuration: their rules, their keys, and numbers of bytes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{p}iB": 1024 ** (i + 1) for i, p in enumerate("KMGT")}
_UNITS |= {f"{p}B": 1000 ** (i + 1) for i, p in enumerate("kMGT")}


def parse_bytes(value: int | str) -> int:
    """Returns the number of bytes that 4096, "4096", "512 MiB" or "1.5 GB" stands for.

    Raises ValueError for anything else, and for more than a file may have.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return _possible(value, value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    if match is None or match.group(2) not in _UNITS:
        raise ValueError(f"{value!r} is not a number of bytes such as 4096, '512 MiB' or '4 GiB'")
    return _possible(int(Fraction(match.group(1)) * _UNITS[match.group(2)]), value)  # exact, beyond 2**53 too


def _possible(number: int, value: int | str) -> int:
    if number >= 1 << 63:
        raise ValueError(f"{value!r} is more bytes than 2^63 - 1")
    return number


def mib(num_bytes: float) -> str:
    """Returns a number of bytes as text in MiB, or in GiB from 10 GiB on."""
    return f"{num_bytes / 2**20:,.1f} MiB" if num_bytes < 10 * 2**30 else f"{num_bytes / 2**30:,.1f} GiB"


def setting(
    default: Any = dataclasses.MISSING,
    *,
    factory: Callable[[], Any] | None = None,
    key: str | None = None,
    choices: tuple[str, ...] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    as_bytes: bool = False,
) -> Any:
    """Returns a dataclass field whose metadata the loader checks; `as_bytes`: "4 MiB" is read as an int."""
    rules = {
        "key": key,
        "choices": choices,
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "as_bytes": as_bytes,
    }
    metadata = {name: rule for name, rule in rules.items() if rule is not None}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def toml_key(field: dataclasses.Field[Any]) -> str:
    """Returns the key of a dataclass field in the TOML file."""
    return str(field.metadata.get("key", field.name))
