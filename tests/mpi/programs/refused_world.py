"""Prints, on rank 0, what check_world says of the world that this program runs in."""

from mpi4py import MPI

from persia_hpc.errors import UserError
from persia_hpc.topology.communicators import check_world

try:
    check_world(MPI.COMM_WORLD)
    said = "accepted"
except UserError as error:
    said = str(error)
everything = MPI.COMM_WORLD.gather(said)
if everything is not None:
    print(*everything, sep="\n", flush=True)
