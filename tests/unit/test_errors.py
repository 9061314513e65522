"""An error is a message that a person reads."""

from __future__ import annotations

import pytest

from persia_hpc.errors import MOST_CHARACTERS, AgreedError, DataError, PersiaError, UserError


@pytest.mark.parametrize("kind", [PersiaError, UserError, DataError, lambda text: AgreedError(3, text)])
def test_only_a_long_message_is_shortened(kind: type[PersiaError]) -> None:
    short = "a.h5: " + "x" * (MOST_CHARACTERS - 6)
    assert str(kind(short)) == short
    long = str(kind(f"a.h5: {'x' * 100_000}; prepare it again"))
    assert len(long) <= MOST_CHARACTERS
    assert long.startswith("a.h5: xxx")
    assert long.endswith("xxx; prepare it again")
