"""Holds what the user wants of a job besides its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persia_hpc.callbacks import Callback
from persia_hpc.reporting.events import MetricLogger

if TYPE_CHECKING:
    from persia_hpc.trainer.session import Session


@dataclass(frozen=True)
class Task:
    """Holds what trainers are to do: the standard loop, or the user's own in `main`."""

    main: Callable[[Session], None] | None = None
    callbacks: Sequence[Callback] = ()
    loggers: Sequence[MetricLogger] = ()
    quiet: bool = False  # nothing on the screen
    lines: bool = False  # events and the summary as lines of JSON on stdout
    built_in: bool = False  # no code but this package's runs in this process
