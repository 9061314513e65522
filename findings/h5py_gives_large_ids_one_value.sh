#!/usr/bin/env bash
# h5py reads all ids from 2^63 on as one number where int64 is asked for; NumPy's own cast keeps them apart.
#
# Versions: h5py 3.16.0 (its wheel's HDF5 2.0.0), numpy 2.2.6.
# Behaviour: HDF5 converts between integer types itself, when a dataset is read by astype(), read_direct() or
#   into an array of another type, and when an array of another type is assigned to it. What is too large becomes the
#   largest number of the type, without an error or a warning. array.astype("int64") of what was read as it is wraps to
#   negative numbers, which are still different ones.
# Output seen: "as stored, then cast: 4 users", "astype: 2 users", "read_direct: 2 users", "assigned: 2 users".
# Why it matters: hashed ids fill 64 bits, so half of all users are 2^63 or more. A reader that wants its groups, sessions
#   or join keys as int64 makes one user of that half; metrics by user, splits by user and joins are then wrong, and
#   look plausible. Read ids as stored, and cast with NumPy. (This package did so for ids, but not for groups, until a test
#   with such groups was written.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet h5py==3.16.0 numpy==2.2.6
cd "$work"
cat > try.py <<'P'
import h5py
import numpy as np


def say(what: str, ids: np.ndarray) -> None:
    print(f"{what}: {len(np.unique(ids))} users")


users = np.array([7, 2**63 + 1, 2**63 + 2, 2**64 - 1], np.uint64)
with h5py.File("clicks.h5", "w") as file:
    stored = file.create_dataset("user", data=users)
    say("as stored, then cast", stored[:].astype(np.int64))
    say("astype", stored.astype(np.int64)[:])
    read = np.empty(4, np.int64)
    stored.read_direct(read)
    say("read_direct", read)
    file.create_dataset("session", (4,), np.int64)[:] = users
    say("assigned", file["session"][:])
P
"$work/venv/bin/python" try.py | tee seen
diff seen - <<'S'
as stored, then cast: 4 users
astype: 2 users
read_direct: 2 users
assigned: 2 users
S
echo "as seen"
