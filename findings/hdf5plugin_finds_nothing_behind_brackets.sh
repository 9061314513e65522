#!/usr/bin/env bash
# hdf5plugin has no filter in an environment whose path has brackets.
#
# Version: hdf5plugin 7.1.0, h5py 3.16.0.
# Behaviour: it looks for its libraries by glob.glob() of its own folder, unescaped. In "env [1]" it finds none: its
#   import logs 12 lines "Cannot initialize filter ...: File not found" and succeeds, and h5py then reads and writes nothing
#   that is compressed by one of them. With glob.escape() all are found.
# Output seen: "registered: 0", "write: ValueError: Unknown compression filter number: 32026", "escaped: 12".
# Why it matters: the package counts as installed, so that programs choose its compression and fail where they write.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env [1]"
cd "$work/env [1]"
bin/python -m pip install --quiet hdf5plugin==7.1.0 h5py==3.16.0 numpy==2.4.6
cat > seen.py <<'P'
import glob

import h5py
import hdf5plugin
from hdf5plugin import _utils

print("registered:", len(hdf5plugin.get_config().registered_filters))
try:
    h5py.File("x.h5", "w").create_dataset("x", data=[1, 2], chunks=(1,), **hdf5plugin.Blosc2())
except ValueError as error:
    print(f"write: ValueError: {error}")
_utils.PLUGIN_PATH = glob.escape(_utils.PLUGIN_PATH)
hdf5plugin.register()
print("escaped:", len(hdf5plugin.get_config().registered_filters))
P
bin/python seen.py 2>/dev/null | tee seen.txt
diff seen.txt - <<'T'
registered: 0
write: ValueError: Unknown compression filter number: 32026
escaped: 12
T
echo "as seen"
