#!/usr/bin/env bash
# HDF5 looks at every chunk of a dataset to say where one of them lies, though it reads that chunk through an index.
#
# Versions: h5py 3.16.0 (its wheel's HDF5 2.0.0), numpy 2.2.6.
# Behaviour: get_chunk_info_by_coord() (H5Dget_chunk_info_by_coord) goes through the chunks until it meets the
#   one at those coordinates, for each kind of chunk index, and get_chunk_info() (by number) three times as
#   long, so that a loop over n chunks takes n * n steps. Reading the same chunk raw, read_direct_chunk(), is a
#   look-up in the index: its time doesn't depend on n. chunk_iter() (HDF5 1.14) gives all places in one pass.
# Output seen: on one machine, microseconds a chunk with 1,000 and with 16,000 chunks: by coordinates 9 and 134
#   (41 and 637 with libver "latest"), by number 25 and 378, chunk_iter 0.7 and 0.7, read_direct_chunk 3 and 3.
# Why it matters: whoever wants to read chunks past HDF5 (many threads, io_uring, GPUDirect, kerchunk-like
#   indexes) asks for their places first. A file of 8 GiB in chunks of 1 MiB spends seconds there, one ten times
#   as large minutes, before a byte is read; it can't be seen with the small files of a test.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet h5py==3.16.0 numpy==2.2.6
cd "$work"
cat > try.py <<'P'
import time

import h5py
import numpy as np

ROWS = 16


def microseconds(ask, of):
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        for each in of:
            ask(each)
        times.append(1e6 * (time.perf_counter() - begin) / len(of))
    return min(times)


def measure(path, chunks, libver):
    with h5py.File(path, "w", libver=libver) as file:
        data = file.create_dataset("x", (chunks * ROWS,), "u8", chunks=(ROWS,), maxshape=(None,))
        data[:] = np.arange(chunks * ROWS, dtype=np.uint64)
    with h5py.File(path) as file:
        data = file["x"].id
        some = range(0, chunks, chunks // 200)
        by_coordinates = microseconds(lambda i: data.get_chunk_info_by_coord((i * ROWS,)), some)
        by_number = microseconds(data.get_chunk_info, some)
        raw = microseconds(lambda i: data.read_direct_chunk((i * ROWS,)), some)
        places = []
        all_of_them = microseconds(lambda _: data.chunk_iter(lambda chunk: places.append(chunk.byte_offset)), [0])
        assert len(places) == 3 * chunks
        return by_coordinates, by_number, raw, all_of_them / chunks


print("HDF5", h5py.version.hdf5_version)
for libver in ("earliest", "latest"):
    few, many = measure("few.h5", 1000, libver), measure("many.h5", 16000, libver)
    for name, a, b in zip(("by coordinates", "by number", "read raw", "chunk_iter"), few, many):
        print(f"# {libver}, {name}: {a:.1f} and {b:.1f} us a chunk")
        print(f"{libver}, {name}:", "grows" if b > 5 * a else "doesn't grow" if b < 3 * a else "unclear")
P
"$work/venv/bin/python" try.py | tee seen
grep -v "^#" seen | diff - <(cat <<'S'
HDF5 2.0.0
earliest, by coordinates: grows
earliest, by number: grows
earliest, read raw: doesn't grow
earliest, chunk_iter: doesn't grow
latest, by coordinates: grows
latest, by number: grows
latest, read raw: doesn't grow
latest, chunk_iter: doesn't grow
S
)
