"""`persia-hpc bench read` reads the file that it writes, every way."""

from __future__ import annotations

import json
from pathlib import Path

from persia_hpc.cli import main


def test_bench_read_measures_each_compression(tmp_path: Path) -> None:
    report = tmp_path / "feed.json"
    command = ["bench", "read", "--samples", "3000", "--block-rows", "512", "--buffer-blocks", "2"]
    assert main([*command, "--repeats", "1", "--json", str(report)]) == 0
    results = json.loads(report.read_text())["results"]
    cases = [(r["case"]["compression"], r["case"]["shuffle"]) for r in results]
    formats = ("lz4", "gzip", "none", "parquet, snappy", "parquet, zstd")
    assert cases == [(c, s) for c in formats for s in (True, False)]
    assert all(set(r["ratios"]) == {"read", "memcpy"} for r in results)
