"""Holds the splits that a process reads: the schedule and the reader of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from persia_hpc.config import Config
from persia_hpc.samples.catalogue import Catalogue, Drawing
from persia_hpc.samples.datafile import FileInfo
from persia_hpc.samples.follow import portion_source
from persia_hpc.samples.reader import BatchReader, split_reader
from persia_hpc.samples.source import FileSource, Source
from persia_hpc.samples.time_order import TimeOrder
from persia_hpc.schedule import Schedule


class SplitReaders:
    """Holds readers and schedules by split; with `data.follow`, training reads one portion at a time."""

    def __init__(self, config: Config, sources: Mapping[str, Source], schedules: Mapping[str, Schedule]):
        """Makes the readers; `sources` has the splits that this process reads, `schedules` has all splits."""
        self.schedules = dict(schedules)
        catalogue = sources.get("items")
        self.drawing = Drawing(config, catalogue if isinstance(catalogue, Catalogue) else None)
        self.readers = {split: self._reader(config, split, source) for split, source in sources.items()}
        self._config = config
        self._sources = sources
        self._portion: FileSource | TimeOrder | None = None

    def begin_portion(self, schedule: Schedule, files: Sequence[FileInfo]) -> None:
        """Makes these files the training data; files of earlier portions are closed."""
        if self._portion is not None:
            self._portion.close()
        self._portion = portion_source(files, self._sources["train"], self._config)
        self.readers["train"] = self._reader(self._config, "train", self._portion)
        self.schedules["train"] = schedule

    def _reader(self, config: Config, split: str, source: Source) -> BatchReader:
        drawing = self.drawing
        if not drawing.names:
            return split_reader(config, split, source)
        added = drawing.add if split == "train" else drawing.add_none
        return split_reader(config, split, source, added)
