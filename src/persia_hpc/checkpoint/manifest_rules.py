"""Defines what a checkpoint's manifest must hold: each key, and the type of its value, all the way down."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

from .names import DENSE, STEP_NAME, is_part, is_shard

MOST_LEVELS = 32  # of nested values; a configuration has a few
SEAL = "sha256"
Test = Callable[[Any], bool]


def manifest_problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong with the keys of a manifest and the types of their values."""
    for key, (fits, expected) in _KEYS.items():
        if key not in manifest:
            yield f"no {key}"
        elif not fits(manifest[key]):
            yield f"{key} is {short(manifest[key])}, expected {expected}"
    for key, (fits, expected) in _OPTIONAL.items():
        if key in manifest and not fits(manifest[key]):
            yield f"{key} is {short(manifest[key])}, expected {expected}"
    files, shards = manifest.get("files"), manifest.get("shards")
    if isinstance(files, dict):
        for name, note in files.items():
            if not is_part(name):
                yield f"file {short(name)} is outside of the checkpoint, or none of its kinds"
            elif not (
                isinstance(note, dict) and is_count(note.get("bytes")) and isinstance(note.get(SEAL), str)
            ):
                yield f"file {name!r} is without bytes or {SEAL}"
        listed = [DENSE, *(shards if _is_list_of(shards, _is_text) else [])]
        yield from (
            f"{short(name, plain=True)} is not among its files" for name in listed if name not in files
        )
        if _is_list_of(shards, _is_text) and (len({*listed}) != len(listed)):
            yield f"shards is {short(shards)}, expected each file of a server once"


def is_count(value: Any) -> TypeGuard[int]:
    """Returns whether a value is a number that counts something."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of(value: Any, fits: Test) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and all(map(fits, value))


def _is_dict_of(value: Any, fits: Test) -> bool:
    return isinstance(value, dict) and all(map(fits, value.values()))


def _is_counters(value: Any) -> bool:
    if not isinstance(value, dict) or not {"ledger", "staleness"} <= value.keys():
        return False
    if not all(_is_dict_of(counter, is_count) for counter in value.values()):
        return False
    return all(re.fullmatch(r"[0-9]{1,18}", key) for key in value["staleness"])


def _is_schema(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_list_of(value.get("features"), _is_feature):
        return False
    fields = {field.name: field for field in dataclasses.fields(DatasetSchema)}
    for name, entry in value.items():
        if name not in fields:
            return False
        if name != "features" and not _is_like(fields[name].default, entry):
            return False
    return True


def _is_feature(value: Any) -> bool:
    if not isinstance(value, dict) or not {"name", "multi"} <= value.keys() <= _FEATURE_KEYS:
        return False
    length = value.get("mean_length")
    number = length is None or (isinstance(length, int | float) and 0 <= length < float("inf"))
    flags = isinstance(value["multi"], bool) and isinstance(value.get("weighted", False), bool)
    return isinstance(value["name"], str) and flags and number


_FEATURE_KEYS = {field.name for field in dataclasses.fields(FeatureSchema)}


def _is_like(default: Any, value: Any) -> bool:
    """Returns whether a value of the schema has the type of its default."""
    if isinstance(default, tuple):
        return _is_list_of(value, _is_text)
    return isinstance(value, bool if isinstance(default, bool) else str | None)


def _is_portion(value: Any) -> bool:
    return _is_list_of(value, _is_taken_file)


def _is_taken_file(value: Any) -> bool:
    if not isinstance(value, dict) or not {"path", "num_samples", "first_time"} <= value.keys():
        return False
    time, digest = value["first_time"], value.get("digest", "")
    return (
        isinstance(value["path"], str)
        and is_count(value["num_samples"])
        and (time is None or (isinstance(time, int) and -(1 << 63) <= time < 1 << 63))
        and isinstance(digest, str)
    )


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(key), str) for key in ("path", "digest"))
        and all(is_count(value.get(key)) for key in ("begin", "end"))
        and value.get("split", "train") in ("train", "items")
    )


# What each key must be: a test, and words for it.
_KEYS: dict[str, tuple[Test, str]] = {
    "format_version": (is_count, "a number"),
    "step": (lambda v: is_count(v) and 0 < v < 1 << 32, "a step's number"),
    "base": (
        lambda v: v is None or (isinstance(v, str) and STEP_NAME.fullmatch(v) is not None),
        "the name of a checkpoint beside it, or null",
    ),
    "shards": (
        lambda v: _is_list_of(v, lambda n: _is_text(n) and is_shard(n)) and len(v) > 0,
        "a list of files of servers",
    ),
    "files": (lambda v: isinstance(v, dict), "an object"),
    "counters": (_is_counters, "the ledger's and the staleness's counts"),
    "config": (lambda v: isinstance(v, dict), "an object"),
    "schema": (_is_schema, "the schema of a dataset"),
    "num_samples": (lambda v: _is_dict_of(v, is_count) and "train" in v, "the samples of each split"),
    "versions": (lambda v: isinstance(v, dict), "an object"),
}
_OPTIONAL: dict[str, tuple[Test, str]] = {
    "portions": (lambda v: _is_list_of(v, _is_portion), "the files of each portion"),
    "data": (lambda v: _is_list_of(v, _is_range), "ranges of training samples and items with digests"),
    SEAL: (_is_text, "the checksum of the other values"),
}


def is_too_deep(value: Any) -> bool:
    """Returns whether lists and objects lie in one another more than MOST_LEVELS deep."""
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [
            entry
            for parent in level
            for entry in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(entry, dict | list)
        ]
        if not level:
            return False
    return True


def short(value: Any, *, plain: bool = False) -> str:
    """Returns a value as text of at most 60 characters that are safe on a screen.

    plain: a text without quotes.
    """
    text = value if plain and isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
