"""Writes checkpoints on the trainers' side: decides when one is due, saves the dense state, completes it."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from persia_hpc.checkpoint import files
from persia_hpc.checkpoint.manifest import read_manifest
from persia_hpc.checkpoint.names import BEST, DENSE, step_name
from persia_hpc.config import Config
from persia_hpc.reporting.summary import package_versions
from persia_hpc.samples.identity import SampleRange
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.schedule import Schedule

from .dense.state import DenseState, Owned
from .interfaces import BatchStream, Peers

LOG = logging.getLogger("persia_hpc")


class Saver:
    """Writes a run's checkpoints, one at a time. Every trainer has one; trainer 0's does the work.

    A thread writes the dense part and, when the servers are done too, completes the checkpoint. Training
    continues meanwhile.
    """

    def __init__(
        self,
        config: Config,
        stream: BatchStream,
        peers: Peers,
        run_dir: Path,
        schema: DatasetSchema,
        num_samples: Mapping[str, int],
        *,
        data: Sequence[SampleRange] = (),
        resume: DenseState | None = None,
        known_files: Callable[[], tuple[list[list[dict[str, Any]]], int, DatasetSchema]] | None = None,
    ):
        """Remembers when the run began.

        num_samples: of each split. data: digests of the training samples. resume: what the run continues
        from. known_files: with `data.follow`, returns the files of each portion, the samples of all and the
        schema, on trainer 0.
        """
        self.config = config.checkpoint
        self.count = 0
        self.paused_seconds = 0.0  # training stood still
        self.write_seconds = 0.0  # from the mark until the checkpoint was whole
        self._stream = stream
        self._peers = peers
        self._known_files = known_files
        self._run_dir = run_dir
        self._facts: dict[str, Any] = {
            "config": config,
            "schema": schema,
            "num_samples": num_samples,
            "data": data,
            "versions": package_versions(),
        }
        self._best: Mapping[str, Any] | None = None  # of a checkpoint that isn't whole yet
        self._settling = threading.Lock()
        self._saved_step: int | None = None
        self._saved_full = False
        if resume is not None:
            self._saved_step = resume.step
            self._saved_full = read_manifest(Path(resume.path).parent)["base"] is None
        self._base: int | None = None  # step of the last full checkpoint of this run
        self._since_full = 0
        self._last = time.monotonic()
        self._thread: threading.Thread | None = None
        self._servers_done = threading.Event()
        self._error: BaseException | None = None

    def newest(self) -> str:
        """Returns the path of the newest checkpoint, when it is whole; "" if there is none."""
        self.wait()
        found = files.whole_checkpoints(self._run_dir)
        return str(found[0]) if found else ""

    @property
    def busy(self) -> bool:
        """Returns whether a checkpoint is being written, on trainer 0."""
        return self._thread is not None

    def due(self, step: int, schedule: Schedule) -> bool:
        """Returns whether to write a checkpoint now, after `step`; the last step's is left to the loop."""
        wanted = schedule.checkpoints_after(step) or self.overdue()
        return wanted and step != self._saved_step and not schedule.is_last(step)

    def overdue(self) -> bool:
        """Returns whether `every_seconds` have gone by since the last checkpoint."""
        every = self.config.every_seconds
        return every > 0 and self._thread is None and time.monotonic() - self._last >= every

    def begin(
        self,
        step: int,
        content: Callable[[list[Owned]], dict[str, Any]],
        own: Owned,
        *,
        full: bool = False,
        best: Mapping[str, Any] | None = None,
    ) -> None:
        """Begins a checkpoint of this moment, once the one before is whole.

        Training may continue when it returns. No gradient may be in flight. content: returns what `dense.pt`
        is to hold, given `own` of all trainers, what each has of its own. full: writes all rows, whatever
        `full_every` says. best: what makes it the best one of the run; also of one that was begun before.

        Collective over trainers.
        Raises PersiaError, on trainer 0, if the checkpoint before couldn't be written.
        """
        began = time.perf_counter()
        gathered = self._peers.gather_objects(own)
        saved = step == self._saved_step and (self._saved_full or not full)
        if gathered is not None and step:
            if not saved:
                self.wait()
                self._best = best
                self._begin(step, lambda: content(gathered), full)
            elif best is not None:
                self._best = best  # first: the thread may be about to look for it
                try:
                    self._settle()
                except OSError as error:
                    raise files.writing_failed(self._run_dir / BEST, error) from error
        self._peers.broadcast(None)  # no trainer continues before the servers have marked it
        self.paused_seconds += time.perf_counter() - began

    def _begin(self, step: int, content: Callable[[], dict[str, Any]], full: bool) -> None:
        began = time.perf_counter()
        self._saved_step = step
        self._last = time.monotonic()
        full = full or self._base is None or self._since_full + 1 >= self.config.full_every
        base = None if full else self._base
        self._saved_full = full
        self._base, self._since_full = (step, 0) if full else (self._base, self._since_full + 1)
        directory = files.begin_checkpoint(self._run_dir, step)
        self._stream.begin_checkpoint(str(directory), step, base or 0)
        dense = content()
        facts = dict(self._facts)
        if self._known_files is not None:  # what is known at this moment
            facts["portions"], train, facts["schema"] = self._known_files()
            facts["num_samples"] = {**facts["num_samples"], "train": train}
        self._servers_done.clear()
        arguments = (directory, step, base, dense, facts, began)
        self._thread = threading.Thread(target=self._write, args=arguments, name="persia-saving", daemon=True)
        self._thread.start()

    def _write(
        self,
        directory: Path,
        step: int,
        base: int | None,
        dense: dict[str, Any],
        facts: dict[str, Any],
        began: float,
    ) -> None:
        try:
            path = directory / DENSE
            content = io.BytesIO()  # torch doesn't say what is wrong with a disk
            torch.save(dense, content)
            path.write_bytes(content.getbuffer())
            files.finish_part(path)
            self._servers_done.wait()
            name = None if base is None else step_name(base)
            files.finish_checkpoint(directory, step=step, base=name, **facts)
            self._settle()
            self.count += 1
            self.write_seconds += time.perf_counter() - began
        except OSError as error:
            self._error = files.writing_failed(directory, error)
        except BaseException as error:  # torch.save: RuntimeError for a full disk
            self._error = files.writing_failed(directory, OSError(None, str(error)))

    def _settle(self) -> None:
        """Names the best checkpoint once it is whole, and only then removes those that aren't needed."""
        with self._settling:
            best = self._best
            if best is not None and files.is_whole(self._run_dir, best["step"]):
                files.name_best(self._run_dir, best)
                self._best = None
            try:
                files.prune(self._run_dir, keep=self.config.keep, keep_every=self.config.keep_every)
            except OSError as error:  # another process has a file of it open, or has put one there
                LOG.warning("an old checkpoint can't be removed: %s", error)

    def restore_best(self, best: Mapping[str, Any] | None) -> bool:
        """Makes, on trainer 0, the best checkpoint of the run that continues the best again.

        best: as `begin` took it; None if no checkpoint is the best, or none is to be kept.
        Returns False, also elsewhere, if its checkpoint isn't there any more: then none is the best.
        Raises PersiaError if that can't be written.
        """
        if self._peers.rank != 0:
            return False
        there = best is not None and files.is_whole(self._run_dir, best["step"])
        try:
            files.name_best(self._run_dir, best if there else None)
        except OSError as error:
            raise files.writing_failed(self._run_dir / BEST, error) from error
        return there or best is None

    def directory(self, step: int) -> Path:
        """Returns where the checkpoint after a step is, if there is one."""
        return self._run_dir / step_name(step)

    def poll(self) -> None:
        """Notes, on trainer 0, what has been written.

        Raises PersiaError for what couldn't be written.
        """
        if self._thread is None:
            return
        if self._stream.checkpoint_written():
            self._servers_done.set()
        if not self._thread.is_alive():
            self._thread = None
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Waits, on trainer 0, until the checkpoint that was begun is whole.

        Raises PersiaError if it couldn't be written.
        """
        if self._thread is None:
            return
        self._stream.wait_for_checkpoint(lambda: self._error is not None)
        if self._error is None:
            self._servers_done.set()
            self._thread.join()
        self.poll()
        self._thread = None

    def statistics(self) -> dict[str, Any]:
        """Returns counters and times for summary.json."""
        return {
            "written": self.count,
            "paused_seconds": self.paused_seconds,
            "write_seconds": self.write_seconds,
        }
