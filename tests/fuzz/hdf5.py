"""Damages HDF5 files in ways that HDF5 itself takes: attributes, shapes, types, links, storage elsewhere."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .mutate import CONTROL

ATTRIBUTES: tuple[Any, ...] = (
    *(0, -1, 2**40, 2**63 - 1, 1.5, np.nan, np.inf, -np.inf, "", "x", CONTROL, b"\xff", "a/b"),
    *([], [1, 2], ["x"], ["x", "x"], [np.nan, np.inf], np.zeros((2, 2)), "{" * 5000, h5py.Empty("f4")),
)
OUTSIDE = str(Path("..") / "outside" / "file")
STORAGE = ("external link", "external storage", "virtual", "unwritten")  # what has no data of its own


def change_attribute(path: Path, draw: random.Random) -> str:
    """Removes an attribute or gives it another value."""
    with h5py.File(path, "r+") as file:
        holders = [file[name] for name in _names(file)]
        found = [(item, key) for item in (file, *holders) for key in sorted(item.attrs)]
        item, key = draw.choice(found) if found else (file, "x")
        if draw.random() < 0.2:
            del item.attrs[key]
            return f"{item.name}@{key} removed"
        value = draw.choice(ATTRIBUTES)
        item.attrs[key] = value
        return f"{item.name}@{key} is {str(value)[:40]!r}"


def change_values(path: Path, draw: random.Random) -> str:
    """Writes other values into a dataset, as HDF5 would: its checksums are right."""
    with h5py.File(path, "r+") as file:
        name, data = _dataset(file, draw)
        if not data.size or data.dtype.kind not in "iuf":
            return "nothing"
        values = data[...]
        flat = values.reshape(-1)
        at = draw.randrange(flat.size)
        if values.dtype.kind == "f":
            value = draw.choice((np.nan, np.inf, -1.0, 1e30, 0.5))
        else:
            info = np.iinfo(values.dtype)
            value = draw.choice((0, 1, info.max, info.min))
        flat[at : at + draw.choice((1, 1, flat.size))] = value
        data[...] = values
        return f"{name}[{at}] is {value}"


def change_shape(path: Path, draw: random.Random) -> str:
    """Puts a dataset of another shape or type, a group, or nothing in a dataset's place."""
    with h5py.File(path, "r+") as file:
        name, data = _dataset(file, draw)
        values = data[...]
        del file[name]
        what = draw.choice(
            ("removed", "renamed", "group", "longer", "shorter", "empty", "2-D", "scalar", "type", "strings")
        )
        if what == "renamed":
            file[f"{name}{draw.choice(('2', CONTROL))}"] = values
        elif what == "group":
            file.create_group(f"{name}/x")
        elif what == "longer":
            file[name] = np.concatenate([values, values[:1]]) if values.ndim else values
        elif what == "shorter":
            file[name] = values[:-1] if values.ndim else values
        elif what == "empty":
            file[name] = values[:0] if values.ndim else values
        elif what == "2-D":
            file[name] = values.reshape(*values.shape, 1)
        elif what == "scalar":
            file[name] = 1
        elif what == "type":
            dtype = draw.choice(("f2", "f8", "i1", "u1", "c8", ">i8", "bool"))
            file[name] = values.astype(dtype)
            what = f"of type {dtype}"
        elif what == "strings":
            file[name] = ["x"] * len(values)
        return f"{name} {what}"


def change_storage(path: Path, draw: random.Random) -> str:
    """Lets a dataset's values come from elsewhere, or from nowhere."""
    with h5py.File(path, "r+") as file:
        name, data = _dataset(file, draw)
        shape, dtype = data.shape, data.dtype
        what = draw.choice(STORAGE)
        del file[name]
        if what == "external link":
            file[name] = h5py.ExternalLink(draw.choice((OUTSIDE, "test.h5", "missing.h5")), name)
        elif what == "external storage":
            file.create_dataset(name, shape, dtype, external=[(OUTSIDE, 0, h5py.h5f.UNLIMITED)])
        elif what == "virtual":
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(draw.choice(("missing.h5", "test.h5")), name, shape)
            file.create_virtual_dataset(name, layout)
        else:
            chunks = True if shape and all(shape) else None
            file.create_dataset(name, shape, dtype, chunks=chunks)
        return f"{name}: {what}"


def claim_rows(path: Path, draw: random.Random) -> str:
    """Claims many rows in all datasets that have as many as the first one; none is stored."""
    rows = draw.choice((2**31, 2**40))
    with h5py.File(path, "r+") as file:
        names = [name for name in _names(file) if isinstance(file[name], h5py.Dataset) and file[name].shape]
        if not names:
            return "nothing"
        length = file[draw.choice(names)].shape[0]
        for name in names:
            data = file[name]
            if data.shape[0] not in (length, length + 1) or 0 in data.shape[1:]:
                continue
            shape, dtype = (rows + data.shape[0] - length, *data.shape[1:]), data.dtype
            del file[name]
            file.create_dataset(name, shape, dtype, chunks=(1024, *(1 for _ in shape[1:])))
        if "num_samples" in file.attrs:
            file.attrs["num_samples"] = rows
        return f"datasets of {length} rows claim {rows}"


def _names(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visit(found.append)
    return sorted(found)


def _dataset(file: h5py.File, draw: random.Random) -> tuple[str, h5py.Dataset]:
    name = draw.choice([name for name in _names(file) if isinstance(file[name], h5py.Dataset)])
    return name, file[name]


STRUCTURE = (change_attribute, change_values, change_shape, change_storage, claim_rows)
