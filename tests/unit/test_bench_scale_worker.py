"""`bench scale`'s worker half: a batch goes through the real worker, and all servers get their part."""

from __future__ import annotations

import pytest

from persia_hpc.bench import scale_worker
from persia_hpc.bench.scale_worker import PHASES, _Worker, measure_worker


@pytest.mark.parametrize("servers", [1, 3])
def test_a_batch_goes_to_all_servers_and_back(monkeypatch: pytest.MonkeyPatch, servers: int) -> None:
    monkeypatch.setattr(scale_worker, "VOCABULARY", 4000)
    worker = _Worker(3, servers, 2000)  # so many that headers don't count
    for number in range(3):
        assert [name for name, _ in worker.batch(number)] == list(PHASES)
    assert not worker.loop.in_flight
    assert not worker.loop.held
    keys = len(worker.samples[0].ids["f0"].values) * 3
    unique = worker.copied_bytes()[0] // 8
    assert 0 < unique < keys
    for name, fields in (("pull", 8), ("push", 4 * scale_worker.DIM)):
        sent = sum(worker.row_plane.sender(p, name).counters.bytes for p in range(servers))
        assert sent == pytest.approx(3 * unique * fields, rel=0.1)


def test_a_result_tells_the_work_from_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_worker, "VOCABULARY", 4000)
    result = measure_worker(4, 2, 1, ids=100)
    assert result.notes["beyond us"] == result.ours.median - result.limits["bytes"].median
    assert result.ours.median == pytest.approx(sum(result.notes[f"{name} us"] for name in PHASES[1:]))
