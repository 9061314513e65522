"""Reads a configuration (TOML file or mapping), refuses what it doesn't know, fills in every default.

No file that the configuration names is opened here, and nothing heavy is imported: the command line must
answer at once.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from persia_hpc.errors import UserError
from persia_hpc.printable import printable

from .checks import check_config, resolve_options
from .fields import parse_bytes, toml_key
from .options import did_you_mean, nearest
from .toml import to_toml
from .types import Config, ModelConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", dict: "a table"}


def load_config(
    source: str | Path | Mapping[str, Any],
    set: Mapping[str, Any] | None = None,
) -> Config:
    """Returns the checked configuration of a TOML file, or of a mapping of the same shape.

    set: dotted keys (`"train.epochs"`) and values that replace what the source says.
    Relative paths stay relative to the current directory.

    Raises UserError, which names file and key, for anything missing, unknown or wrong.
    """
    reader = _Reader("configuration" if isinstance(source, Mapping) else str(source))
    raw = copy.deepcopy(dict(source)) if isinstance(source, Mapping) else _read_toml(Path(source))
    for key, value in (set or {}).items():
        path = _split_key(key)
        _assign(raw, path, value)
        reader.overrides.append(path)
    _inherit_tables(raw)
    resolve_options(raw, reader.fail)
    config = reader.build(Config, raw, ())
    return check_config(config, raw, reader.fail)


def parse_set(items: Iterable[str]) -> dict[str, Any]:
    """Returns {"a.b": value} for command-line texts "a.b=value"; a value that isn't TOML is a string.

    Raises UserError for a text without a key or "=".
    """
    out: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {item!r}: expected KEY=VALUE, for instance --set train.epochs=3")
        try:
            out[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            out[key.strip()] = text.strip()
    return out


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise UserError(f"there is no configuration file {path} (current directory: {Path.cwd()})") from None
    except OSError as error:
        raise UserError(f"can't read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def _split_key(key: str) -> tuple[str, ...]:
    try:  # a quoted part may contain dots: features."a.b".dim
        node: Any = tomllib.loads(f"{key} = 0")
    except (tomllib.TOMLDecodeError, RecursionError):
        return tuple(key.split("."))
    path = []
    while isinstance(node, dict):
        (part,) = node
        path.append(part)
        node = node[part]
    return tuple(path)


def _assign(raw: dict[str, Any], path: Sequence[str], value: Any) -> None:
    node = raw
    for depth, part in enumerate(path[:-1]):
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            parent = ".".join(path[: depth + 1])
            text = f"--set {'.'.join(path)}: {parent} is {_describe(child)}, not a table with keys"
            raise UserError(printable(text))
        node = child
    node[path[-1]] = copy.deepcopy(value)


def _inherit_tables(raw: dict[str, Any]) -> None:
    """Fills keys missing in [tables.NAME] from [tables.default]; wrong types are left to the typed reader."""
    tables = raw.setdefault("tables", {})
    if not isinstance(tables, dict):
        return
    default = tables.pop("default", {})
    raw["tables"] = {"default": default, **tables}  # first, so that its own mistakes are reported as its own
    if isinstance(default, dict):
        for name, table in tables.items():
            if isinstance(table, dict):
                raw["tables"][name] = merged = {**copy.deepcopy(default), **table}
                for key in ("optimizer", "schedule", "init"):  # optimizer = { lr = 0.1 } changes only lr
                    own, template = table.get(key), default.get(key)
                    template = {"name": template} if isinstance(template, str) else template
                    if isinstance(own, dict) and "name" not in own and isinstance(template, dict):
                        merged[key] = {**template, **own}


class _Reader:
    """Turns raw TOML values into dataclasses; knows where each value came from, for its messages."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.overrides: list[tuple[str, ...]] = []

    def fail(self, path: Sequence[str], problem: str) -> UserError:
        """The error of a key: "FILE: a.b PROBLEM", or "--set a.b PROBLEM" where the value came from there."""
        overridden = any(tuple(path[: len(o)]) == o or o[: len(path)] == tuple(path) for o in self.overrides)
        where = "--set " if overridden and path else f"{self.source}: "
        # Names in a configuration may have any characters; the message stays one line.
        return UserError(printable(f"{where}{'.'.join(path)}{' ' if path else ''}{problem}"))

    def build(self, cls: type[T], raw: Any, path: tuple[str, ...]) -> T:
        """A dataclass from a raw table; unknown keys are refused with the nearest valid one."""
        if not isinstance(raw, Mapping):
            raise self.fail(path, f"= {_describe(raw)}: expected a table [{'.'.join(path)}]")
        assert dataclasses.is_dataclass(cls)
        hints = typing.get_type_hints(cls)
        fields = {toml_key(f): f for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        if cls is ModelConfig:  # every other key is an argument of the model
            del fields["arguments"]
            values["arguments"] = {k: v for k, v in raw.items() if k != "class"}
            raw = {k: v for k, v in raw.items() if k == "class"}
        for key, value in raw.items():
            if key not in fields:
                raise self.fail((*path, str(key)), f"is not a known key{nearest(str(key), fields)}")
            field = fields[key]
            values[field.name] = self._value(hints[field.name], value, (*path, key), field.metadata)
        for key, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and field.name not in values:
                if dataclasses.is_dataclass(hints[field.name]):
                    raise self.fail((*path, key), f"is missing: write a section [{'.'.join((*path, key))}]")
                raise self.fail((*path, key), "is missing")
        return cls(**values)

    def _value(self, hint: Any, value: Any, path: tuple[str, ...], rules: Mapping[str, Any]) -> Any:
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if type(None) in options and value is None:
            return None
        if bool in options and isinstance(value, bool):
            return value
        kind = next(o for o in options if o is not type(None))
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            return self.build(kind, value, path)
        origin = typing.get_origin(kind)
        if origin is list:
            return self._strings(value, path)
        if origin is dict:
            inside = typing.get_args(kind)[1]
            if not isinstance(value, Mapping):
                raise self.fail(path, f"= {_describe(value)}: expected a table [{'.'.join(path)}]")
            if inside is Any:
                return dict(value)
            return {str(k): self._value(inside, v, (*path, str(k)), {}) for k, v in value.items()}
        if rules.get("as_bytes") or (int in options and str in options):
            try:
                number = parse_bytes(value)
            except ValueError as error:
                raise self.fail(path, f"= {_describe(value)}: {error}") from None
            self._check_range(number, path, rules)
            return number if rules.get("as_bytes") else value
        return self._scalar(kind, value, path, rules)

    def _scalar(self, kind: Any, value: Any, path: tuple[str, ...], rules: Mapping[str, Any]) -> Any:
        if isinstance(value, int) and abs(value) >= 2**63:
            raise self.fail(path, f"= {_describe(value)}: expected a number of 64 bits")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.fail(path, f"= {_describe(value)}: expected {_WORDS[kind]}")
        choices = rules.get("choices")
        if choices and value not in choices:
            raise self.fail(
                path, f"= {value!r}: expected one of {', '.join(choices)}{did_you_mean(value, choices)}"
            )
        if kind in (int, float):
            self._check_range(value, path, rules)
        return value

    def _strings(self, value: Any, path: tuple[str, ...]) -> list[str]:
        if isinstance(value, str | Path):
            value = [value]
        wrong = not isinstance(value, list | tuple) or not all(isinstance(v, str | Path) for v in value)
        if wrong:
            raise self.fail(path, f"= {_describe(value)}: expected a string or a list of strings")
        return [str(v) for v in value]

    def _check_range(self, value: float, path: tuple[str, ...], rules: Mapping[str, Any]) -> None:
        low, high, above = rules.get("at_least"), rules.get("at_most"), rules.get("above")
        if low is not None and high is not None and not low <= value <= high:
            raise self.fail(path, f"= {value}: expected a value from {low} to {high}")
        if low is not None and not value >= low:
            raise self.fail(path, f"= {value}: expected at least {low}")
        if above is not None and not value > above:
            raise self.fail(path, f"= {value}: expected more than {above}")
        if high is not None and not value <= high:
            raise self.fail(path, f"= {value}: expected at most {high}")
        if not math.isfinite(value):
            raise self.fail(path, f"= {value}: expected a finite number")


def _describe(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "list", dict: "table"}
    text = repr(value)
    return (
        f"{text if len(text) <= 60 else text[:57] + '...'} ({names.get(type(value), type(value).__name__)})"
    )


def config_text(config: Config) -> str:
    """Returns the resolved configuration as TOML, without `run_dir`: used again, it makes a new run."""
    values = config.resolved()
    del values["run_dir"]
    return to_toml(values)
