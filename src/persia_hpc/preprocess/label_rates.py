"""Finds labels that are the same in every row of a split: nothing can be learned from them, or scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from persia_hpc.preprocess.outputs import FileReport
from persia_hpc.preprocess.splitting import SPLITS
from persia_hpc.samples import names as layout
from persia_hpc.samples.attributes import texts_of


def constant_labels(reports: Sequence[object]) -> list[str]:
    """Returns a line for each label that has one value in all rows of a split whose files were just made.

    All files of the split count, also those of an earlier run.

    reports: those on files are looked at
    """
    paths = [report.path for report in reports if isinstance(report, FileReport) and report.num_rows]
    found = []
    for folder in dict.fromkeys(path.parent for path in paths):
        for split in SPLITS:
            if any(path.parent == folder and path.name.startswith(split) for path in paths):
                for label, value in _constants(sorted(folder.glob(f"{split}*.h5"))):
                    found.append(
                        f"warning: label {label} is {value:g} in every row of {split}: AUC is undefined; "
                        "check the input, and the label's `positive` or `threshold`"
                    )
    return found


def _constants(files: Sequence[Path]) -> list[tuple[str, float]]:
    """Returns the labels that have one value in all rows of these files, and the values."""
    low: npt.NDArray[np.float64] = np.array(np.inf)
    high, rows = -low, 0
    labels: list[str] = []
    for path in files:  # mostly the first is enough
        with layout.open_to_read(str(path)) as file:
            if layout.LABEL_MIN not in file.attrs:
                return []
            labels = texts_of(file.attrs[layout.LABEL_NAMES])
            low = np.minimum(low, file.attrs[layout.LABEL_MIN])
            high = np.maximum(high, file.attrs[layout.LABEL_MAX])
            rows += int(file.attrs[layout.NUM_SAMPLES])
        if (low < high).all():
            return []
    if rows < 2:
        return []
    return [(name, float(a)) for name, a, b in zip(labels, low, high, strict=True) if a == b]
