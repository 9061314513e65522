#!/usr/bin/env bash
# A Feather file that pandas writes for a Categorical column with missing values can't be scanned by polars.
#
# Versions: pandas 2.3.3, pyarrow 21.0.0, polars 1.35.2 (and 2.1.0), numpy 2.2.6.
# Behaviour: pandas gives a missing category the code -1; pyarrow writes it as a null whose stored key is -1; polars
#   checks the stored keys, also those of nulls, and refuses the whole file. pyarrow reads it; as Parquet polars does.
# Output seen: "feather, pyarrow: ['a', None]", "feather, polars: ComputeError", "parquet, polars: ['a', None]".
# Why it matters: categories with gaps are ordinary in click logs, and Feather is the shortest way out of pandas. Write
#   Parquet, or text, where another library reads the file.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pandas==2.3.3 pyarrow==21.0.0 polars==1.35.2 numpy==2.2.6
cd "$work"
cat > try.py <<'P'
import pandas as pd
import polars as pl
from pyarrow import feather

frame = pd.DataFrame({"c": pd.Categorical(["a", None])})
frame.to_feather("c.feather")
frame.to_parquet("c.parquet")
print("feather, pyarrow:", feather.read_table("c.feather")["c"].to_pylist())
try:
    print("feather, polars:", pl.scan_ipc("c.feather").collect()["c"].to_list())
except pl.exceptions.PolarsError as error:
    print("feather, polars:", type(error).__name__)
print("parquet, polars:", pl.scan_parquet("c.parquet").collect()["c"].to_list())
P
"$work/venv/bin/python" try.py | tee seen
diff seen - <<'S'
feather, pyarrow: ['a', None]
feather, polars: ComputeError
parquet, polars: ['a', None]
S
