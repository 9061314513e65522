"""A record in the consumer's hands: arrays that outlive the room, a release that happens once."""

from __future__ import annotations

import numpy as np

from persia_hpc.transport.records import Record


def test_detached_arrays_outlive_the_room_and_release_happens_once() -> None:
    memory = np.arange(4.0)
    releases = []
    record = Record(1, 2, 3, 4, [memory[:2]], lambda: releases.append(1))
    assert record.detach() is record
    memory[:] = -1
    record.detach()
    assert record.arrays[0].tolist() == [0.0, 1.0]
    record.release()
    assert releases == [1]
    assert record.arrays == []
