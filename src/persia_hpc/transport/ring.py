"""A ring: one producer, one consumer, records in between (protocol: docs/rma_protocol.md)."""

from persia_hpc.transport.receiver import RingReceiver
from persia_hpc.transport.records import RingCounters
from persia_hpc.transport.sender import RingSender

__all__ = ["RingCounters", "RingReceiver", "RingSender"]
