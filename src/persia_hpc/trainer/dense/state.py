"""Defines what a checkpoint holds of the dense side, with the state of random generators."""

from __future__ import annotations

import dataclasses
import io
import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from persia_hpc.checkpoint.choose import init_source
from persia_hpc.checkpoint.manifest import read_manifest, read_part, unreadable
from persia_hpc.checkpoint.names import DENSE
from persia_hpc.config import Config
from persia_hpc.errors import DataError, UserError
from persia_hpc.schedule import Schedule
from persia_hpc.trainer.interfaces import Peers
from persia_hpc.trainer.item_counts import ItemCounts
from persia_hpc.trainer.run_state import DriverState, RunState

from .optimizer import WAYS


def seed_generators(seed: int) -> None:
    """Seeds torch's, NumPy's and Python's generators, which a model may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed % (1 << 32))
    random.seed(seed)


def trainer_seed(seed: int, trainer_rank: int) -> int:
    """Returns what a trainer's generators are seeded with: from step 1 on each draws its own numbers."""
    return seed + 7919 * trainer_rank


def _uses_gpu() -> bool:
    """Returns whether this process has a context on a GPU: asking for random numbers there would make one."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def random_state() -> dict[str, Any]:
    """Returns the state of torch's, NumPy's and Python's generators, which a model may draw from."""
    version, words, gauss = random.getstate()
    name, key, *rest = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.array(key, np.int64)), *rest],
        "python": [version, list(words), gauss],
    }
    if _uses_gpu():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and _uses_gpu():
        torch.cuda.set_rng_state(state["cuda"])
    name, key, *rest = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


Owned = tuple[dict[str, Any], dict[str, Any] | None]  # what a trainer has of its own: see `owned_state`


def owned_state(counts: ItemCounts | None) -> Owned:
    """Returns what a checkpoint keeps of each trainer: its random state, and its counts of items if any."""
    return random_state(), None if counts is None else counts.state()


@dataclass
class DenseState:
    """Holds the content of `dense.pt`, the dense part of a checkpoint."""

    step: int
    samples: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    random: list[dict[str, Any]]  # of each trainer
    driver: dict[str, Any] = field(default_factory=dict)  # of `DriverState`, or {}
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)  # fp16's loss scale
    skipped_steps: int = 0  # of all trainers together
    average: dict[str, Any] = field(default_factory=dict)  # of `Average`, by name
    items: list[dict[str, Any]] = field(default_factory=list)  # `ItemCounts.state` of each trainer, if any
    path: str = ""

    @classmethod
    def of(cls, values: Any) -> DenseState:
        """Returns the state that a loaded `dense.pt` holds.

        Raises ValueError, with what is wrong, if it holds something else.
        """
        fields = {field.name: field for field in dataclasses.fields(cls) if field.name != "path"}
        if not isinstance(values, dict) or not values.keys() <= fields.keys():
            raise ValueError(f"it holds other values than {', '.join(fields)}")
        for name, kind in _KINDS.items():
            if name in values and not isinstance(values[name], kind):
                raise ValueError(f"{name} is of type {type(values[name]).__name__}, expected {kind.__name__}")
        try:
            state = cls(**values)
            DriverState(**state.driver)
        except TypeError as error:
            raise ValueError(str(error)) from error
        return state

    @classmethod
    def read(cls, directory: Path) -> DenseState:
        """Reads the dense part of a checkpoint.

        Raises DataError if the file is damaged, and what `unreadable` says.
        """
        manifest, path = read_manifest(directory), directory / DENSE
        content = io.BytesIO(read_part(directory, manifest, DENSE))
        try:
            state = cls.of(torch.load(content, map_location="cpu", weights_only=True))
            if state.step != manifest["step"]:
                raise ValueError(f"it is of step {state.step}, the manifest of {manifest['step']}")
        except Exception as error:  # torch says very different things
            raise unreadable(path, error) from error
        return dataclasses.replace(state, path=str(path))

    def run_state(self, schedules: Mapping[str, Schedule]) -> RunState:
        """Returns the state of a run that continues here."""
        driver = DriverState(**self.driver) if self.driver else None
        at = (self.step, self.samples)
        skipped = self.skipped_steps
        return RunState(schedules, *at, *at, results=self.results, driver=driver, skipped_steps=skipped)

    def saved_config(self) -> dict[str, Any]:
        """Returns the resolved configuration of the run that wrote it."""
        config: dict[str, Any] = read_manifest(Path(self.path).parent)["config"]
        return config

    def load_model(self, model: nn.Module, *, averaged: bool = False) -> None:
        """Loads the saved parameters and buffers into a model, the average of the former if `averaged`.

        Raises UserError, with what differs, for another model.
        """
        try:
            for name, own in model.state_dict().items():
                saved = self.model.get(name)
                if torch.is_tensor(saved) and saved.is_complex() and not own.is_complex():
                    raise ValueError(f"{name} is complex")  # torch would only warn
            model.load_state_dict(self.model)
            if averaged:  # into parameters: the state has a shared one under each of its names
                parameters = dict(model.named_parameters())
                with torch.no_grad():
                    for name, value in self.average.items():
                        parameters[name].copy_(value)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path}: the dense model there is not this one: {_line(error)}") from None

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Loads the saved state into an optimizer, which keeps its own way to compute.

        Raises UserError for another optimizer.
        """
        try:
            optimizer.load_state_dict(_computed_here(self.optimizer, optimizer))
            _check_shapes(optimizer)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path}: the optimizer there is not this one: {_line(error)}") from None

    def restore_owned(self, counts: ItemCounts | None, seed: int, peers: Peers) -> list[str]:
        """Restores this trainer's random state, and its counts of items if it counts them.

        Returns what a user should know of it, the same on all trainers.

        Raises DataError for what is no such state.
        """
        self.restore_random_state(seed, peers.rank, peers.size)
        if counts is None:
            return []
        if not self.items:
            begin = 'logq = "counts" counts items from this step on only'
            return [f"{begin}: the run didn't count them before, so {self.path} has no counts"]
        try:
            counts.restore(self.items, peers.rank, peers.size)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.path}: its counts of items are none ({_line(error)})") from error
        return []

    def restore_random_state(self, seed: int, trainer_rank: int, num_trainers: int) -> None:
        """Restores this trainer's random state; with another number of trainers, draws a new one.

        Raises DataError if it isn't one.
        """
        if num_trainers == len(self.random):
            try:
                set_random_state(self.random[trainer_rank])
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{self.path}: its random state is none ({_line(error)})") from error
        else:
            words = np.random.SeedSequence([seed, self.step, trainer_rank]).generate_state(1, np.uint64)
            seed_generators(int(words[0] >> np.uint64(1)))


# Types of what `DenseState` holds, as far as the code relies on them.
_KINDS = {
    **dict.fromkeys(("step", "samples", "skipped_steps"), int),
    **dict.fromkeys(("model", "optimizer", "driver", "results", "scaler", "average"), dict),
    **dict.fromkeys(("random", "items"), list),
}


def _computed_here(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the saved state with the options of `optimizer` that say how it computes.

    torch would take over those of the device it was saved on. `fused` and `capturable` also say whether the
    count of steps belongs on a GPU.
    """
    if "param_groups" not in saved:
        return saved
    here = itertools.chain(optimizer.param_groups, itertools.repeat({}))  # torch compares their number
    groups = [
        {**group, **{option: own[option] for option in WAYS & own.keys()}}
        for group, own in zip(saved["param_groups"], here, strict=False)
    ]
    return {**saved, "param_groups": groups}


