#!/usr/bin/env bash
# DuckDB's exact ids become floats in pandas and NumPy as soon as signed and unsigned ones were in one column.
#
# Version: duckdb 2.0.1, pandas 3.1.1.
# Behaviour: coalesce(), UNION, FULL JOIN ... USING and CASE of BIGINT and UBIGINT have the type HUGEINT, and so has a CSV
#   column with an id of 2^63 or more. It is exact in SQL and, as a decimal, in Arrow; df() and fetchnumpy() give float64
#   without a word, so that ids above 2^53 meet.
# Output seen: "type in SQL: HUGEINT", "distinct ids in SQL: 4", "in Arrow: decimal128(38, 0) 4", "in pandas: float64 2",
#   "in NumPy: float64 2".
# Why it matters: clicks with signed ids joined with a catalogue of unsigned hashes is an everyday step of preparing
#   training data; counts in SQL are right, and the frame that is trained on has other ids. (This package refuses
#   floats beyond 2^53 as ids, with row and value.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet duckdb==2.0.1 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6
cd "$work"
cat > seen.py <<'P'
import duckdb
import numpy as np

base = 1 << 60
con = duckdb.connect()
con.execute("create table clicks (item BIGINT)")
con.execute("create table catalogue (item UBIGINT)")
con.execute("insert into clicks values (?), (?)", [base, base + 1])
con.execute("insert into catalogue values (?), (?), (?)", [base + 1, 2 * base + 2, 2 * base + 3])
joined = "select item from clicks full join catalogue using (item)"
print("type in SQL:", con.sql(f"select any_value(typeof(item)) from ({joined})").fetchall()[0][0])
print("distinct ids in SQL:", con.sql(f"select count(distinct item) from ({joined})").fetchall()[0][0])
column = con.sql(joined).arrow().read_all()["item"]
print("in Arrow:", column.type, len(set(column.to_pylist())))
series = con.sql(joined).df()["item"]
print("in pandas:", series.dtype, series.nunique())
array = con.sql(joined).fetchnumpy()["item"]
print("in NumPy:", array.dtype, len(np.unique(array)))
P
"$work/venv/bin/python" seen.py | tee seen.txt
diff seen.txt - <<'T'
type in SQL: HUGEINT
distinct ids in SQL: 4
in Arrow: decimal128(38, 0) 4
in pandas: float64 2
in NumPy: float64 2
T
echo "as seen"
