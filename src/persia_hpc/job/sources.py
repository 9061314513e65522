"""Opens and checks the splits of a job's data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from persia_hpc.checkpoint.choose import resumed_schema
from persia_hpc.config import Config
from persia_hpc.samples.follow import followed_schema
from persia_hpc.samples.source import FileSource, check_labels, check_scorable, open_source


def open_sources(config: Config, run_dir: str | Path | None = None) -> Mapping[str, FileSource]:
    """Opens the splits that the configuration names and checks them.

    With `data.follow` the training data has a schema, but no samples yet. A run that continues in `run_dir`
    knows the schema even if all files are gone.
    Raises UserError for files that can't be used, or that don't fit the training data.
    """
    sources: dict[str, FileSource] = {}
    for split in ("train", "valid", "test"):
        patterns = getattr(config.data, split)
        if split == "train" and config.data.follow:
            schema = resumed_schema(config, run_dir) or followed_schema(config)
            sources[split] = FileSource((), schema, 0, binary_labels=False)
        elif patterns:
            sources[split] = open_source(
                patterns,
                features=config.data.features,
                limit=config.data.limit,
                binary_labels=config.train.loss == "bce",
            )
    train = sources.get("train")
    if train is None:
        return sources
    check_labels(train.schema, ", ".join(config.data.train))
    for split in ("valid", "test"):
        if split in sources:
            check_scorable(sources[split], train.schema, "data.train", labels=True)
    return sources