def _check_shapes(optimizer: torch.optim.Optimizer) -> None:
    """Checks that what torch's optimizers keep of each parameter has a shape that fits it.

    Raises ValueError if not: the first step would fail.
    """
    if not type(optimizer).__module__.startswith("torch.optim"):
        return
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.ndim:
                pairs = itertools.zip_longest(value.shape[::-1], parameter.shape[::-1], fillvalue=1)
                if any(here not in (1, there) for here, there in pairs):
                    raise ValueError(f"{name} of shape {list(value.shape)} for {list(parameter.shape)}")


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def dense_states(
    config: Config, start: Path | None, model: nn.Module | None
) -> tuple[DenseState | None, DenseState | None]:
    """Returns what a run continues from, and what a new one takes its weights from (`checkpoint.init_from`).

    start: the checkpoint that it continues from. model: if it is known already, to find a mismatch now.

    Raises UserError for a model that doesn't fit, DataError for a damaged file.
    """
    source = init_source(config, "dense") if start is None else None
    resume = None if start is None else DenseState.read(start)
    initial = None if source is None else DenseState.read(source)
    begin = resume or initial
    if model is not None and begin is not None:
        begin.load_model(model)
    return resume, initial


def dense_content(
    state: RunState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    scaler: Mapping[str, Any],
    owned: list[Owned],
    skipped_steps: int,
) -> dict[str, Any]:
    """Returns what `dense.pt` is to hold of this moment, copied; `DenseState` reads it.

    owned: `owned_state` of each trainer. skipped_steps: of the whole run.
    """
    return {
        "step": state.step,
        "samples": state.samples,
        "skipped_steps": skipped_steps,
        "model": copied(model.state_dict()),
        "optimizer": copied(optimizer.state_dict()) if optimizer is not None else {},
        "scaler": scaler,
        "random": [random for random, _ in owned],
        "items": [items for _, items in owned if items is not None],
        "driver": state.saved_driver(),
        "results": {split: dict(values) for split, values in state.results.items()},
    }


def copied(value: Any) -> Any:
    """Copies a state dict with its tensors to the CPU: training changes the originals."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {k: copied(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(v) for v in value)
    return value
