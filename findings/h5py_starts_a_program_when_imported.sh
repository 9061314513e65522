#!/usr/bin/env bash
# Importing h5py starts a program: Python asks `uname -p`, by a fork.
#
# Versions: h5py 3.16.0, numpy 2.2.6, CPython 3.11.7 on Linux.
# Behaviour: h5py._conv compares platform.uname() with a tuple. That reads all its fields, and `processor` is the one
#   that Python can only ask a program for (platform.machine(), which would do, needs none). NumPy alone starts nothing.
# Output seen: "numpy: []", "h5py: [['uname', '-p']]".
# Why it matters: a rank that imports h5py after MPI_Init forks a process that has registered memory and network
#   devices, which several MPI libraries forbid or warn of; where a job may not start programs, the import waits for a
#   refusal; and it happens once in each of a job's thousands of processes. Import h5py before MPI is initialised.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet h5py==3.16.0 numpy==2.2.6
cd "$work"
cat > try.py <<'P'
import sys

started = []
sys.addaudithook(lambda event, args: started.append(list(args[1])) if event == "subprocess.Popen" else None)
import numpy

print("numpy:", started)
import h5py

print("h5py:", started)
P
"$work/venv/bin/python" try.py | tee seen
diff seen - <<'S'
numpy: []
h5py: [['uname', '-p']]
S
