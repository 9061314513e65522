#!/usr/bin/env bash
# HDF5's scale-offset filter makes an ordinary number of a NaN, or a chunk that nobody can read, by where the NaN is.
#
# Versions: h5py 3.16.0 (HDF5 2.0.0), numpy 2.2.6.
# Behaviour: `scaleoffset=3` keeps floats to three decimal digits. No error or warning comes when there is a NaN: as the
#   first value of a chunk of float32 it leaves a chunk that can be written, not read (OSError); anywhere else it comes
#   back as the chunk's smallest value. Infinite and very large values come back exactly, as does a chunk of float64
#   whose first value is NaN: it isn't compressed. So what becomes of a missing value depends on its place and type.
# Output seen: NaN in place 5 of 64: read as the smallest of the others; in place 0, float32: not readable.
# Why it matters: it is the filter for dense features (prices, rates), and NaN is how a missing one is written. Checks
#   for NaN find nothing in such a file, and training goes on with numbers that nobody wrote.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet h5py==3.16.0 numpy==2.2.6
cd "$work"
cat > try.py <<'P'
import h5py
import numpy as np

print("HDF5", h5py.version.hdf5_version)
for dtype in (np.float32, np.float64):
    for place in (0, 5, 63):
        values = np.random.default_rng(7).uniform(10, 20, 64).astype(dtype)
        smallest = values.min()
        values[place] = np.nan
        with h5py.File("data.h5", "w") as file:
            file.create_dataset("price", data=values, chunks=(64,), scaleoffset=3)
        with h5py.File("data.h5") as file:
            try:
                read = file["price"][place]
            except OSError as error:
                print(dtype.__name__, "NaN in place", place, "->", type(error).__name__)
                continue
        kind = "the smallest value" if abs(read - smallest) < 1e-3 else "NaN" if np.isnan(read) else read
        print(dtype.__name__, "NaN in place", place, "->", kind)
P
"$work/venv/bin/python" try.py | tee seen
diff seen - <<'S'
HDF5 2.0.0
float32 NaN in place 0 -> OSError
float32 NaN in place 5 -> the smallest value
float32 NaN in place 63 -> the smallest value
float64 NaN in place 0 -> NaN
float64 NaN in place 5 -> the smallest value
float64 NaN in place 63 -> the smallest value
S
