#!/usr/bin/env bash
# Polars takes a CSV file's hashed ids for 128-bit integers, and pyarrow can open no column of the Parquet file it makes.
#
# Version: polars 2.1.0, pyarrow 26.0.1.
# Behaviour: read_csv gives a column with a number of 2^63 or more the type Int128, though all of them are below 2^64
#   and polars has UInt64. to_numpy() of it raises; write_parquet() says nothing and writes a logical type of Arrow's
#   128-bit integers. pyarrow, and pandas by it, refuse the schema of that file, so that its other columns can't be read
#   either.
# Output seen: "type: Int128", "to_numpy: InvalidOperationError", "polars reads its file back: True",
#   "pyarrow, only the label: ArrowNotImplementedError: Integers with more than 64 bits not implemented",
#   "with schema_overrides: True".
# Why it matters: hashes are the usual ids of recommender data, and half of them are 2^63 or more. A conversion from CSV
#   to Parquet by two lines of polars passes its own checks and is of no use to the next program.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet polars==2.1.0 pyarrow==26.0.1 numpy==2.4.6
cd "$work"
cat > seen.py <<'P'
import polars as pl
import pyarrow.parquet as pq

ids = [7, 2**53 + 1, 2**63 + 1, 2**64 - 1]
with open("clicks.csv", "w") as file:
    file.write("item,label\n" + "".join(f"{one},{one % 2}\n" for one in ids))
frame = pl.read_csv("clicks.csv")
print("type:", frame["item"].dtype)
try:
    print("to_numpy:", frame["item"].to_numpy().dtype)
except Exception as error:
    print("to_numpy:", type(error).__name__)
frame.write_parquet("clicks.parquet")
print("polars reads its file back:", pl.read_parquet("clicks.parquet")["item"].to_list() == ids)
try:
    print("pyarrow, only the label:", pq.read_table("clicks.parquet", columns=["label"]).num_rows)
except Exception as error:
    print(f"pyarrow, only the label: {type(error).__name__}: {error}")
pl.read_csv("clicks.csv", schema_overrides={"item": pl.UInt64}).write_parquet("clicks.parquet")
print("with schema_overrides:", pq.read_table("clicks.parquet")["item"].to_pylist() == ids)
P
"$work/venv/bin/python" seen.py | tee seen.txt
diff seen.txt - <<'T'
type: Int128
to_numpy: InvalidOperationError
polars reads its file back: True
pyarrow, only the label: ArrowNotImplementedError: Integers with more than 64 bits not implemented
with schema_overrides: True
T
echo "as seen"
