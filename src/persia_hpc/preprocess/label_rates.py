"""Finds labels that are the same in every row of a split: nothing can be learned from them, or scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from persia_hpc.errors import UserError
from persia_hpc.preprocess.outputs import FileReport, stored_settings
from persia_hpc.preprocess.splitting import SPLITS
from persia_hpc.samples import names as layout
from persia_hpc.samples.attributes import known_labels, texts_of

BLOCK_ROWS = 1 << 20
Numbers = npt.NDArray[np.float64]


def constant_labels(reports: Sequence[object]) -> list[str]:
    """Returns a line for each label that has one value in all rows of a split whose files were just made.

    All files of the split that preprocessing has made count, also those of an earlier run. Rows where the
    label is missing don't count. Files that say of themselves that they hold positives only are left out.

    reports: those on files are looked at
    Raises UserError for a file that can't be read any more.
    """
    paths = [report.path for report in reports if isinstance(report, FileReport) and report.num_rows]
    found = []
    for folder in dict.fromkeys(path.parent for path in paths):
        for split in SPLITS:
            if any(path.parent == folder and path.name.startswith(split) for path in paths):
                made = (path for path in sorted(folder.glob(f"{split}*.h5")) if _may_differ(path))
                for label, value, missing in _constants(made):
                    rows = f"row of {split} where it is known" if missing else f"row of {split}"
                    found.append(
                        f"warning: label {label} is {value:g} in every {rows}: AUC is undefined; "
                        "check the input, and the label's `positive` or `threshold`"
                    )
    return found


def _may_differ(path: Path) -> bool:
    stored = stored_settings(path)
    return stored is not None and not stored.get("positives_only")


def _constants(files: Iterable[Path]) -> list[tuple[str, float, bool]]:
    """Returns the labels that have one known value in these files, the values, and if some are missing."""
    known: dict[str, Numbers] = {}  # of each label: how many aren't missing, the least and the most
    rows = 0
    for path in files:  # mostly the first is enough
        try:
            with layout.open_to_read(str(path)) as file:
                rows += int(file.attrs[layout.NUM_SAMPLES])
                names = texts_of(file.attrs[layout.LABEL_NAMES])
                for name, (count, least, most) in zip(names, _ranges(file, len(names)), strict=False):
                    before = known.get(name, np.array([0, np.inf, -np.inf]))
                    known[name] = np.array([before[0] + count, min(before[1], least), max(before[2], most)])
        except (OSError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: can't read its labels again ({reason}); prepare it again") from error
        if all(least < most for _, least, most in known.values()):
            return []
    return [
        (name, float(least), bool(count < rows))
        for name, (count, least, most) in known.items()
        if least == most and count > 1
    ]


def _ranges(file: h5py.File, num_labels: int) -> Numbers:
    """Returns how often each label isn't missing, its least value and its most.

    Shapes: [L, 3].
    """
    rows = int(file.attrs[layout.NUM_SAMPLES])
    stated = known_labels(file, rows, num_labels)
    if not np.isnan(stated).any():
        return stated
    found = np.tile([0.0, np.inf, -np.inf], (num_labels, 1))  # the file of an older version, in parts
    for begin in range(0, rows, BLOCK_ROWS):
        labels = file[layout.LABEL][begin : begin + BLOCK_ROWS]
        found[:, 0] += np.isfinite(labels).sum(axis=0)
        found[:, 1] = np.fmin(found[:, 1], np.fmin.reduce(labels, axis=0))
        found[:, 2] = np.fmax(found[:, 2], np.fmax.reduce(labels, axis=0))
    return found
