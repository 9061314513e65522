"""An error is a message that a person reads."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from persia_hpc.errors import MOST_CHARACTERS, AgreedError, DataError, PersiaError, UserError
from persia_hpc.preprocess.frames import BadRowsError
from persia_hpc.samples.containment import StorageError
from persia_hpc.samples.validity import InvalidRowError


@pytest.mark.parametrize("kind", [PersiaError, UserError, DataError, lambda text: AgreedError(3, text)])
def test_only_a_long_message_is_shortened(kind: type[PersiaError]) -> None:
    short = "a.h5: " + "x" * (MOST_CHARACTERS - 6)
    assert str(kind(short)) == short
    long = str(kind(f"a.h5: {'x' * 100_000}; prepare it again"))
    assert len(long) <= MOST_CHARACTERS
    assert long.startswith("a.h5: xxx")
    assert long.endswith("xxx; prepare it again")


@pytest.mark.parametrize(
    "error",
    [
        PersiaError("one"),
        DataError("two"),
        AgreedError(75, "three"),
        StorageError("a.h5: got a link", "copy it"),
        InvalidRowError(7, "got NaN"),
        BadRowsError(Path("a.csv"), [(range(3, 4), "got nothing")]),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_another_rank_gets_the_same_error(error: PersiaError, protocol: int) -> None:
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert (str(again), again.exit_code) == (str(error), error.exit_code)
    assert vars(again) == vars(error)
