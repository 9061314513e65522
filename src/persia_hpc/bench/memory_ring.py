"""Makes rings in plain memory, with both ends in this process, for benchmarks of one rank's loop."""

from __future__ import annotations

import numpy as np

from persia_hpc._native import RingConsumer, RingProducer
from persia_hpc.transport.records import aligned_empty
from persia_hpc.transport.ring import RingReceiver, RingSender


class MemoryRing:
    """Holds both ends of a ring."""

    def __init__(self, num_bytes: int) -> None:
        data, words = aligned_empty(num_bytes), np.zeros(num_bytes // 64, np.uint64)
        tail, bells = np.zeros(1, np.uint64), np.zeros((2, 1), np.uint64)
        producer = RingProducer(data, tail=tail, words=words, bell=bells[0])
        consumer = RingConsumer(data, words, tail=tail, bell=bells[1])
        self.sender = RingSender("ring", producer, None, set())
        self.receiver = RingReceiver("ring", consumer, None)
