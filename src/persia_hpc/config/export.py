"""Defines `[export]`: versions of rows and dense weights that a service follows while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from persia_hpc.errors import UserError

from .fields import setting

ROW_FORMATS = ("fp32", "fp16", "bf16", "int8")  # as `_native.ServedTable` takes them


@dataclass(frozen=True)
class ExportConfig:
    """Holds how often versions are written, where, in which number format, and how many are kept."""

    every_seconds: float = setting(0.0, at_least=0)
    dir: str | None = None
    rows: str = setting("fp32", choices=ROW_FORMATS)
    base_every: int = setting(60, at_least=1)
    keep: int = setting(2, at_least=1)


def check_export(export: ExportConfig, fail: Callable[[Sequence[str], str], UserError]) -> None:
    """Checks that versions have a place if there are to be any, and the other way round.

    Raises UserError if not.
    """
    if export.every_seconds and not export.dir:
        raise fail(
            ("export", "dir"), f"is missing: export.every_seconds = {export.every_seconds:g} writes there"
        )
    if export.dir is not None and not export.every_seconds:
        raise fail(
            ("export", "every_seconds"),
            f"is missing: export.dir = {export.dir!r} needs it",
        )
