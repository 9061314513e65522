"""Lines of a table's text files that its schema doesn't fit, found before anything is learned or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from persia_hpc.preprocess.bad_lines import SHOWN, BadLines
from persia_hpc.preprocess.frames import BadRowsError, Frame
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.table_convert import Converter, Learned
from persia_hpc.preprocess.table_input import format_of, read_block, text_blocks
from persia_hpc.preprocess.table_schema import TableSchema


def find_bad_lines(
    bad_lines: BadLines, schema: TableSchema, check: Callable[[Frame], object] | None = None
) -> dict[Path, set[int]]:
    """The numbers of the bad lines of each text file among `bad_lines.pieces`, which it learns of too.

    A line is bad if its row can't be converted, or if `check` raises BadRowsError for it. Raises UserError as
    soon as there are too many.
    """
    found: dict[Path, set[int]] = {}
    converter: Converter | None = None
    with Progress("table: looking for bad lines") as progress:
        for i, piece in enumerate(bad_lines.pieces):
            lines = bad_lines.begin(i)
            if format_of(piece.path, schema) == "parquet":
                continue
            left_out = found[piece.path] = set()
            for names, whole in text_blocks(piece.path, schema, schema.used_columns):
                block = whole
                earlier, described = lines.bad, lines.first_bad
                problems: dict[int, str] = {}
                while block.num_rows:  # each time without what was found to be bad
                    try:
                        source = read_block(block, names, schema)
                        if check is not None:
                            check(source)
                        # As when the files are written, the first block decides, without its bad lines.
                        able = converter or Converter(schema, source)
                        able.batch(source, Learned())
                        converter = able
                        break
                    except BadRowsError as error:
                        problems |= {taken.start: why for taken, why in error.problems}
                        left_out.update(line for taken, _ in error.problems for line in taken)
                        lines.bad = earlier + len(problems)
                        lines.first_bad = [*described, *sorted(problems.items())][:SHOWN]
                        bad_lines.check()
                        block = block.without(left_out)
                lines.count = whole.line(whole.num_rows - 1)
                progress.add(whole.num_rows)
    return found
