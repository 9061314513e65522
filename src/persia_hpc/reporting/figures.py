"""Writes the metrics of an evaluation as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from persia_hpc.config.watching import RESERVED


def metrics_text(metrics: Mapping[str, Any], *, short: bool = False) -> str:
    """Returns the metrics with their names: "auc 0.7700, logloss 0.4500"; one without a value is undefined.

    metrics: of an evaluation, or its event. short: without log losses.
    """
    names = [name for name in metrics if name not in RESERVED]
    if short:
        names = [name for name in names if not name.startswith("logloss")]
    return ", ".join(f"{name} {figure(metrics[name])}" for name in names)


def figure(value: Any) -> str:
    """Returns a metric's value as text: four decimals, more where it is tiny or huge, or "undefined"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "undefined"
    try:
        value = float(value)
    except OverflowError:  # JSON has integers of any size
        return "undefined"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Returns a time as text: seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def undefined_text(metrics: Mapping[str, Any]) -> str:
    """Returns why metrics have no value: "auc and auc_buy: all labels are 0"; "" if all have one."""
    reasons = metrics.get("undefined")
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items() if isinstance(reasons, Mapping) else ():
        names.setdefault(str(reason), []).append(name)
    return "; ".join(f"{' and '.join(each)}: {reason}" for reason, each in names.items())
