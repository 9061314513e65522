"""Messages about what decides whether a table keeps, or takes in, a row."""

from __future__ import annotations

from typing import Any

import pytest

from persia_hpc.config import load_config
from persia_hpc.errors import UserError

MINIMAL = {"data": {"train": ["train.h5"]}, "model": {"class": "dlrm"}}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"tables.a.ttl": 4}, ["tables.a.ttl = 4: expected 0 (none) or more than staleness_bound = 4"]),
        ({"tables.a.ttl": 9, "tables.a.eviction": "lfu"}, ["tables.a.ttl = 9: only eviction = 'lru'"]),
        ({"tables.a.admission": {"afer": 3}}, ["tables.a.admission.afer", "did you mean 'after'"]),
        ({"tables.a.admission": {"after": 1.5}}, ["tables.a.admission.after = 1.5", "1 to 255"]),
        ({"tables.a.admission": {"probability": 0}}, ["tables.a.admission.probability = 0", "at most 1"]),
        ({"tables.a.disk": {"path": "/x"}}, ["tables.a.disk.capacity is missing"]),
        ({"tables.a.disk": "/x"}, ["tables.a.disk = '/x' (string): expected a table [tables.a.disk]"]),
        ({"tables.a.disk": {"path": "", "capacity": 9}}, ["tables.a.disk.path = '': expected a directory"]),
        ({"tables.a.disk": {"path": "/x", "capacity": 0}}, ["tables.a.disk.capacity = 0", "more than 0"]),
        (
            {
                "tables.a.disk": {"path": "/x", "capacity": "1 TiB", "on_full": "evict"},
                "tables.a.eviction": "lfu",
            },
            ["tables.a.disk.on_full = 'evict'", "only eviction = 'lru'", "'stop'"],
        ),
        ({"tables.a.storage": "fp8"}, ["tables.a.storage = 'fp8': expected one of fp32, fp16, bf16"]),
    ],
)
def test_mistakes_are_named_with_their_key_and_what_was_expected(
    changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(MINIMAL, changes)
    for part in parts:
        assert part in str(caught.value)
