"""What two_tower refuses."""

from __future__ import annotations

import pytest

from persia_hpc.errors import UserError
from persia_hpc.models import build_model
from tests.support.histories import history_inputs


def test_a_query_may_not_know_its_item() -> None:
    with pytest.raises(UserError, match="queries names 'item', which is the item's"):
        build_model("two_tower", history_inputs(), {"items": ["item"], "queries": ["user", "item"]})
    built = build_model("two_tower", history_inputs(), {"items": ["item"], "queries": ["user", "items"]})
    assert built.query_tower.names == ["user", "items"]
