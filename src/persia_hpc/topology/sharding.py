"""Says which server owns which buckets of a table's key space."""

from __future__ import annotations


def bucket_bounds(num_buckets: int, num_servers: int) -> list[int]:
    """Returns num_servers + 1 bounds: server p owns the buckets [bounds[p], bounds[p + 1]).

    Sizes differ by at most one. A table with fewer buckets than servers leaves some servers without any.
    """
    return [num_buckets * p // num_servers for p in range(num_servers + 1)]
