"""Connects ranks by record rings over RMA windows; only this package knows MPI windows.

The protocol is described in docs/rma_protocol.md.

    plane    Plane, Channel            all rings between the ranks of a communicator
    ring     RingSender, RingReceiver, RingCounters
    records  Record
    progress Waiter, ProgressThread

Nothing is imported here: records, the ring's ends and links work without starting MPI.
"""
