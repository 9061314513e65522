"""Root attributes of any kind: told in one line, and nothing but what they should be vouches for data."""

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from persia_hpc.errors import DataError, UserError
from persia_hpc.samples.attributes import text_of, texts_of
from persia_hpc.samples.datafile import scan
from persia_hpc.samples.source import open_source
from tests.support.samples import random_batch, write
from tests.support.tiny import write_tiny

ROWS = 50
WRONG: list[Any] = [
    math.inf,
    -math.inf,
    math.nan,
    -1,
    0.5,
    "one",
    b"\xff",
    [1, 2],
    [],
    [[0.0, 0.0], [0.0, 0.0]],
    1j,
    h5py.Empty("f4"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(write(tmp_path / "data.h5", random_batch(ROWS, optional=True)))


def put(path: Path, name: str, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize("name", ["schema_version", "num_samples"])
def test_a_count_that_is_none_is_named(path: Path, name: str, value: Any) -> None:
    put(path, name, value)
    with pytest.raises(UserError, match=f"^{path}: attribute {name}: got .*expected a whole number") as error:
        scan(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize("name", ["feature_names", "dense_names", "label_names"])
def test_names_of_another_type_are_one_line(path: Path, name: str, value: Any) -> None:
    put(path, name, value)
    try:
        scan(str(path))
    except UserError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


VOUCHING = {"dense_finite": "dense", "label_min": "label", "label_binary": "label", "weight_max": "weight"}


@pytest.mark.parametrize("value", [value for value in WRONG if value not in (-1, 0.5)], ids=str)
@pytest.mark.parametrize("name", VOUCHING)
def test_only_proper_attributes_vouch_for_values(path: Path, name: str, value: Any) -> None:
    """A bad value is found although the attribute is there."""
    with h5py.File(path, "r+") as file:
        data = file[VOUCHING[name]]
        data[3] = 7 if name == "label_binary" else np.inf
        if name == "label_binary":
            file.attrs["label_max"] = np.float32([7])
    put(path, name, value)
    with pytest.raises(DataError, match="row 3: got"):
        open_source([str(path)], binary_labels=name == "label_binary").read(0, ROWS)


def test_no_text_lies_in_the_heap_without_checksum_and_both_kinds_are_read(tmp_path: Path) -> None:
    """Strings of any length, as older files have them, mean the same as those of fixed length."""
    path = write_tiny(tmp_path / "a.h5", 5, encoding="Zürich-1")
    before = scan(path).schema
    assert before.encoding == "Zürich-1"
    with h5py.File(path, "r+") as file:
        texts = 0
        for name in file.attrs:
            kind = h5py.check_string_dtype(file.attrs.get_id(name).dtype)
            if kind is not None:
                assert kind.length is not None, name
                value, texts = file.attrs[name], texts + 1
                old = texts_of(value) if np.ndim(value) else text_of(value)
                file.attrs[name] = np.array(old, h5py.string_dtype()) if np.ndim(value) else old
        assert texts == 7
    assert scan(path).schema == before
