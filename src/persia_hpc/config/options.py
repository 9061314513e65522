"""Reads options that go by a name, and numbers; finds the known name that is nearest to a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from persia_hpc.errors import UserError

Fail = Callable[[Sequence[str], str], UserError]
_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns the end of a message: "; did you mean 'x'?" with a close name, else all valid names."""
    names = list(valid)
    return did_you_mean(name, names) or f"; valid: {', '.join(names) or 'none'}"


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Returns the end of a message: "; did you mean 'x'?", or nothing when no valid name is close."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def named_options(
    given: Any, default_name: str, known: Mapping[str, Mapping[str, float]], path: tuple[str, ...], fail: Fail
) -> dict[str, Any]:
    """Returns what `given` says by a name in `known`, checked, with the defaults of what it leaves out.

    Raises UserError for anything else.
    """
    options = with_name(given, default_name, path, fail)
    name = options["name"]
    if name not in known:
        raise fail(
            (*path, "name"), f"= {name!r}: expected one of {', '.join(known)}{did_you_mean(name, known)}"
        )
    for key, value in options.items():
        if key == "name":
            continue
        if key not in known[name]:
            raise fail((*path, key), f"is not an option of {name!r}{nearest(key, known[name])}")
        check_number(key, value, (*path, key), fail)
    out = {"name": name, **known[name], **{k: float(v) for k, v in options.items() if k != "name"}}
    if name == "uniform" and out["low"] > out["high"]:
        raise fail((*path, "low"), f"= {out['low']}: expected at most high = {out['high']}")
    return out


def with_name(given: Any, default_name: str, path: tuple[str, ...], fail: Fail) -> dict[str, Any]:
    """Returns a name, or a table that may leave it out, as a table with a name.

    Raises UserError for anything else.
    """
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, Mapping) or not isinstance(given.get("name", ""), str):
        raise fail(path, f'= {given!r}: expected a name or a table such as {{ name = "{default_name}" }}')
    return {"name": default_name, **given}


def check_number(key: str, value: Any, path: tuple[str, ...], fail: Fail) -> None:
    """Checks that an option is a finite number, in the range that its name stands for.

    Raises UserError if not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fail(path, f"= {value!r}: expected a number")
    value = float(value)
    if value != value or value in (float("inf"), float("-inf")):
        raise fail(path, f"= {value}: expected a finite number")
    if key in ("beta1", "beta2", "momentum") and not 0 <= value < 1:
        raise fail(path, f"= {value}: expected a value from 0 to below 1")
    if key not in ("low", "high", "mean") and value < 0:
        raise fail(path, f"= {value}: expected at least 0")


def check_import_path(text: str, path: tuple[str, ...], fail: Fail) -> None:
    """Checks that a text names code as `module:name`.

    Raises UserError if not.
    """
    if not _IMPORT_PATH.fullmatch(text):
        raise fail(path, f'= {text!r}: expected an import path "module:name"')
