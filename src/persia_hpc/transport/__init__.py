"""Record rings over RMA windows: the only place that knows MPI windows (protocol: docs/rma_protocol.md).

    plane    Plane, Channel            all rings between the ranks of a communicator
    ring     RingSender, RingReceiver, RingCounters
    records  Record
    progress Waiter, ProgressThread

Nothing is imported here: records, the ring's ends and links work without starting MPI.
"""
