"""Trains on files as they appear (`data.follow`): portion by portion, with a wait where there is none.

All trainers stop where the known files are used up, with no gradient in flight. Trainer 0 alone looks for new
files and decides what all do next: train on a portion, write a checkpoint that has come due, or end. Workers
learn of it through the batch stream; servers needn't know. A version for a service that comes due meanwhile
needs trainer 0 alone.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from persia_hpc.checkpoint.manifest import read_manifest, read_schema
from persia_hpc.config import Config
from persia_hpc.config.watching import writes_checkpoints
from persia_hpc.errors import DataError, UserError
from persia_hpc.samples.datafile import FileInfo
from persia_hpc.samples.follow import Follower, TakenFile, late_files, num_samples
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.schedule import Schedule

from .interfaces import BatchStream, Peers
from .run_state import RunState
from .saving import Saver
from .stopping import Stopping

LOG = logging.getLogger("persia_hpc")
# A look at a directory of many files isn't free: less often the longer nothing has come.
LOOK_SECONDS = (0.1, 5.0)  # at least and at most between two looks
LOOK_PART = 0.1  # of the time without news


@dataclasses.dataclass(frozen=True)
class _News:
    """Holds what trainer 0 tells the others after a wait."""

    samples: int = 0  # of a new portion
    checkpoint: bool = False
    ended: bool = False
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Around:
    """Holds what a wait needs of the session that waits."""

    state: RunState
    stream: BatchStream
    peers: Peers
    stopping: Stopping
    saver: Saver | None
    save: Callable[[], None]
    tell: Callable[[dict[str, Any]], None]  # takes an event for each portion and each wait


class Following:
    """Holds what a trainer knows of data that grows; trainer 0's also knows the files."""

    def __init__(
        self, config: Config, schema: DatasetSchema, schedule: Schedule, start: Path | None, trainer_rank: int
    ) -> None:
        """Reads from the checkpoint which portions were taken, and on trainer 0 looks for files.

        schedule: without samples. start: the checkpoint that the run continues from.

        Raises UserError, on trainer 0, for new files that don't fit, for files that have other samples than
        when they were trained on, and for missing ones of a half-trained portion.
        """
        manifest = {} if start is None else read_manifest(start)
        if start is not None and schema.encoding is None:  # the first file needn't name what a later one does
            schema = dataclasses.replace(schema, encoding=read_schema(manifest).encoding)
        names = [field.name for field in dataclasses.fields(TakenFile)]
        portions = [
            tuple(TakenFile(**{name: file[name] for name in names if name in file}) for file in portion)
            for portion in manifest.get("portions", [])
        ]
        for portion in portions:
            schedule = schedule.followed_by(num_samples(portion))
        self.schedule = schedule
        self._quiet_seconds = config.data.follow_seconds
        self._saves = writes_checkpoints(config)
        self._wait_seconds = 0.0
        self._waits = self._ended = False
        self._follower: Follower | None = None
        self._files: tuple[FileInfo, ...] = ()  # found, and not announced yet
        if trainer_rank == 0:
            self._follower = Follower(config, schema, portions)
            in_portion = manifest.get("step", 0) < schedule.num_steps
            self._follower.check_taken(len(portions) - in_portion)
            if in_portion:
                self._files = self._follower.reopen()
            elif schedule.may_grow:
                self._files = self._follower.look()

    def begin(self, stream: BatchStream, step: int) -> None:
        """Tells the workers the portion in the middle of which the run continues, after `step`."""
        if step < self.schedule.num_steps and self._files:
            stream.begin_portion(self.schedule, self._files)
            self._files = ()

    def known_files(self) -> tuple[list[list[dict[str, Any]]], int, DatasetSchema]:
        """Returns, on trainer 0, the files of each portion for a manifest, their samples, and the schema."""
        assert self._follower is not None
        portions = self._follower.portions
        listed = [[dataclasses.asdict(file) for file in portion] for portion in portions]
        return listed, sum(map(num_samples, portions)), self._follower.schema

    def statistics(self) -> dict[str, Any] | None:
        """Returns counters for summary.json, on trainer 0; None on others."""
        if self._follower is None:
            return None
        portions = self._follower.portions
        return {
            "portions": len(portions),
            "files": sum(map(len, portions)),
            "late_files": late_files(portions),
            "wait_seconds": self._wait_seconds,
        }

    def wait(self, around: Around) -> bool:
        """Waits for new files: returns True once there are steps to train, False when the run is to end.

        All known steps must be trained. Checkpoints that come due meanwhile are written.

        Collective over trainers.
        Raises DataError, on trainer 0 and after a checkpoint, for a file that can't be read or doesn't fit.
        """
        began = time.monotonic()
        self._waits = False
        while not self._ended and self.schedule.may_grow:
            news = self._watch(around, began) if self._follower is not None else None
            # Not in a call of MPI's: it would burn the core for as long as it takes.
            around.stream.wait_until(around.peers.meet(), None)
            news = around.peers.broadcast(news)
            around.stopping.agree_on_stop()
            if news.checkpoint or (news.problem and self._saves):
                around.save()
            if news.problem:
                self._give_up(around, news.problem)
            if news.samples:
                self._extend(around, news.samples)
                return True
            self._ended = news.ended
            if around.state.stop_reason is not None:
                break
        return False

    def _watch(self, around: Around, began: float) -> _News:
        """Waits, on trainer 0, until there is news. Time without news is counted from `began`."""
        if self._files:  # of the first look
            return _News(samples=sum(info.num_samples for info in self._files))
        found: list[_News] = []
        next_look = 0.0

        def done() -> bool:
            nonlocal next_look
            around.stopping.listen(waiting=True)
            if around.state.stop_reason is not None:
                found.append(_News())
                return True
            now = time.monotonic()
            if now >= next_look:
                news = self._look(around, now - began)
                if news is not None:
                    found.append(news)
                    return True
                if not self._waits:
                    around.tell({"event": "wait", "step": around.state.step})
                    self._waits = True
                next_look = now + self._pause(now - began)
            return False

        begin = time.monotonic()
        around.stream.wait_until(done, None)
        self._wait_seconds += time.monotonic() - begin
        return found[0]

    def _pause(self, waited: float) -> float:
        """Returns the seconds until the next look, after `waited` seconds without news."""
        least, most = LOOK_SECONDS
        pause = min(max(least, LOOK_PART * waited), most)
        return min(pause, self._quiet_seconds - waited) if self._quiet_seconds > waited else pause

    def _look(self, around: Around, waited: float) -> _News | None:
        assert self._follower is not None
        try:
            self._files = self._follower.look()
        except UserError as error:
            return _News(problem=str(error))
        if self._files:
            return _News(samples=sum(info.num_samples for info in self._files))
        if self._follower.ended:
            return _News(ended=True)
        if 0 < self._quiet_seconds <= waited:
            around.stopping.request_stop(f"no new file in {self._quiet_seconds:g} s")
            return _News()
        step, saver = around.state.step, around.saver
        if step and saver is not None and saver.due(step, self.schedule):
            return _News(checkpoint=True)
        return None

    def _extend(self, around: Around, samples: int) -> None:
        self.schedule = self.schedule.followed_by(samples)
        around.state.follow(self.schedule)
        if self._follower is None:
            return
        around.stream.begin_portion(self.schedule, self._files)
        files, self._files = len(self._files), ()
        portions = len(self._follower.portions)
        LOG.info("portion %d: %d files, %d samples", portions, files, samples)
        around.tell(
            {
                "event": "data",
                "step": around.state.step,
                "portion": portions,
                "files": files,
                "samples": samples,
            }
        )

    def _give_up(self, around: Around, problem: str) -> None:
        """Ends the job on trainer 0 once the checkpoint is whole; the others wait for their end."""
        if self._follower is None:
            around.stream.wait_until(around.peers.meet(), None)
        if around.saver is not None:
            around.saver.wait()
        if self._saves and around.state.step:
            problem += (
                f"; the checkpoint of step {around.state.step} is kept: repair or remove the file, and go "
                "on with --resume"
            )
        raise DataError(problem)
