#!/usr/bin/env bash
# np.intersect1d finds ids in common that == and np.isin tell apart, where one side is uint64 and the other int64.
#
# Versions: numpy 2.4.6.
# Behaviour: NumPy compares uint64 with int64 exactly (==, and np.isin too), but puts arrays of both together as float64.
#   np.intersect1d, np.union1d, and np.asarray of a list with ids below and above
#   2**63 do that without a warning, so that different ids above 2**53 become one.
# Output seen: "== : False", "isin: False", "intersect1d: 1 id, float64", "list of 3 ids: 2 left, float64".
# Why it matters: hashed ids fill 64 bits. One file with int64 ids (Parquet's and pandas' default) beside one with uint64
#   gives vocabularies and splits with ids that neither of them has.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6
cd "$work"
cat > try.py <<'P'
import numpy as np

unsigned, signed = np.array([2**53 + 1], np.uint64), np.array([2**53], np.int64)
print("== :", (unsigned == signed)[0])
print("isin:", np.isin(unsigned, signed)[0])
both = np.intersect1d(unsigned, signed)
print(f"intersect1d: {len(both)} id, {both.dtype}")
ids = np.asarray([1, 2**63, 2**63 + 1])
print(f"list of 3 ids: {len(np.unique(ids))} left, {ids.dtype}")
P
"$work/venv/bin/python" try.py | tee seen
diff seen - <<'S'
== : False
isin: False
intersect1d: 1 id, float64
list of 3 ids: 2 left, float64
S
