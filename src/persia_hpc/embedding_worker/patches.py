"""Puts together what servers say has changed in a batch since it was fed (`fresh`).

Shape letters: U_g rows of a dim group in a batch, M_g those that have changed, T tables, P servers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from persia_hpc._native import Parts
from persia_hpc.arrays import Array
from persia_hpc.protocol.messages import Kind, Patch, Push, PushFirst, WantFirst, send, send_each, try_send
from persia_hpc.table_layout import Layout
from persia_hpc.transport.records import Record
from persia_hpc.transport.ring import RingSender, RingSenders

from .engine import KeyBatch
from .rings import TrainerRings

USUAL_SECONDS = 0.05  # from the gradients that a patch waits for to the patch, before any was measured
MOST_SECONDS = 0.5


@dataclass
class _HeldBack:
    """Holds pushes that wait until the patch that others are for has come, and since when."""

    begin: float
    pushes: list[tuple[RingSender, Push]] = field(default_factory=list)


class Patches:
    """Holds the patches of batches until those of all servers are there, and sends them to trainers.

    It also sends servers their gradients, since patches wait for some of these.
    """

    def __init__(self, layout: Layout, num_servers: int, trainers: Mapping[int, TrainerRings]) -> None:
        self.senders = {t: rings.patches for t, rings in trainers.items() if rings.patches is not None}
        self._groups = np.array(layout.dim_group_of_table)
        self._num_servers = num_servers
        self._found: dict[tuple[int, int], list[Patch]] = {}
        # The rows of each part that is wanted first, by step, trainer and server.
        self._first: dict[tuple[int, int, int], list[Array]] = {}
        self._waiting: set[tuple[int, int]] = set()  # batches without their patch
        self._held_back: dict[tuple[int, int], _HeldBack] = {}  # by the batch whose patch they wait for
        self._usual_seconds = USUAL_SECONDS

    def begin(self, batch: KeyBatch) -> None:
        """Expects a patch of each server for a batch, where there are patches."""
        if self.senders:
            batch.unpatched = set(range(self._num_servers))
            self._waiting.add((batch.step, batch.trainer))

    def due(self, in_flight: Mapping[tuple[int, int], KeyBatch]) -> bool:
        """Returns whether a trainer of the oldest step may be waiting for its patch."""
        if not (self.senders and in_flight):
            return False
        oldest = min(in_flight)[0]
        return any(batch.unpatched for (step, _), batch in in_flight.items() if step == oldest)

    def receive(self, in_flight: Mapping[tuple[int, int], KeyBatch], server: int, record: Record) -> None:
        """Takes a server's patch, or its wish for some gradients of a batch to come first."""
        if record.kind == Kind.PATCH:
            self.take(in_flight[record.step, record.trainer], server, Patch.unpack(record))
        elif (record.step, record.trainer) in in_flight:  # else all gradients are under way already
            wish = WantFirst.unpack(record)
            parts = np.split(np.array(wish.positions), np.cumsum(wish.counts)[:-1])
            self._first[wish.step, wish.trainer, server] = parts

    def push(self, senders: RingSenders, batch: KeyBatch, gradients: Sequence[Parts]) -> None:
        """Sends servers the gradients of a batch, of some rows first where a server wants it.

        These come in parts, so that the server may begin its patch while others travel. Then the others
        are held back until the next batch's patch is here, but not for long: a link that is
        full of them would carry late what fetches the patch.

        Shapes:
        gradients: for each dim group the servers' parts of [U_g, D_g] in a wire format.
        """
        key = (batch.step, batch.trainer)
        first = [self._first.pop((*key, server), None) for server in range(self._num_servers)]
        if all(rows is None for rows in first):
            send_each(senders, Push(*key, gradients))
            return
        held_back = _HeldBack(time.monotonic())
        for server, sender in enumerate(senders.senders):
            *ahead, others = _split([np.asarray(each.part(server)) for each in gradients], first[server])
            for part in ahead:
                send(sender, PushFirst(*key, part))
                sender.progress()  # each in a notice of its own
            if ahead:
                held_back.pushes.append((sender, Push(*key, others)))
            else:
                send(sender, Push(*key, others))
                sender.progress()
        following = (batch.step + 1, batch.trainer)
        if following in self._waiting:
            self._held_back[following] = held_back
        else:  # another worker has it
            self._send_held_back(held_back)

    def let_go(self, seconds: float = MOST_SECONDS) -> bool:
        """Sends gradients that have been held back for long; returns whether there were any.

        seconds: that count as long, unless patches usually take less.
        """
        late = time.monotonic() - min(seconds, 2 * self._usual_seconds)
        keys = [k for k, held in self._held_back.items() if held.pushes and held.begin <= late]
        for key in keys:
            self._send_held_back(self._held_back[key])
        return bool(keys)

    def _patched(self, batch: KeyBatch) -> None:
        """Takes note that all servers' patches of a batch are here."""
        self._waiting.discard((batch.step, batch.trainer))
        held = self._held_back.pop((batch.step, batch.trainer), None)
        if held is not None:
            self._send_held_back(held)
            seconds = min(time.monotonic() - held.begin, MOST_SECONDS)
            self._usual_seconds += (seconds - self._usual_seconds) / 4

    def _send_held_back(self, held: _HeldBack) -> None:
        for sender, push in held.pushes:
            send(sender, push)
        held.pushes.clear()

    def take(self, batch: KeyBatch, server: int, patch: Patch) -> None:
        """Takes a server's patch, whose arrays are copied; sends on what it may: an only server's at once."""
        key = (batch.step, batch.trainer)
        at_once = self._num_servers == 1 and key not in self._found
        if at_once and try_send(self.senders[batch.trainer], patch):
            if patch.left == 0:
                batch.unpatched.discard(server)
                self._patched(batch)
            return
        found = self._found.setdefault(key, [])
        at = enumerate(patch.positions)
        places = [self._places(batch, server, group, np.asarray(of_group)) for group, of_group in at]
        found.append(replace(patch, positions=places, rows=[np.array(rows) for rows in patch.rows]))
        if patch.left == 0:
            batch.unpatched.discard(server)
        if not batch.unpatched:
            del self._found[key]
            positions, rows = _pieces([p.positions for p in found]), _pieces([p.rows for p in found])
            send(self.senders[batch.trainer], replace(patch, positions=positions, rows=rows))
            self._patched(batch)

    def _places(self, batch: KeyBatch, server: int, group: int, at: Array) -> Array:
        """Returns where rows of a server's answer lie in the batch: it has a part of each table.

        Shapes: uint32 [M_g] to uint32 [M_g].
        """
        if self._num_servers == 1:
            return np.array(at)
        tables = np.flatnonzero(self._groups == group)
        offsets = batch.dedup.server_offsets[tables].astype(np.int64)
        begins, counts = offsets[:, server], offsets[:, server + 1] - offsets[:, server]
        ends = np.cumsum(counts)
        shifts = begins - int(batch.dedup.group_offsets[group]) - (ends - counts)
        places: Array = (at + shifts[np.searchsorted(ends, at, side="right")]).astype(np.uint32)
        return places


def _split(whole: Sequence[Array], first: Sequence[Array] | None) -> list[list[Array]]:
    """Returns gradients of the rows at the places of each part of `first`, then those of all others.

    Shapes:
    whole: for each dim group [U_g, D_g] in a wire format. first: uint32 [M] each.
    """
    ends = np.cumsum([len(group) for group in whole])[:-1]
    others = np.ones(sum(map(len, whole)), bool)
    found = []
    for places in first or ():
        chosen = np.zeros(len(others), bool)
        chosen[places] = True
        others &= ~chosen
        found.append(chosen)
    if not found:
        return [list(whole)]
    return [
        [group[mask] for group, mask in zip(whole, np.split(chosen, ends), strict=True)]
        for chosen in (*found, others)
    ]


def _pieces(of_servers: Sequence[Sequence[Array | list[Array]]]) -> list[list[Array]]:
    return [[np.asarray(piece) for piece in pieces] for pieces in zip(*of_servers, strict=True)]
