"""Lists a run's checkpoints and their contents without reading rows: `persia-hpc checkpoint ls`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py

from persia_hpc.errors import PersiaError, UserError

from .files import best_name
from .manifest import part_path, read_manifest
from .names import MANIFEST, STEP_NAME, is_cold, step_of
from .parts import COLD, ROWS, masks_of
from .tables import groups_of, open_shard

Sizes = dict[tuple[int, int], int]  # of files, each by its device and inode


def is_run(path: Path) -> bool:
    """Returns whether `path` is a run directory with checkpoints, False if it is a checkpoint.

    A directory with a checkpoint's name counts as one even if it lacks its manifest.
    Raises UserError if `path` is neither.
    """
    if (path / MANIFEST).exists() or (STEP_NAME.fullmatch(path.resolve().name) and path.is_dir()):
        return False
    if checkpoints_of(path) or partials_of(path):
        return True
    raise UserError(
        f"{path} is neither a checkpoint nor a run with one; expected something like runs/1 or runs/1/latest"
    )


def checkpoints_of(run_dir: Path) -> list[Path]:
    """Returns all directories of a run that have a checkpoint's name, newest first."""
    found = [p for p in run_dir.glob("step-*") if STEP_NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def partials_of(run_dir: Path) -> list[Path]:
    """Returns the checkpoints that are being written, or that a job left half-written when it died."""
    return sorted(p for p in run_dir.glob("step-*.partial") if p.is_dir())


def describe(directory: Path) -> dict[str, Any]:
    """Returns what a checkpoint holds, as values for `--json`.

    `rows` of a table counts the rows in the checkpoint's own files: for an incremental one those that changed
    since its base. `removed` counts the keys that were removed since. `problem` says what can't be read.
    """
    return _described(directory, _sizes(directory))


def _described(directory: Path, sizes: Sizes) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": directory.name, "bytes": sum(sizes.values())}
    try:
        manifest = read_manifest(directory)
        facts |= {
            "step": manifest["step"],
            "base": manifest["base"],
            "servers": len(manifest["shards"]),
            "written": (directory / MANIFEST).stat().st_mtime,
            "tables": {},
        }
        for name in manifest["shards"]:
            with open_shard(part_path(directory, name)) as shard:
                for table, group in groups_of(shard).items():
                    _add_group(facts["tables"].setdefault(table, {}), group)
        for name in filter(is_cold, manifest["files"]):
            with open_shard(part_path(directory, name)) as cold:
                for table, group in groups_of(cold).items():
                    facts["tables"][table]["bytes"] += _stored_bytes(group)
    except PersiaError as error:
        facts["problem"] = str(error)
    except (OSError, KeyError, RuntimeError, TypeError, AttributeError, ValueError) as error:
        facts["problem"] = f"can't be read ({error}); see persia-hpc checkpoint verify"
    return facts


def _add_group(table: dict[str, Any], group: h5py.Group) -> None:
    attributes = group.attrs
    table["dim"] = int(attributes["dim"])
    table["optimizer"] = str(attributes["optimizer"])
    table["eviction"] = str(attributes["eviction"])
    table["buckets"] = int(attributes["num_buckets"])
    table["complete"] = bool(attributes["complete"]) and table.get("complete", True)
    counts = {
        "rows": len(group["keys"]) + sum(int(mask.attrs[ROWS]) for mask in masks_of(group).values()),
        "removed": len(group["removed"]) if "removed" in group else 0,
        "bytes": _stored_bytes(group),
    }
    for name, count in counts.items():
        table[name] = table.get(name, 0) + count


def _stored_bytes(group: h5py.Group) -> int:
    return sum(item.id.get_storage_size() for name, item in group.items() if name != COLD)


def list_run(run_dir: Path, most: int | None = None) -> dict[str, Any]:
    """Returns the checkpoints of a run, newest first, and the half-written ones, for `--json`.

    most: of the checkpoints, None for all. `bytes` is what those listed take together: files that several
    share count once.
    """
    link = run_dir / "latest"
    listed, partial = (
        [(path, _sizes(path)) for path in paths]
        for paths in (checkpoints_of(run_dir)[:most], partials_of(run_dir))
    )
    together = {file: size for _, sizes in (*listed, *partial) for file, size in sizes.items()}
    return {
        "run": str(run_dir),
        "latest": link.readlink().name if link.is_symlink() else None,
        "best": best_name(run_dir),
        "bytes": sum(together.values()),
        "checkpoints": [_described(path, sizes) for path, sizes in listed],
        "partial": [{"name": path.name, "bytes": sum(sizes.values())} for path, sizes in partial],
    }


def run_text(listed: Mapping[str, Any], now: float | None = None) -> str:
    """Returns the result of `list_run` as a table for people.

    now: the current time in seconds since the epoch, None for the clock's.
    """
    head = ("checkpoint", "holds", "servers", "rows", "size", "written", "")
    lines: list[Sequence[str]] = [head]
    for facts in listed["checkpoints"]:
        marks = [mark for mark in ("latest", "best") if facts["name"] == listed[mark]]
        lines.append((*_cells(facts, now), "; ".join(filter(None, [*marks, facts.get("problem", "")]))))
    for partial in listed["partial"]:
        size = size_text(partial["bytes"])
        lines.append((partial["name"], "", "", "", size, "", "being written, or left by a job that died"))
    each = sum(facts["bytes"] for facts in (*listed["checkpoints"], *listed["partial"]))
    if listed["bytes"] < each:
        lines.append(
            ("together", "", "", "", size_text(listed["bytes"]), "", "files that several share count once")
        )
    names = {facts["name"] for facts in listed["checkpoints"]}
    text = _aligned(lines, right=(2, 3, 4))
    for link in ("latest", "best"):
        if listed[link] is not None and listed[link] not in names:
            text += f"\n{link} points to {listed[link]}, which isn't there"
    return text


def checkpoint_text(facts: Mapping[str, Any]) -> str:
    """Returns the result of `describe` as a table with one line for each embedding table."""
    head = [f"{facts['name']}: {size_text(facts['bytes'])}"]
    if "tables" in facts:
        head.append(f"step {facts['step']}, {_holds(facts)}, {count_text(facts['servers'], 'server')}")
    if "problem" in facts:
        head.append(facts["problem"])
    lines: list[Sequence[str]] = [("table", "dim", "optimizer", "eviction", "buckets", "rows", "size", "")]
    for name, table in facts.get("tables", {}).items():
        if "bytes" not in table:  # the problem came before
            continue
        note = "" if table["complete"] else f"changed; {table['removed']:,} removed"
        numbers = (f"{table['buckets']:,}", f"{table['rows']:,}", size_text(table["bytes"]))
        lines.append((name, str(table["dim"]), table["optimizer"], table["eviction"], *numbers, note))
    return "\n".join([*head, "", _aligned(lines, right=(1, 4, 5, 6))])


def size_text(num_bytes: float) -> str:
    """Returns a number of bytes as text, in a unit that suits its size."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while num_bytes >= 1024 and len(units) > 1:
        num_bytes /= 1024
        units.pop(0)
    return f"{num_bytes:,.{0 if units[0] == 'B' else 1}f} {units[0]}"


def count_text(count: int, noun: str) -> str:
    """Returns a number with its noun, in the plural where needed: '1 server', '2 servers'."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _cells(facts: Mapping[str, Any], now: float | None) -> tuple[str, ...]:
    if "tables" not in facts:
        return (facts["name"], "", "", "", size_text(facts["bytes"]), "")
    rows = sum(table.get("rows", 0) for table in facts["tables"].values())
    age = _age((time.time() if now is None else now) - facts["written"])
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts["written"]))
    size = size_text(facts["bytes"])
    return (facts["name"], _holds(facts), str(facts["servers"]), f"{rows:,}", size, f"{date} ({age})")


def _holds(facts: Mapping[str, Any]) -> str:
    return "all rows" if facts["base"] is None else f"changes since {facts['base']}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def _sizes(directory: Path) -> Sizes:
    """Returns the bytes of the files in a directory; one that has several names counts once."""
    sizes = {}
    for path in directory.glob("*"):
        try:
            found = path.stat()
        except OSError:  # it is going on
            continue
        sizes[found.st_dev, found.st_ino] = found.st_size
    return sizes


def _aligned(lines: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
