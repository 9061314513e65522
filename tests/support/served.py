"""A directory of versions that is the same each time, made of a checkpoint; and its files signed anew."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc._native import mix
from persia_hpc.checkpoint.manifest import read_manifest, read_schema, sealed
from persia_hpc.checkpoint.rows import load_rows
from persia_hpc.config import load_config
from persia_hpc.job.facts import make_facts
from persia_hpc.job.local_stream import local_server
from persia_hpc.serving.directory import ExportDirectory
from persia_hpc.serving.manifest import write_manifest
from persia_hpc.serving.names import DENSE, MANIFEST, base_name, version_name
from persia_hpc.serving.requests import ExportRequest
from persia_hpc.serving.writer import PartWriter

EXPORT = "0123456789abcdef" * 2


def write_export(directory: Path, checkpoint: Path, rows: str = "fp32") -> None:
    """A base of a checkpoint's rows, and two versions in each of which rows were new."""
    manifest = read_manifest(checkpoint)
    config, schema = load_config(manifest["config"]), read_schema(manifest)
    server = local_server(make_facts(config, schema, {}))
    load_rows(checkpoint, server)
    parts, export, step = PartWriter(server, rows), ExportDirectory(directory), manifest["step"]

    def write(kind: str, number: int, name: str, values: Callable[[Path], dict[str, Any]]) -> None:
        path = export.begin(name)
        parts.begin(ExportRequest(kind, number, step, str(path)))
        while not (reports := parts.finished()):
            time.sleep(0.001)
        (report,) = reports
        assert not report.error, report.error
        files = {report.file: {"bytes": report.bytes, "crc32": report.crc32}}
        of = values(path)
        write_manifest(
            path, {"export": EXPORT, **of, "step": step, "files": {**files, **of.get("files", {})}}
        )
        export.finish(name)

    facts = {"rows": rows, "config": config.resolved(), "schema": dataclasses.asdict(schema)}
    write("begin", 1, base_name(1), lambda _: {"base": 1, **facts})

    def version(path: Path) -> dict[str, Any]:
        shutil.copyfile(checkpoint / DENSE, path / DENSE)
        content = (path / DENSE).read_bytes()
        note = {"bytes": len(content), "crc32": zlib.crc32(content)}
        number = int(path.name[8:16])
        return {"version": number, "time": 1.5e9, "base": 1, "files": {DENSE: note}}

    for number in (2, 3):
        for table in server.tables:
            assert table is not None
            keys = np.sort(mix(np.arange(number * 10, number * 10 + 9, dtype=np.uint64)))
            rows, slots = np.empty((len(keys), table.dim), np.float32), np.empty(len(keys), np.uint32)
            epoch = table.pull(keys, step, rows, slots)
            table.push(keys, slots, np.zeros_like(rows), step, epoch)
        write("version", number, version_name(number), version)
        export.point(number)
    export.close()


def sign(directory: Path, name: str) -> None:
    """Makes a version's manifest say what one of its files is now."""
    manifest = json.loads((directory / MANIFEST).read_bytes())
    content = (directory / name).read_bytes()
    manifest["files"][name] = {"bytes": len(content), "crc32": zlib.crc32(content)}
    (directory / MANIFEST).write_text(json.dumps(sealed(manifest)))
