"""The trainers' side of checkpoints: when one is due, its dense state, and how it becomes whole."""

from __future__ import annotations

import io
import logging
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from persia_hpc.checkpoint import files
from persia_hpc.checkpoint.choose import init_source
from persia_hpc.config import Config
from persia_hpc.errors import DataError, UserError
from persia_hpc.reporting.summary import package_versions
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.schedule import Schedule

if TYPE_CHECKING:
    from .session import Session


LOG = logging.getLogger("persia_hpc")


def random_state() -> dict[str, Any]:
    """The state of every generator that a model may draw from in this process: torch's, NumPy's, Python's."""
    version, words, gauss = random.getstate()
    name, key, *rest = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.array(key, np.int64)), *rest],
        "python": [version, list(words), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Undoes what was drawn since `random_state`."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, key, *rest = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


@dataclass
class DenseState:
    """What `dense.pt` holds."""

    step: int
    samples: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    random: list[dict[str, Any]]  # of each trainer
    driver: dict[str, Any] = field(default_factory=dict)
    results: dict[str, dict[str, float]] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)  # fp16's loss scale
    path: str = ""

    @classmethod
    def read(cls, directory: Path) -> DenseState:
        """Of a checkpoint; DataError if the file is damaged."""
        files.check_part(directory, files.read_manifest(directory), files.DENSE, content=True)
        path = directory / files.DENSE
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True), path=str(path))
        except Exception as error:  # torch says very different things
            raise DataError(f"{path}: can't be read ({error}); use an older checkpoint") from error

    def load_model(self, model: nn.Module) -> None:
        """UserError, with what differs, for another model."""
        try:
            model.load_state_dict(self.model)
        except RuntimeError as error:
            raise UserError(f"{self.path}: the dense model there is not this one: {error}") from None

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """UserError for another optimizer's state."""
        try:
            optimizer.load_state_dict(self.optimizer)
        except (ValueError, KeyError) as error:
            raise UserError(f"{self.path}: the optimizer there is not this one: {error}") from None

    def restore_random_state(self, seed: int, trainer_rank: int, num_trainers: int) -> None:
        """Each trainer's own; with another number of trainers, states that no trainer has had."""
        if num_trainers == len(self.random):
            set_random_state(self.random[trainer_rank])
        else:
            words = np.random.SeedSequence([seed, self.step, trainer_rank]).generate_state(1, np.uint64)
            torch.manual_seed(int(words[0] >> np.uint64(1)))


def dense_states(
    config: Config, start: Path | None, model: nn.Module | None
) -> tuple[DenseState | None, DenseState | None]:
    """What a run goes on from, and what else a new one takes its weights from (`checkpoint.init_from`).

    start: the checkpoint that it goes on from. model: if it is known already, to refuse one that doesn't fit.
    """
    source = init_source(config, "dense") if start is None else None
    resume = None if start is None else DenseState.read(start)
    initial = None if source is None else DenseState.read(source)
    begin = resume or initial
    if model is not None and begin is not None:
        begin.load_model(model)
    return resume, initial


