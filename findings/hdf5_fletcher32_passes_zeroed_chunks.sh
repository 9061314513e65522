#!/usr/bin/env bash
# HDF5's fletcher32 filter accepts a chunk whose bytes were all lost and read back as zeros.
#
# Versions: h5py 3.16.0 (its wheel's HDF5 2.0.0), numpy 2.2.6; the same with h5py 3.14.0 (HDF5 1.14.6).
# Behaviour: the checksum of a run of zero bytes is 0, so a stored chunk that a disk or a copy replaced by
#   zeros, the four checksum bytes included, is valid and reads as values of 0. One flipped bit is reported.
#   With gzip before the checksum the same damage is reported, as zeros aren't a compressed stream.
# Output seen: "flipped bit: OSError", "zeroed chunk: reads as [0.0, 0.0]", "zeroed chunk, gzip: OSError".
# Why it matters: files with holes (sparse copies, lost extents) are the commonest damage of big datasets, and
#   labels of 0 or ids of 0 train without a word. Uncompressed data need another check than fletcher32.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet h5py==3.16.0 numpy==2.2.6
cd "$work"
cat > try.py <<'P'
import h5py
import numpy as np


def damage(path, change, **filters):
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.linspace(1, 2, 1000), chunks=(1000,), fletcher32=True, **filters)
        chunk = file["x"].id.get_chunk_info(0)
    with open(path, "r+b") as raw:
        raw.seek(chunk.byte_offset)
        stored = bytearray(raw.read(chunk.size))
        raw.seek(chunk.byte_offset)
        raw.write(change(stored))
    try:
        with h5py.File(path) as file:
            return f"reads as {file['x'][[0, 999]].tolist()}"
    except OSError as error:
        return type(error).__name__


def flip(stored):
    stored[100] ^= 1
    return stored


def zero(stored):
    return bytes(len(stored))


print("HDF5", h5py.version.hdf5_version)
print("flipped bit:", damage("a.h5", flip))
print("zeroed chunk:", damage("b.h5", zero))
print("zeroed chunk, gzip:", damage("c.h5", zero, compression="gzip"))
P
"$work/venv/bin/python" try.py | tee seen
diff seen - <<'S'
HDF5 2.0.0
flipped bit: OSError
zeroed chunk: reads as [0.0, 0.0]
zeroed chunk, gzip: OSError
S
