"""Checkpoints: one HDF5 shard a server, the dense model, and a manifest that names them all.

A checkpoint is written aside as `step-XXXXXXXX.partial`, fsynced, renamed, and only then does `latest` point
to it. The rows of a shard are grouped by bucket, so any number of servers can load it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from .config import Config
from .errors import DataError, UserError
from .files import sync_path
from .samples.schema import DatasetSchema, FeatureSchema

if TYPE_CHECKING:
    from .parameter_server.engine import ParameterServer

Array = npt.NDArray[Any]
FORMAT_VERSION = 1
_BYTES_AT_ONCE = 1 << 20


def write_shard(path: str, server: ParameterServer) -> None:
    """Writes a server's rows, optimizer state and recency, as they are now, and fsyncs the file."""
    with h5py.File(path, "w") as file:
        file.attrs["format_version"] = FORMAT_VERSION
        for layout, table, buckets in zip(server.layout.tables, server.tables, server.buckets, strict=True):
            if table is None:
                continue
            group = file.create_group(layout.name)
            group.attrs.update(
                dim=layout.dim, num_buckets=layout.num_buckets, optimizer=layout.config.optimizer["name"]
            )
            parts = [(b, table.export_bucket(b)) for b in buckets]
            group["buckets"] = np.array([b for b, _ in parts], np.uint32)
            group["bucket_offsets"] = np.cumsum([0, *(len(p["keys"]) for _, p in parts)], dtype=np.uint64)
            for name in parts[0][1]:
                group.create_dataset(name, data=np.concatenate([p[name] for _, p in parts]), fletcher32=True)
    sync_path(path)


def read_shards(directory: Path, server: ParameterServer) -> None:
    """Loads the rows of all shards of a checkpoint that belong to `server`."""
    for file_name in read_manifest(directory)["shards"]:
        try:
            with h5py.File(directory / file_name, "r") as file:
                for layout, table, owned in zip(
                    server.layout.tables, server.tables, server.buckets, strict=True
                ):
                    if table is None or layout.name not in file:
                        continue
                    group = file[layout.name]
                    if group.attrs["dim"] != layout.dim or group.attrs["num_buckets"] != layout.num_buckets:
                        raise UserError(
                            f"{directory / file_name}: table {layout.name!r} has dim {group.attrs['dim']} "
                            f"and {group.attrs['num_buckets']} buckets, the configuration says "
                            f"{layout.dim} and {layout.num_buckets}; load it with its own configuration"
                        )
                    which = np.flatnonzero(np.isin(group["buckets"][:], list(owned)))
                    if not len(which):
                        continue
                    offsets = group["bucket_offsets"][:]
                    begin, end = int(offsets[which[0]]), int(offsets[which[-1] + 1])
                    names = [n for n in group if n not in ("buckets", "bucket_offsets")]
                    table.import_rows({n: group[n][begin:end] for n in names})
        except OSError as error:
            raise DataError(
                f"{directory / file_name}: can't be read ({error}); use an older checkpoint"
            ) from error


def begin(run_dir: Path, step: int) -> Path:
    """Makes the directory that shards are written into."""
    path = run_dir / f"step-{step:08d}.partial"
    _remove(path)  # of a job that died while it wrote
    path.mkdir(parents=True)
    return path


def finish(directory: Path, step: int, config: Config, schema: DatasetSchema, dense: dict[str, Any]) -> Path:
    """Adds `dense.pt` and the manifest, then renames and moves `latest`. By trainer 0, after all shards are
    written.
    """
    import torch  # only trainers come here; servers use this module too and must not pay for it

    torch.save(dense, directory / "dense.pt")
    sync_path(directory / "dense.pt")
    files = sorted(p for p in directory.iterdir() if p.name != "manifest.json")
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "shards": [p.name for p in files if p.suffix == ".h5"],
        "sha256": {p.name: _sha256(p) for p in files},
        "config": config.resolved(),
        "schema": dataclasses.asdict(schema),
    }
    with (directory / "manifest.json").open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    final = directory.with_suffix("")
    _remove(final)
    sync_path(directory)
    directory.rename(final)
    link = final.parent / "latest"
    aside = final.parent / "latest.partial"
    aside.unlink(missing_ok=True)
    aside.symlink_to(final.name)
    aside.replace(link)
    sync_path(final.parent)
    return final


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; UserError when there is none or it is newer than this package."""
    try:
        manifest: dict[str, Any] = json.loads((directory / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{directory} is not a checkpoint ({error}); expected a folder like runs/1/latest, with "
            "manifest.json"
        ) from error
    if manifest["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{directory} has checkpoint format {manifest['format_version']}, this package reads up to "
            f"{FORMAT_VERSION}; update persia-hpc"
        )
    return manifest


def read_schema(manifest: dict[str, Any]) -> DatasetSchema:
    """The schema of the dataset that a checkpoint was trained on."""
    fields = dict(manifest["schema"])
    features = tuple(FeatureSchema(**f) for f in fields.pop("features"))
    rest: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return DatasetSchema(features, **rest)


def _remove(path: Path) -> None:
    if path.exists():
        for entry in path.iterdir():
            entry.unlink()
        path.rmdir()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BYTES_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()
