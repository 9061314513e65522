"""Footers of Parquet files: what was written is what is read, and damage is refused in words."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.samples.parquet_footer import read_footer


def write(path: Path, rows: int, group: int, lists: list[list[int]]) -> None:
    numbers = np.arange(rows)
    columns = {"a": numbers, "b": (numbers % 3).astype(str), "l": [lists[i % len(lists)] for i in numbers]}
    schema = {"a": pl.Int64, "b": pl.String, "l": pl.List(pl.Int64)}
    pl.DataFrame(columns, schema=schema).write_parquet(path, row_group_size=group)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(1, 60),
    st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=9),
)
def test_row_groups_and_values_are_those_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: int, group: int, lists: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("footer") / "a.parquet"
    write(path, rows, group, lists)
    footer = read_footer(str(path))
    whole, rest = divmod(rows, group)
    assert tuple(n for n in footer.row_groups if n) == (group,) * whole + (rest,) * (rest > 0)
    if rows:
        taken = [lists[i % len(lists)] for i in range(rows)]
        assert footer.num_values == {"a": rows, "b": rows, "l": sum(max(1, len(each)) for each in taken)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "a.parquet"
    write(path, 100, 40, [[1], [], [2, 3]])
    return path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_refused_or_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, sound: bytes, data: st.DataObject
) -> None:
    content = bytearray(sound)
    length = int.from_bytes(sound[-8:-4], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(len(sound) - 8 - length, len(sound) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    path.write_bytes(content)
    with suppress(ValueError):
        assert min(read_footer(str(path)).row_groups, default=0) >= 0


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "a.parquet"
    for length in (*range(0, len(sound), 37), len(sound) - 1):
        path.write_bytes(sound[:length])
        with pytest.raises(ValueError, match=r"its end is missing|got a footer of"):
            read_footer(str(path))


def test_row_groups_must_lie_inside_of_the_file(tmp_path: Path, sound: bytes) -> None:
    """A footer behind other data than its own, as after a copy that lost blocks."""
    length = int.from_bytes(sound[-8:-4], "little")
    path = tmp_path / "a.parquet"
    path.write_bytes(sound[: len(sound) // 4] + sound[-8 - length :])
    with pytest.raises(ValueError, match="isn't inside of the file"):
        read_footer(str(path))
