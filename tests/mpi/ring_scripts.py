"""Draws scripts for programs/ring_scripts.py: what a ring may meet, in sizes, shapes and pace."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

RINGS = [4096, 16384, 65536]
DTYPES = ["bool", "uint8", "uint16", "float16", "int32", "float32", "uint64", "float64"]


@st.composite
def records(draw: st.DrawFn, ring_bytes: int) -> dict[str, Any]:
    """Sizes small, near the limit of an entry (a quarter of the ring), and up to several rings."""
    quarter = ring_bytes // 4
    sizes = st.one_of(
        st.integers(0, 200),
        st.integers(quarter - 200, quarter + 200),
        st.integers(0, quarter),
        st.integers(ring_bytes - 100, ring_bytes + 100) if draw(st.booleans()) else st.just(0),
        st.integers(0, 3 * ring_bytes) if draw(st.integers(0, 4)) == 0 else st.integers(0, 64),
    )
    arrays = []
    for _ in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(DTYPES))
        columns = draw(st.sampled_from([0, 0, 1, 7, 16]))
        item = {"bool": 1, "uint8": 1, "uint16": 2, "float16": 2, "int32": 4, "float32": 4}.get(dtype, 8)
        rows = draw(sizes) // (item * max(columns, 1))
        arrays.append([dtype, rows, columns, draw(st.integers(1, 3))])
    return {"arrays": arrays, "reserve": draw(st.booleans())}


@st.composite
def script_strategy(draw: st.DrawFn) -> dict[str, Any]:
    ring = draw(st.sampled_from([0, 0, 1, 2]))
    return {
        "ring": ring,
        "records": draw(st.lists(records(RINGS[ring]), min_size=1, max_size=25)),
        "pause": draw(st.sampled_from([0, 0, 0, 1e-3])),
        "hold": draw(st.sampled_from([0, 0, 1, 3])),
        "stall": draw(st.sampled_from([0, 0, 0, 1e-3])),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def storm(num_records: int) -> dict[str, Any]:
    """As many large records as fast as they go: what shows a word that overtakes its payload."""
    record = {"arrays": [["uint8", RINGS[2] // 4 - 128, 0, 1]], "reserve": False}
    return {"ring": 2, "records": [record] * num_records, "pause": 0, "hold": 0, "stall": 0, "seed": 1}


def draw_scripts(count: int) -> list[dict[str, Any]]:
    """`count` scripts, drawn first and run later: a start of mpiexec costs more than many of them."""
    drawn: list[dict[str, Any]] = []

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(script_strategy())
    def collect(script: dict[str, Any]) -> None:
        drawn.append(script)

    collect()
    return drawn
