"""Writes a resolved configuration as TOML (the standard library only reads it)."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Mapping
from typing import Any


def to_toml(values: Mapping[str, Any]) -> str:
    """Returns TOML text that loads back to `values`, without keys whose value is None (TOML has no null)."""
    lines: list[str] = []
    _section(values, (), lines)
    return "\n".join(lines).strip() + "\n"


def _section(values: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    values = {k: v for k, v in values.items() if v is not None}
    # Options such as optimizer = {name = ...} read best on one line; whole sections don't.
    inline = {
        k: v
        for k, v in values.items()
        if not isinstance(v, Mapping) or (path and _is_flat(v) and any(_is_plain(w) for w in values.values()))
    }
    sections = {k: v for k, v in values.items() if k not in inline}
    if path and (inline or not sections):
        lines += ["", f"[{'.'.join(toml_key(p) for p in path)}]"]
    lines += [f"{toml_key(k)} = {toml_value(v)}" for k, v in inline.items()]
    for key, value in sections.items():
        _section(value, (*path, key), lines)


def _is_plain(value: Any) -> bool:
    return not isinstance(value, Mapping)


def _is_flat(value: Mapping[str, Any]) -> bool:
    return len(value) <= 6 and all(_is_plain(v) for v in value.values())


def toml_key(key: str) -> str:
    """Returns a key as TOML has it, in quotes where it must be."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but JSON leaves DEL as it is and splits characters beyond U+FFFF in two.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_value(value: Any) -> str:
    """Returns a value as TOML has it behind a key.

    Raises TypeError for what TOML can't hold.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        inside = ", ".join(f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(v) for v in value)}]"
    if isinstance(value, str):
        return _string(value)
    raise TypeError(f"TOML can't hold {value!r} of type {type(value).__name__}")
