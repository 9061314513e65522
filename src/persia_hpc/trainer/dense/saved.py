"""Checks the dense parts of checkpoints as files: whether one is sound, and what differs between two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from persia_hpc.checkpoint.manifest import part_path
from persia_hpc.checkpoint.names import DENSE

from .state import DenseState


def dense_problem(directory: Path, step: int) -> str:
    """Returns what is wrong with the dense part of a checkpoint of `step`; '' if nothing is.

    The checksum is not compared here.
    """
    try:
        path = part_path(directory, DENSE)
        state = DenseState.of(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch says very different things
        return f"can't be read: {_first_line(error)}"
    return "" if state.step == step else f"it is of step {state.step}, the manifest of {step}"


def dense_differences(a: Path, b: Path) -> Iterator[str]:
    """Yields a text for each value that differs: model, optimizer, random numbers, loop, results.

    Raises DataError if one can't be read.
    """
    left, right = (dict(_flat(_read(directory))) for directory in (a, b))
    for name in [*left, *(n for n in right if n not in left)]:
        if name not in left or name not in right:
            yield f"dense {name}: not in {'A' if name not in left else 'B'}"
        else:
            difference = _difference(left[name], right[name])
            if difference:
                yield f"dense {name}: {difference}"


def _difference(left: Any, right: Any) -> str:
    if not (isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor)):
        same = type(left) is type(right) and (left == right or (left != left and right != right))
        return "" if same else f"{_short(left)} | {_short(right)}"
    if left.shape != right.shape or left.dtype != right.dtype:
        return f"{left.dtype} {list(left.shape)} | {right.dtype} {list(right.shape)}"
    differs = (left != right) & ~((left != left) & (right != right))  # as they are: keys have 64 bits
    if not differs.any():
        return ""
    x, y = left.double(), right.double()
    most = float((x - y)[differs].abs().nan_to_num(nan=float("inf"), posinf=float("inf")).max())
    return f"{int(differs.sum()):,} of {x.numel():,} values differ by at most {most:.6g}"


def _read(directory: Path) -> dict[str, Any]:
    state = DenseState.read(directory)
    return {field.name: getattr(state, field.name) for field in fields(state) if field.name != "path"}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields values by dotted names; lists of numbers, as random states are, are kept whole."""
    prefix = f"{name}." if name else ""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _flat(entry, f"{prefix}{key}")
    elif isinstance(value, list | tuple) and any(
        isinstance(v, Mapping | list | tuple | torch.Tensor) for v in value
    ):
        for number, entry in enumerate(value):
            yield from _flat(entry, f"{prefix}{number}")
    else:
        yield name, value
