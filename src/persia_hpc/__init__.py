"""persia-hpc: hybrid recommender training on MPI, with an exact bound on staleness.

Names are imported when they are first used, so that the command line starts without torch and MPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import load, run, train
    from .callbacks import Callback
    from .config import Config, load_config
    from .errors import DataError, PersiaError, UserError
    from .job.reader import Reader
    from .preprocess.table.in_memory import write_dataset
    from .samples.batch import IdColumn, SampleBatch
    from .samples.schema import DatasetSchema, FeatureSchema
    from .samples.writer import DatasetWriter
    from .trainer.retrieval import Matches

__all__ = [
    "Callback",
    "Config",
    "DataError",
    "DatasetSchema",
    "DatasetWriter",
    "FeatureSchema",
    "IdColumn",
    "Matches",
    "PersiaError",
    "Reader",
    "SampleBatch",
    "UserError",
    "load",
    "load_config",
    "run",
    "scalars",
    "train",
    "write_dataset",
]

_HOME = {
    "load": "api",
    "run": "api",
    "train": "api",
    "Callback": "callbacks",
    "Config": "config",
    "load_config": "config",
    "DataError": "errors",
    "PersiaError": "errors",
    "UserError": "errors",
    "scalars": "reporting.scalars",
    "Reader": "job.reader",
    "IdColumn": "samples.batch",
    "SampleBatch": "samples.batch",
    "DatasetSchema": "samples.schema",
    "FeatureSchema": "samples.schema",
    "DatasetWriter": "samples.writer",
    "Matches": "trainer.retrieval",
    "write_dataset": "preprocess.table.in_memory",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'persia_hpc' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
