"""Runs with checkpoints of every kind, and ways to damage them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import persia_hpc as ph
from persia_hpc.checkpoint.manifest import sealed
from persia_hpc.checkpoint.tables import bucket_of
from persia_hpc.cli import main
from tests.support.tiny import tiny_config, write_tiny

VOCABULARY = 400
TTL = 2  # of table user
IDS = np.arange(VOCABULARY)
TABLES = {"item": 4, "tags": 4, "user": 6}
FULL, CHANGES, LAST = "step-00000002", "step-00000006", "step-00000010"  # CHANGES is based on FULL
ROWWISE = ("keys", "rows", "state", "stamps", "steps")
BUCKETWISE = ("ages", "counted", "sightings")


def train_runs(root: Path, names: str = "ab") -> Path:
    """Runs in `root`; a: incremental between full ones, b: the same, all full."""
    data = write_tiny(root / "train.h5", 320, vocabulary=VOCABULARY)
    for name in names:
        config = tiny_config(
            data,
            **{
                "run_dir": str(root / name),
                "checkpoint": {"every": 2, "full_every": 3 if name == "a" else 1, "keep": 9},
                "tables.item.capacity": 15000,  # evicts
                "tables.user": {
                    "dim": 6,
                    "optimizer": {"name": "adam", "lr": 0.01},
                    "ttl": TTL,
                    "buckets": 4,
                },
                "tables.tags": {
                    "dim": 4,
                    "optimizer": {"name": "sgd"},
                    "hash": {"size": 64, "rounds": 2},
                    "eviction": "lfu",  # always whole
                },
            },
        )
        ph.train(config, quiet=True)
    return root


def own(path: Path) -> Path:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path


def change_manifest(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """As if it had been written so, with the checksum of its values."""
    path = own(directory / "manifest.json")
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(sealed(manifest)))


def sign(directory: Path, *names: str) -> None:
    """Notes the files as they are: damage from before they were written."""

    def note(manifest: dict[str, Any]) -> None:
        for name in names:
            content = (directory / name).read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            manifest["files"].setdefault(name, {}).update(bytes=len(content), sha256=sha256)

    change_manifest(directory, note)


def change_shard(directory: Path, change: Callable[[h5py.File], Any], name: str = "server-0000.h5") -> None:
    with h5py.File(own(directory / name), "r+") as shard:
        change(shard)
    sign(directory, name)


def put(dataset: str, at: Any, value: Any) -> Callable[[h5py.File], None]:
    def change(shard: h5py.File) -> None:
        shard[dataset][at] = value

    return change


def split(directory: Path, num_servers: int) -> None:
    """As if so many servers had written it."""
    old = directory / "server-0000.h5"
    names = [f"server-{i:04d}.h5" for i in range(num_servers)]
    with h5py.File(old) as source:
        for server, name in enumerate(names):
            with h5py.File(directory / f"new-{name}", "w") as target:
                for table, group in source.items():
                    bounds = [len(group["buckets"]) * (server + i) // num_servers for i in (0, 1)]
                    offsets = group["bucket_offsets"][bounds[0] : bounds[1] + 1]
                    rows, buckets = slice(int(offsets[0]), int(offsets[-1])), slice(*bounds)
                    part = target.create_group(table)
                    part.attrs.update(group.attrs)
                    part["buckets"] = group["buckets"][buckets]
                    part["bucket_offsets"] = offsets - offsets[0]
                    for dataset in group.keys() & {*ROWWISE, *BUCKETWISE}:
                        part[dataset] = group[dataset][rows if dataset in ROWWISE else buckets]
                    if "removed" in group:
                        keys = group["removed"][:]
                        of = bucket_of(keys, int(group.attrs["num_buckets"]))
                        part["removed"] = keys[(of >= bounds[0]) & (of < bounds[1])]
    old.unlink()
    for name in names:
        (directory / f"new-{name}").rename(directory / name)
    change_manifest(directory, lambda manifest: manifest.update(shards=names))
    sign(directory, *names)


def stored(directory: Path, table: str, dataset: str) -> np.ndarray:
    with h5py.File(directory / "server-0000.h5") as shard:
        return shard[table][dataset][:]


def cut(path: Path) -> None:
    own(path).write_bytes(path.read_bytes()[:-100])


def flip(path: Path, at: int) -> None:
    content = bytearray(own(path).read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def flip_row(directory: Path) -> None:
    with h5py.File(directory / "server-0000.h5") as shard:
        data = shard["user/rows"]
        at = data.id.get_offset() if data.chunks is None else data.id.get_chunk_info(0).byte_offset
    flip(directory / "server-0000.h5", at + 5)


def flip_weight(directory: Path) -> None:
    model = torch.load(directory / "dense.pt", weights_only=True)["model"]
    at = (directory / "dense.pt").read_bytes().index(model["body.weight"].numpy().tobytes())
    flip(directory / "dense.pt", at)


def persia(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["checkpoint", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err
