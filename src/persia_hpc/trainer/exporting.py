"""Writes versions for a service, on the trainers' side: decides when, adds the dense part, completes them."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from persia_hpc.config import Config
from persia_hpc.samples.encoding import ENCODING_FILE, read_encoding
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.serving.directory import ExportDirectory, Progress
from persia_hpc.serving.manifest import write_manifest
from persia_hpc.serving.names import DENSE, PROGRESS, base_name, version_name
from persia_hpc.serving.requests import ExportReport, ExportRequest

from .dense.average import Average
from .dense.state import copied, dense_content
from .interfaces import BatchStream, Peers
from .next_version import NextVersion
from .run_state import RunState

LOG = logging.getLogger("persia_hpc")
MOST_AHEAD = 64  # steps by which a version is announced


class Exporter:
    """Writes a run's versions, one at a time. Every trainer has one; trainer 0's does the work.

    A thread writes the dense part and completes what the servers have written. What can't be written is said,
    and tried again; training goes on.
    """

    def __init__(
        self,
        config: Config,
        stream: BatchStream,
        peers: Peers,
        schema: DatasetSchema,
        directory: ExportDirectory | None,
        run_dir: Path,
    ) -> None:
        """directory: where to, on trainer 0; None on the others. run_dir: keeps the data's encoding."""
        self._settings = config.export
        self._facts = {"rows": config.export.rows, "config": config.resolved(), "schema": asdict(schema)}
        self._stream = stream
        self._peers = peers
        self._directory = directory
        self._run_dir = run_dir
        self._warn: Callable[[int, str], None] = lambda step, text: LOG.info("%s", text)
        self._content: Callable[[], dict[str, Any]] = dict
        self.versions = self.bases = self.failed = 0
        self.paused_seconds = self.write_seconds = 0.0
        self.bytes = 0
        self.last_step: int | None = None  # of the newest version
        self._base: int | None = None  # on which the next version is based; None: none is whole yet
        self._first = True  # no version has been made since a base of the tables
        self._next = 1 if directory is None else directory.next_number()
        self._request: ExportRequest | None = None  # of a first base or a version that is under way
        self._making: ExportRequest | None = None  # of a later base
        self._reports: dict[tuple[str, int], list[ExportReport]] = {}
        self._dense: Future[dict[str, int]] | None = None
        self._coming: int | None = None  # the step of a version whose dense part is to be copied
        self._bound = config.pull_bound
        self._attempts = 0
        self._ahead = 2  # steps: messages have the time of one, or more when that was too little
        # In `async` no step is one that all trainers have done: a version is where no gradient is in flight.
        self._together = not (config.mode == "async" and peers.size > 1)
        self._finishing: list[tuple[ExportRequest, Future[None]]] = []
        self._began = 0.0
        self._since_base = 0
        self._again = False
        free_bytes = (lambda: 0) if directory is None else directory.free_bytes
        self._next_version = NextVersion(config.export.every_seconds, free_bytes)
        self._pool = ThreadPoolExecutor(1, "persia-export")
        self._progress = None if directory is None else Progress(directory.path / PROGRESS)

    def attach(
        self, state: RunState, model: nn.Module, average: Average, warn: Callable[[int, str], None]
    ) -> None:
        """Takes what a version's dense part is made of. warn: takes warnings from now on, with their step."""
        self._warn = warn

        def content() -> dict[str, Any]:
            values = dense_content(state, model, None, {}, [], state.skipped_steps)
            return {**values, "average": copied(average.state())}

        self._content = content

    def overdue(self) -> bool:
        """Returns, on trainer 0, whether the next version, or a first base, is to begin."""
        return self._directory is not None and not self._busy and self._next_version.is_due()

    @property
    def _busy(self) -> bool:
        return self._request is not None

    @property
    def waits(self) -> bool:
        """Returns, on trainer 0, whether something is to begin, or a step is coming that a version is of."""
        return self._coming is not None or self.overdue()

    def announce(self, step: int) -> bool:
        """Begins, on trainer 0 while steps are under way, what is due; returns whether it could.

        step: that trainer 0 has finished. A version will be of one that no trainer has.
        """
        if self._together:
            # A first base may have rows that pulls made, which are to have their first update by then.
            first = self._first and self._base is not None
            self._begin(step + self._ahead + (self._bound if first else 0))
        return self._together

    def reach(self, step: int) -> None:
        """Copies, on trainer 0, the dense part of a version that is of this step."""
        if self._coming != step:
            return
        began = time.perf_counter()
        assert self._request is not None
        self._coming = None
        self._began = time.time()
        self._dense = self._pool.submit(_write_dense, Path(self._request.path) / DENSE, self._content())
        self.paused_seconds += time.perf_counter() - began

    def advance(self, step: int) -> None:
        """Begins what is due, the first base or the next version, of this step, unless it has its version.

        So it does with a version that was to be of a later one. No gradient may be in flight.
        """
        if self._coming is not None:
            assert self._request is not None
            self._request = replace(self._request, step=step)
            self._coming = step
            self._stream.begin_export(self._request)
        elif self.overdue() and step != self.last_step:
            self._begin(step)
        self.reach(step)

    def _begin(self, step: int) -> None:
        assert self._directory is not None
        kind = "begin" if self._base is None else "version"
        name = base_name(self._next) if kind == "begin" else version_name(self._next)
        self._began = time.time()
        self._next_version.begin()
        try:
            path = self._directory.begin(name)
        except OSError as error:
            self._fail(step, error.strerror or str(error))
            return
        self._attempts += 1
        where = str(path.resolve())
        request = ExportRequest(kind, self._next, step, where, self._again, attempt=self._attempts)
        marking = time.perf_counter()
        self._stream.begin_export(request)
        self.paused_seconds += time.perf_counter() - marking
        self._request = request
        if kind == "version":
            self._coming = step

    def poll(self, step: int) -> None:
        """Notes, on trainer 0, how far training is and what has been written."""
        if self._directory is None:
            return
        if self._progress is not None:
            self._progress.tell(step)
        for report in self._stream.exported():
            reports = self._reports.setdefault((report.kind, report.number), [])
            reports.append(report)
            if len(reports) == report.servers:
                self._take(self._reports.pop((report.kind, report.number)), step)
        while self._finishing and self._finishing[0][1].done():
            self._settle(*self._finishing.pop(0), step)

    def _take(self, reports: list[ExportReport], step: int) -> None:
        """Takes note that all servers have answered a request."""
        kind, number = reports[0].kind, reports[0].number
        request = self._making if kind == "base" else self._request
        if request is None or (request.kind, request.number) != (kind, number):
            return  # of tables that were replaced
        if kind == "version":  # nobody asks again for one that was refused, or adds to it
            self._coming = None
        if kind == "version" and any(r.late or r.step != request.step for r in reports):
            self._finishing.append((request, self._pool.submit(_raise_late)))
            return
        if problem := next((r.error for r in reports if r.error), ""):
            self._finishing.append((request, self._pool.submit(_raise, problem)))
            return
        files = {r.file: {"bytes": r.bytes, "crc32": r.crc32} for r in reports}
        if kind == "version":
            assert self._base is not None
            assert self._dense is not None
            arguments = (request, files, self._base, self._dense, self._began)
            done = self._pool.submit(self._finish_version, *arguments)
        else:
            done = self._pool.submit(self._finish_base, request, files)
        self._finishing.append((request, done))

    def _finish_base(self, request: ExportRequest, files: dict[str, dict[str, int]]) -> None:
        assert self._directory is not None
        export = self._directory.export
        values = {
            "export": export,
            "base": request.number,
            "step": request.step,
            "files": files,
            **self._facts,
        }
        if (self._run_dir / ENCODING_FILE).exists():
            values["encoding"] = read_encoding(self._run_dir)
        write_manifest(Path(request.path), values)
        self._directory.finish(base_name(request.number))

    def _finish_version(
        self,
        request: ExportRequest,
        files: dict[str, dict[str, int]],
        base: int,
        dense: Future[dict[str, int]],
        began: float,
    ) -> None:
        assert self._directory is not None
        notes = {**files, DENSE: dense.result()}
        number = request.number
        values: dict[str, Any] = {"export": self._directory.export, "version": number, "step": request.step}
        values.update(time=began, base=base, files=notes)
        write_manifest(Path(request.path), values)
        self._directory.finish(version_name(number))
        self._directory.point(number)
        self.bytes += sum(note["bytes"] for note in notes.values())
        with contextlib.suppress(OSError):  # what can't be removed now will be later
            self._directory.prune(range(max(1, number - self._settings.keep + 1), number + 1))

    def _settle(self, request: ExportRequest, done: Future[None], step: int) -> None:
        """Takes note that a request is finished, or has failed."""
        error = done.exception()
        if request is self._making:
            self._making = None
        else:
            self._request = None
        if isinstance(error, _LateError):
            self._ahead = min(2 * self._ahead, MOST_AHEAD)
            self._discard(request)
            self._again = True
            self._next_version.make_due()
            return
        if error is not None:
            self._fail(step, getattr(error, "strerror", None) or str(error), request)
            return
        if request.kind != "version":
            self.bases += 1
            self._base = request.number
            if request.kind == "begin":
                self._first = True
                self._next += 1
                self._next_version.make_due()  # nobody sees anything before a version
            return
        if self._next_version.failures:
            self._warn(step, f"export.dir {self._settings.dir} can be written again")
        self._next_version.succeed()
        self._again = self._first = False
        self.versions += 1
        self.write_seconds += time.time() - self._began
        self.last_step = request.step
        self._next += 1
        self._since_base += 1
        if self._since_base >= self._settings.base_every and self._making is None:
            self._make_base(request)

    def _make_base(self, version: ExportRequest) -> None:
        """Lets the servers make a base of what they have written, up to a version."""
        assert self._directory is not None
        self._since_base = 0
        with contextlib.suppress(OSError):  # the next one will do
            path = self._directory.begin(base_name(version.number))
            self._making = ExportRequest("base", version.number, version.step, str(path.resolve()))
            self._stream.begin_export(self._making)

    def _fail(self, step: int, problem: str, request: ExportRequest | None = None) -> None:
        assert self._directory is not None
        self.failed += 1
        if request is not None:
            self._discard(request)
            if request.kind == "base":
                return
            self._again = request.kind == "version"
        if not self._next_version.failures:
            self._warn(
                step,
                f"export.dir {self._settings.dir}: no version can be written ({problem}); training goes on, "
                "and it is tried again. Make room there",
            )
        self._next_version.fail(problem)

    def _discard(self, request: ExportRequest) -> None:
        assert self._directory is not None
        name = version_name if request.kind == "version" else base_name
        with contextlib.suppress(OSError):
            self._directory.discard(name(request.number))

    def restart(self) -> None:
        """Begins with a new base, since all rows have been replaced."""
        self.wait()
        self._drop_base()
        self._base, self._again, self._since_base = None, False, 0
        self._next_version.make_due()

    def _drop_base(self) -> None:
        """Gives up a later base that is under way, also one that only waits to be noted."""
        self._finishing.clear()
        if self._directory is not None and self._making is not None:
            with contextlib.suppress(OSError):
                self._directory.discard(base_name(self._making.number))
        self._making = None

    def finish(self, step: int) -> None:
        """Writes a version of the end, unless there is one, and waits until it is whole.

        No gradient may be in flight.

        Collective over trainers.
        """
        self.wait()
        failures = self._next_version.failures
        for _ in range(3):  # a first base, then a version; or one that came too late, again
            missing = self._directory is not None and self.last_step != step
            if self._peers.broadcast(missing and self._next_version.failures == failures):
                self._next_version.make_due()
                self.advance(step)
                self.wait()
        if self._directory is not None and self.last_step != step:
            has = "none" if self.last_step is None else f"of step {self.last_step}"
            text = f"has no version of the run's end, of step {step}: the newest that was written is {has}"
            self._warn(step, f"export.dir {self._settings.dir} {text}")
        self.close()

    def close(self) -> None:
        """Lets others have the directory, whatever is under way; may be called again."""
        self._pool.shutdown(cancel_futures=True)
        self._drop_base()  # the servers are about to end
        if self._directory is not None:
            self._directory.close()

    def wait(self) -> None:
        """Waits, on trainer 0, until the version under way is whole or has failed."""

        def done() -> bool:
            self.poll(self._request.step if self._request else 0)
            return not self._busy

        if self._busy:
            self._stream.wait_until(done, None)

    def statistics(self) -> dict[str, Any]:
        """Returns counters and times for summary.json."""
        names = ("versions", "bases", "failed", "bytes", "paused_seconds", "write_seconds", "last_step")
        return {name: getattr(self, name) for name in names}


class _LateError(Exception):
    """Is raised for a version of a step that was over for a server when it heard of that."""


def _raise_late() -> None:
    raise _LateError


def _raise(problem: str) -> None:
    raise OSError(None, problem)


def _write_dense(path: Path, content: Mapping[str, Any]) -> dict[str, int]:
    memory = io.BytesIO()  # torch doesn't say what is wrong with a disk
    torch.save(dict(content), memory)
    data = memory.getbuffer()
    path.write_bytes(data)
    return {"bytes": len(data), "crc32": zlib.crc32(data)}
