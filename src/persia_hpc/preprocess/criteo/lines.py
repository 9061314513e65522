"""Parses lines of Criteo's layout to batches of samples, in native code."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from persia_hpc import _native
from persia_hpc.preprocess.bad_lines import SHOWN, BadLines
from persia_hpc.preprocess.lines import whole_lines
from persia_hpc.preprocess.progress import Progress
from persia_hpc.samples.batch import IdColumn, SampleBatch

DENSE = tuple(f"I{i}" for i in range(1, 14))
IDS = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = ("label", *DENSE, *IDS)
BATCH_ROWS = 32_768  # two chunks of a dataset file
BLOCK_BYTES = 2 << 20  # stays in the cache from the read to the parser


def read_rows(
    bad_lines: BadLines, piece: int, progress: Progress, max_rows: int | None = None
) -> Iterator[SampleBatch]:
    """Yields the samples of one of `bad_lines.pieces`, at most `max_rows`, in batches of `BATCH_ROWS`.

    Only the last batch may be shorter. The arrays of a batch are reused for the next. `bad_lines` counts all
    lines read, `progress` counts bytes.
    Raises UserError as soon as there are too many bad lines.
    """
    lines = bad_lines.begin(piece)
    labels, dense, ids = (
        np.empty(BATCH_ROWS, np.float32),
        np.empty((BATCH_ROWS, len(DENSE)), np.float32),
        np.empty((len(IDS), BATCH_ROWS), np.uint64),
    )
    bad = np.empty((SHOWN, 3), np.int64)
    rows = 0  # in the arrays
    left = max_rows
    for block in whole_lines(bad_lines.pieces[piece], block_bytes=BLOCK_BYTES, on_read=progress.add):
        text = np.frombuffer(block, np.uint8)
        while len(text):
            end = BATCH_ROWS if left is None else min(BATCH_ROWS, left)
            num_bytes, num_rows, num_lines, num_bad = _native.parse_criteo_lines(
                text, labels=labels[:end], dense=dense[:end], ids=ids, begin=rows, bad=bad
            )
            room = SHOWN - len(lines.first_bad)
            lines.add(num_lines, num_bad, [_problem(text, place) for place in bad[: min(num_bad, room)]])
            if num_bad:
                bad_lines.check()
            rows += num_rows
            text = text[num_bytes:]
            if rows == end:
                yield _batch(labels, dense, ids, rows)
                left = None if left is None else left - rows
                if left == 0:
                    return
                rows = 0
    if rows:
        yield _batch(labels, dense, ids, rows)


def _batch(
    labels: npt.NDArray[np.float32], dense: npt.NDArray[np.float32], ids: npt.NDArray[np.uint64], rows: int
) -> SampleBatch:
    np.log1p(dense[:rows], out=dense[:rows])
    columns = {name: IdColumn(ids[k, :rows]) for k, name in enumerate(IDS)}
    return SampleBatch(columns, dense[:rows], labels[:rows, None])


def _problem(text: npt.NDArray[np.uint8], place: npt.NDArray[np.int64]) -> tuple[int, str]:
    """Returns the line in the block, from 0, and what is wrong there, from a row that the parser filled."""
    line, offset, column = place.tolist()
    values = text[offset:].tobytes().split(b"\n", 1)[0].removesuffix(b"\r").split(b"\t")
    if column < 0:
        got = len(values)
        return line, f"got {got} column{'s'[: got != 1]}, expected {len(COLUMNS)} separated by tab"
    value = values[column].decode(errors="backslashreplace")
    quoted = repr(value if len(value) <= 40 else value[:40] + "...") if value else "no value"
    expected = "an integer" if 1 <= column <= len(DENSE) else "a 32-bit hexadecimal number or nothing"
    return line, f"{COLUMNS[column]}: got {quoted}, expected {expected if column else '0 or 1'}"
