"""Whether a node has memory for its rings, and what may be done about it."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from persia_hpc.runtime.node_memory import UNLIMITED
from persia_hpc.transport import window

GIB = 1 << 30


class Node:
    """The communicator of a node on which each of two ranks wants the same."""

    size, rank = 2, 0

    def allgather(self, wanted: tuple[int, int]) -> list[tuple[int, int]]:
        return 2 * [wanted]


def problem(
    monkeypatch: pytest.MonkeyPatch, wanted: int, memory: int | None, room: tuple[int, int], **options: Any
) -> str | None:
    monkeypatch.setattr(window, "available_memory", lambda: memory)
    monkeypatch.setattr(window, "shared_memory_room", lambda: room)
    return window.memory_problem(Node(), wanted // 2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", [8 * GIB, None])
@pytest.mark.parametrize("room", [(8 * GIB, 9 * GIB), (UNLIMITED, UNLIMITED)])
def test_what_fits_is_no_problem(
    monkeypatch: pytest.MonkeyPatch, memory: int | None, room: tuple[int, int]
) -> None:
    assert problem(monkeypatch, 8 * GIB, memory, room) is None


def test_too_little_memory_is_refused_and_the_line_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    said = problem(monkeypatch, 8 * GIB, 8 * GIB - 1, (64 * GIB, 64 * GIB))
    assert said is not None
    assert f"need {8 * GIB} bytes of memory, of which {8 * GIB - 1} are available" in said
    assert "transport.ring_bytes" in said
    assert "transport.memory_grows = true" in said


def test_private_memory_counts_but_needs_no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem(monkeypatch, 2 * GIB, 8 * GIB, (2 * GIB, 2 * GIB), private=3 * GIB) is None
    said = problem(monkeypatch, 2 * GIB, 8 * GIB - 1, (2 * GIB, 2 * GIB), private=3 * GIB)
    assert said is not None
    assert f"need {8 * GIB} bytes of memory" in said


def test_memory_that_grows_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "persia_hpc"):
        assert problem(monkeypatch, 8 * GIB, GIB, (64 * GIB, 64 * GIB), memory_grows=True) is None
    assert f"{8 * GIB} bytes of memory, of which {GIB} are available now" in caplog.text


@pytest.mark.parametrize("grows", [False, True])
def test_a_small_file_system_is_refused_in_any_case_with_a_size_that_is_enough(
    monkeypatch: pytest.MonkeyPatch, grows: bool
) -> None:
    free, size = 2 * GIB, 5 * GIB
    said = problem(monkeypatch, 8 * GIB, 64 * GIB, (free, size), memory_grows=grows)
    assert said is not None
    asked = re.search(r"--shm-size=(\d+)g; else mount -o remount,size=(\d+)g /dev/shm", said)
    assert asked is not None
    for number in asked.groups():
        grown = int(number) * GIB
        room = (free + grown - size, grown)
        assert problem(monkeypatch, 8 * GIB, 64 * GIB, room, memory_grows=grows) is None


@pytest.mark.parametrize("lacks_it", [True, False])
def test_no_rank_waits_for_the_window_of_one_without_memory(
    monkeypatch: pytest.MonkeyPatch, lacks_it: bool
) -> None:
    def empty(*_: Any) -> Any:
        raise MemoryError("Unable to allocate")

    class World:
        def allgather(self, problem: str | None) -> list[str | None]:
            assert (problem is not None) == lacks_it
            return [problem, None if lacks_it else "another rank lacks it"]

    if lacks_it:
        monkeypatch.setattr(window.np, "empty", empty)
    monkeypatch.setattr(window.MPI, "Win", None)  # MPI is not asked for a window
    made = window.Window(World(), 100, shared=False)  # type: ignore[arg-type]
    assert (made.problem is not None) == lacks_it
    if made.problem is not None:
        assert "could not allocate a window of 100 bytes" in made.problem
        assert "Unable to allocate" in made.problem