class Saver:
    """Writes a run's checkpoints, one at a time. Every trainer has one; trainer 0's does the work.

    A thread writes the dense part and, when the servers are done too, puts the checkpoint together. Steps go
    on meanwhile.
    """

    def __init__(
        self, session: Session, run_dir: Path, schema: DatasetSchema, num_samples: Mapping[str, int]
    ):
        """num_samples: of each split."""
        config, resume = session.config, session.resume
        self.config = config.checkpoint
        self.count = 0
        self.paused_seconds = 0.0  # training stood still
        self.write_seconds = 0.0  # from the mark until the checkpoint was whole
        self._stream = session.stream
        self._run_dir = run_dir
        self._facts: dict[str, Any] = {
            "config": config,
            "schema": schema,
            "num_samples": num_samples,
            "versions": package_versions(),
        }
        self._saved_step: int | None = None
        self._saved_full = False
        if resume is not None:
            self._saved_step = resume.step
            self._saved_full = files.read_manifest(Path(resume.path).parent)["base"] is None
        self._base: int | None = None  # step of the last full checkpoint of this run
        self._since_full = 0
        self._last = time.monotonic()
        self._thread: threading.Thread | None = None
        self._servers_done = threading.Event()
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether one is being written. Trainer 0."""
        return self._thread is not None

    def due(self, step: int, schedule: Schedule) -> bool:
        """Whether one is to be written now, after `step`; the last step's is the loop's affair."""
        wanted = schedule.checkpoints_after(step) or self.overdue()
        return wanted and step != self._saved_step and not schedule.is_last(step)

    def overdue(self) -> bool:
        """Whether `every_seconds` have gone by since the last."""
        every = self.config.every_seconds
        return every > 0 and self._thread is None and time.monotonic() - self._last >= every

    def begin(self, session: Session, *, full: bool = False) -> None:
        """Marks this moment on all ranks and begins to write it; waits for one that is still being written.
        Collective over trainers; no gradient may be in flight. `full`: whatever `full_every` says.
        """
        began = time.perf_counter()
        everybodys = session.peers.gather_objects(random_state())
        saved = session.step_number == self._saved_step and (self._saved_full or not full)
        if everybodys is not None and not saved and session.step_number:
            self.wait()
            self._begin(session, everybodys, full)
        session.peers.broadcast(None)  # nobody goes on before the servers have marked it
        self.paused_seconds += time.perf_counter() - began

    def _begin(self, session: Session, everybodys: list[dict[str, Any]], full: bool) -> None:
        assert session.model is not None
        began = time.perf_counter()
        step = self._saved_step = session.step_number
        self._last = time.monotonic()
        full = full or self._base is None or self._since_full + 1 >= self.config.full_every
        base = None if full else self._base
        self._saved_full = full
        self._base, self._since_full = (step, 0) if full else (self._base, self._since_full + 1)
        directory = files.begin_checkpoint(self._run_dir, step)
        self._stream.begin_checkpoint(str(directory), step, base or 0)
        dense = {
            "step": step,
            "samples": session.samples,
            "model": _copied(session.model.state_dict()),
            "optimizer": _copied(session.optimizer.state_dict()) if session.optimizer is not None else {},
            "scaler": session.precision.state(),
            "random": everybodys,
            "driver": session.driver_state,
            "results": {split: dict(values) for split, values in session.results.items()},
        }
        facts = dict(self._facts)
        if session.following is not None:  # what this moment knows of
            facts["portions"] = session.following.portions()
            facts["num_samples"] = {**facts["num_samples"], "train": session.following.num_samples()}
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
            path = directory / files.DENSE
            content = io.BytesIO()  # torch doesn't say what is wrong with a disk
            torch.save(dense, content)
            path.write_bytes(content.getbuffer())
            files.finish_part(path)
            self._servers_done.wait()
            name = None if base is None else files.step_name(base)
            files.finish_checkpoint(directory, step=step, base=name, **facts)
            try:
                files.prune(self._run_dir, keep=self.config.keep, keep_every=self.config.keep_every)
            except OSError as error:  # somebody has a file of it open, or has put one there
                LOG.warning("an old checkpoint can't be removed: %s", error)
            self.count += 1
            self.write_seconds += time.perf_counter() - began
        except OSError as error:
            self._error = files.writing_failed(directory, error)
        except BaseException as error:  # torch.save: RuntimeError for a full disk
            self._error = files.writing_failed(directory, OSError(None, str(error)))

    def poll(self) -> None:
        """Takes note of what has been written; raises what kept it from being written. Trainer 0."""
        if self._thread is None:
            return
        if self._stream.checkpoint_written():
            self._servers_done.set()
        if not self._thread.is_alive():
            self._thread = None
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Returns when what was begun is whole. Trainer 0."""
        if self._thread is None:
            return
        self._stream.wait_for_checkpoint(lambda: self._error is not None)
        if self._error is None:
            self._servers_done.set()
            self._thread.join()
        self.poll()
        self._thread = None

    def statistics(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "written": self.count,
            "paused_seconds": self.paused_seconds,
            "write_seconds": self.write_seconds,
        }


def _copied(value: Any) -> Any:
    """A state dict with its tensors copied to the CPU: the ones that it holds go on changing."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(v) for v in value)
    return value
